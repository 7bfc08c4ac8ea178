"""The batch axis is found by running the model, or said, and comes first in the program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge import capture
from fxmerge.capturing.rows import find_rows
from fxmerge.errors import OptionError

WIDTH = 6


class TimeFirst(nn.Module):
    """(time, batch, features) to (batch, classes), or to (time, batch, classes)."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.enter, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.enter(x).tanh().cumsum(0)
        return self.head(seen[-1] if self.last else seen)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("last", [True, False])
def test_time_first(last: bool, rows: int) -> None:
    model, x = TimeFirst(last), torch.randn(7, rows, WIDTH)
    program = capture(model, (x,))
    assert program.inputs[0].shape == ("batch", 7, WIDTH)
    assert program.turned == {"x": 1}
    assert torch.equal(program.samples["x"], x.movedim(1, 0))
    assert "axis 1 of x is the batch" in program.notes[0]
    other = torch.randn(7, 5, WIDTH)
    with torch.no_grad():
        wanted = model(other) if last else model(other).movedim(1, 0)
    torch.testing.assert_close(program(other.movedim(1, 0)), wanted)


def test_said_by_dynamic_shapes_or_by_its_number() -> None:
    model, x = TimeFirst(last=True), torch.randn(7, 4, WIDTH)
    for options in ({"dynamic_shapes": {"x": {1: torch.export.Dim("batch")}}}, {"batch_axis": 1}):
        assert capture(model, (x,), **options).inputs[0].shape == ("batch", 7, WIDTH)  # type: ignore[arg-type]


def test_an_axis_that_no_input_has() -> None:
    with pytest.raises(OptionError, match="no input has an axis 3 for the batch"):
        capture(TimeFirst(last=True), (torch.randn(7, 4, WIDTH),), batch_axis=3)


def test_inputs_with_the_batch_on_different_axes() -> None:
    def run(tensors: dict[str, Tensor]) -> list[Tensor]:
        return [(tensors["x"].cumsum(0)[-1] * tensors["scale"]).flip(1), tensors["table"].sum(0)]

    tensors = {"x": torch.randn(7, 4, 5), "scale": torch.randn(4, 1), "table": torch.randn(4, 3)}
    found = find_rows(run, tensors)  # type: ignore[arg-type]
    assert found.inputs == {"x": 1, "scale": 0, "table": None}
    assert found.outputs == (0, None)


def test_a_model_whose_rows_depend_on_each_other() -> None:
    class Similar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(WIDTH, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.enter(x) - self.enter(x).mean(0)

    model = Similar()
    program = capture(model, (torch.randn(5, WIDTH),))
    assert "the rows of a batch depend on each other" in program.notes[0]
    x = torch.randn(7, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))


def test_no_axis_at_all() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(WIDTH, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.enter(x).cumsum(0).cumsum(1)

    assert "no axis was found along which rows are independent" in capture(Sorted(), (torch.randn(5, WIDTH),)).notes[0]


def test_samples_of_a_time_first_model_are_read_as_it_takes_them(tmp_path: Path) -> None:
    import numpy as np

    from fxmerge.samples.load import Reading, load_samples

    program = capture(TimeFirst(last=True), (torch.randn(7, 4, WIDTH),))
    x = np.random.default_rng(0).normal(size=(7, 20, WIDTH)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "first.npy", x.swapaxes(0, 1))
    read = load_samples(tmp_path / "x.npy", program)
    assert read.inputs["x"].shape == (20, 7, WIDTH)
    assert "the batch is read off x on axis 1" in read.notes[-1]
    first = load_samples(tmp_path / "first.npy", program, Reading(batch_axis=0))
    assert torch.equal(first.inputs["x"], read.inputs["x"])


def test_the_axis_is_kept_in_a_bundle(tmp_path: Path) -> None:
    fxmerge.save(TimeFirst(last=True), tmp_path / "a.pt", inputs=(torch.randn(7, 4, WIDTH),))
    assert fxmerge.load(tmp_path / "a.pt").turned == {"x": 1}
