"""The worked examples in docstrings, where the analysis is hardest, are true."""

from __future__ import annotations

import doctest

import pytest

from fxmerge.coupling import axes, exponents, law


@pytest.mark.parametrize("module", [law, axes, exponents], ids=lambda module: module.__name__)
def test_worked_examples(module: object) -> None:
    failed, tried = doctest.testmod(module)  # type: ignore[arg-type]
    assert tried and not failed
