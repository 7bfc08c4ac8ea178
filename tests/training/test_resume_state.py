"""Kept training states from anyone have the names, shapes and types of the run that reads them, or are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fxmerge.errors import OptionError
from fxmerge.training.resume import keep, recall, restore

OWN: dict[str, Any] = {
    "weights": {"a": torch.ones(2, 3)}, "buffers": {}, "losses": [0.5], "untouched": ["a"], "seconds": 1.0,
}  # fmt: skip


def test_a_state_comes_back(tmp_path: Path) -> None:
    keep(tmp_path / "run.pt", {"steps": 3}, OWN)
    assert recall(tmp_path / "run.pt", {"steps": 3}, OWN)["losses"] == [0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"a": torch.ones(3, 2)}}, r"weights\.a is no tensor of shape \(2, 3\)"),
        ({"weights": {"a": torch.ones(2, 3, dtype=torch.int64)}}, r"weights\.a is no tensor"),
        ({"weights": {"a": torch.ones(2, 3).to_sparse()}}, r"weights\.a is no tensor"),
        ({"weights": {"a": 1.0}}, r"weights\.a is no tensor"),
        ({"weights": {"b": torch.ones(2, 3)}}, "weights does not hold what this run keeps"),
        ({"weights": []}, "weights does not hold what this run keeps"),
        ({"losses": ["x"]}, "losses is no list of float"),
        ({"losses": [math.nan]}, "losses is no list of float"),
        ({"losses": 3}, "losses is no list of float"),
        ({"untouched": [1]}, "untouched is no list of str"),
        ({"seconds": "long"}, "seconds is no number"),
        ({"seconds": -math.inf}, "seconds is no number"),
    ],
)
def test_a_state_of_another_kind_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    keep(tmp_path / "run.pt", {"steps": 3}, OWN | change)
    with pytest.raises(OptionError, match=message):
        recall(tmp_path / "run.pt", {"steps": 3}, OWN)


@pytest.mark.parametrize(
    "kept", [None, [], {"state": 3}, {"state": {5: {}}}, {"state": {0: {"exp_avg": torch.ones(9)}}}]
)
def test_an_optimizer_takes_only_what_fits_its_parameters(kept: Any) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 3))], lr=0.5)
    with pytest.raises(OptionError, match="it holds another optimizer\nremove it"):
        restore(optimizer, kept, Path("run.pt"))
    own = optimizer.state_dict() | {"param_groups": "nonsense"}
    restore(optimizer, own, Path("run.pt"))
    assert optimizer.param_groups[0]["lr"] == 0.5
