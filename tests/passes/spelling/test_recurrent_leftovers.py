"""Recurrent layers written in rarer ways: merged with itself each is itself; what has no rule is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxmerge
from fxmerge.errors import OutputError
from fxmerge.from_onnx.runtime import run_onnx

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

X = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A linear map, a recurrent layer over time, two more linear maps."""

    def __init__(self, *, rows_first: bool = True, projected: int = 0, normed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.rows_first = nn.Linear(5, 6), rows_first
        self.loop = nn.LSTM(6, 8, batch_first=rows_first, proj_size=projected)
        self.mid, self.head = nn.Linear(projected or 8, 7), nn.Linear(7, 3)
        if normed:
            for name in ("weight_ih_l0", "weight_hh_l0"):
                parametrizations.weight_norm(self.loop, name)

    def last(self, x: Tensor) -> Tensor:
        return self.loop(x)[0][:, -1] if self.rows_first else self.loop(x.transpose(0, 1))[0][-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.last(self.enter(x).relu())).relu())


class ByHand(Net):
    """The equations of an LSTM, one step after another."""

    def last(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            gates = x[:, t] @ self.loop.weight_ih_l0.T + self.loop.bias_ih_l0 + self.loop.bias_hh_l0
            i, f, g, o = (gates + h @ self.loop.weight_hh_l0.T).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


class Cell(Net):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loop = nn.LSTMCell(6, 8)  # type: ignore[assignment]

    def last(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(x.shape[0], 8), x.new_zeros(x.shape[0], 8))
        for t in range(x.shape[1]):
            state = self.loop(x[:, t], state)
        return state[0]


PAIRS: dict[str, tuple[Callable[[], Net], Callable[[], Net], str]] = {
    "rows first and time first": (Net, lambda: Net(rows_first=False), ""),
    "time first and rows first": (lambda: Net(rows_first=False), Net, ""),
    "weight norm": (lambda: Net(normed=True), lambda: Net(normed=True), ""),
    "weight norm and plain": (lambda: Net(normed=True), Net, ""),
    "by hand": (ByHand, ByHand, ""),
    "a cell": (Cell, Cell, ""),
    "projected states": (lambda: Net(projected=4), lambda: Net(projected=4), "proj_size"),
}


WRITTEN = ("rows first and time first", "a cell")
"""Written as ONNX too; an export takes most of the time."""


def pair(name: str) -> tuple[list[fxmerge.Program], Tensor, str]:
    one, two, note = PAIRS[name]
    models = [one().eval(), two().eval()]
    programs = [fxmerge.capture(model, (X,), task=task) for model, task in zip(models, "ab", strict=True)]
    with torch.no_grad():
        return programs, models[0](X), note


@pytest.mark.parametrize("name", PAIRS)
def test_merged_with_itself_it_is_itself(name: str, tmp_path: Path) -> None:
    programs, wanted, note = pair(name)
    out = str(tmp_path / "merged.onnx") if name in WRITTEN else None
    merged = fxmerge.merge(programs, method="average", out=out)
    found = [merged(X)] + ([] if out is None else [run_onnx(out, {"x": X})])
    for answers in found:
        for task in "ab":
            value = answers[task] if task in answers else answers[f"{task}.logits"]
            torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)
    told = " ".join(merged.result["notes"])
    assert note in told
    assert ("are a plain average" in told) == bool(note)
    assert "mid.weight (" not in told


def test_projected_states_have_no_form_in_onnx(tmp_path: Path) -> None:
    programs, _, _ = pair("projected states")
    with pytest.raises(OutputError, match="ONNX has no LSTM that projects its states"):
        fxmerge.merge(programs, method="average", out=str(tmp_path / "merged.onnx"))
    assert not (tmp_path / "merged.onnx").exists()
