"""Parents of one base are found and said, and what that changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxmerge
from benchmarks.models import MLP
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from tests.methods.test_condense import parent
from tests.methods.test_task_vectors import tuned


def family(by: float) -> list[Program]:
    torch.manual_seed(0)
    base, x = MLP(8, (24, 24), 4), torch.randn(24, 8)
    return [fxmerge.capture(m, (x,), task=f"t{i}") for i, m in enumerate(tuned(base, "head", 3, 4, by=by))]


def test_fine_tunes_are_told_from_strangers() -> None:
    tunes, strangers = family(0.03), [parent("mlp", seed, task)[0] for seed, task in ((3, "a"), (4, "b"))]
    result = fxmerge.merge(tunes, method="average").result
    assert result["base"]["shared"]
    assert result["base"]["cosine"] > 0.9
    assert any(note.startswith("the parents share a base (their weights have a cosine") for note in result["notes"])
    result = fxmerge.merge(strangers, method="ties").result
    assert not result["base"]["shared"]
    assert abs(result["base"]["cosine"]) < 0.2
    assert any(note.startswith("ties is for parents of one base, and these share none") for note in result["notes"])


def test_with_the_base_it_is_said_whether_changes_agree(tmp_path: Any) -> None:
    torch.manual_seed(0)
    base, x = MLP(8, (24, 24), 4), torch.randn(8, 8)
    fxmerge.save(base, tmp_path / "base.pt", inputs=(x,))
    first = fxmerge.capture(tuned(base, "head", 3)[0], (x,), task="a")
    result = fxmerge.merge([first, first.evolve(task="b")], method="ties", base=str(tmp_path / "base.pt")).result
    assert result["base"]["changes"] == pytest.approx(1)
    assert result["base"]["source"].endswith("base.pt")


def test_the_default_starts_from_what_suits_them_and_says_why() -> None:
    torch.manual_seed(0)
    first, second = family(0.05)
    data = {"t0": torch.randn(32, 8), "t1": torch.randn(32, 8) @ torch.randn(8, 8)}
    how: dict[str, Any] = {"batch_size": 8, "pool": 32, "augment": "none"}
    result = fxmerge.merge([first, second], data=data, steps=20, **how).result
    (told,) = (note for note in result["notes"] if note.startswith("starts for parents of one base"))
    assert "ties" in told
    assert "task-arithmetic" not in told, "without a base it is the average"
    better = told.partition(": ")[2].partition(" beside")[0]
    tried = {each["start"] for each in result["training"]["chosen"]["tried"]}
    assert (better in tried) == (" beside the average" in told)
    untrained = fxmerge.merge([first, second], data=data, polish=0, **how).result
    assert any(f"{untrained['init']} is the result" in note for note in untrained["notes"])
    strangers = [parent("mlp", seed, task) for seed, task in ((3, "a"), (4, "b"))]
    data = {program.task: x for program, x in strangers}
    notes = fxmerge.merge([program for program, _ in strangers], data=data, steps=20, **how).result["notes"]
    assert not any("one base" in note for note in notes)


def test_what_stands_in_for_a_teacher_shares_no_base() -> None:
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.LayerNorm(20), nn.Linear(20, 4))
    x = torch.randn(24, 8)
    parents = [fxmerge.capture(MLP(8, (24, 24), 4), (x,), task="a"), fxmerge.capture(other, (x,), task="b")]
    result = fxmerge.merge(parents, steps=2, batch_size=8, pool=16, augment="none", lr=1e-3, init="average").result
    assert result["parents"][1]["role"] == "teacher"
    assert (result["base"]["shared"], result["base"]["spaces"]) == (False, 0)


class Inside(nn.Module):
    """A network that gives other outputs, from the trunk of an MLP inside it."""

    def __init__(self, trunk: MLP) -> None:
        super().__init__()
        self.body = trunk

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.body.layers:
            x = layer(x).relu()
        found: torch.Tensor = x.cumsum(-1).softmax(-1)
        return found


@pytest.mark.parametrize("method", ["task-arithmetic{scale=0.5}", "auto"])
def test_a_base_with_other_outputs_is_taken_by_names_if_it_is_near(method: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    base, x = MLP(8, (24, 24), 4), torch.randn(24, 8)
    parents = [fxmerge.capture(m, (x,), task=f"t{i}") for i, m in enumerate(tuned(base, "head", 3, 4, by=0.03))]
    fxmerge.save(Inside(base), tmp_path / "near.pt", inputs=(x,))
    fxmerge.save(Inside(MLP(8, (24, 24), 4)), tmp_path / "far.pt", inputs=(x,))
    how: dict[str, Any] = {"polish": 0, "augment": "none", "pool": 32} if method == "auto" else {}
    result = fxmerge.merge(parents, method=method, base=str(tmp_path / "near.pt"), **how).result
    assert any("by their names, which 4 of its 6 have" in note for note in result["notes"])
    assert result["base"]["changes"] is not None
    with pytest.raises(LineUpError, match=r"far\.pt does not line up with t0 and has other weights"):
        fxmerge.merge(parents, method=method, base=str(tmp_path / "far.pt"), **how)
