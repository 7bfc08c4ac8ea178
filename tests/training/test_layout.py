"""The rows of features are found wherever the model has them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxmerge.training.layout import Layout, layouts


@pytest.mark.parametrize(
    ("feature", "layout"),
    [
        (lambda x: x, Layout()),
        (lambda x: x.movedim(0, 1), Layout(1)),
        (lambda x: x.flatten(0, 1), Layout()),
        (lambda x: x.movedim(0, 1).flatten(0, 1), Layout(0, 4)),
        (lambda x: x.sum((1, 2)), Layout()),
        (lambda x: torch.ones(4), None),
    ],
)
def test_rows_come_first(feature: object, layout: Layout | None) -> None:
    assert callable(feature)
    x = torch.randn(6, 4, 5)
    given: Tensor = feature(x)
    [found] = layouts([given], [feature(x[:5])], 6, 5)
    assert found == layout
    if found is not None:
        each = [found.rows_first(feature(x[i : i + 1]), 1) for i in range(6)]
        assert torch.equal(found.rows_first(given, 6), torch.cat(each))
