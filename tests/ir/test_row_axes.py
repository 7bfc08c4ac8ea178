"""Values inside a program of a fixed batch, shown for more rows than it takes at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.ir.program import Program
from fxmerge.ir.row_axes import row_axes
from fxmerge.ir.shown import shape_of, showing

ROWS, WIDTH = 4, 8


class TimeFirst(nn.Module):
    """Rows on the second axis inside, and one number of them alone."""

    def __init__(self, *, flat: bool = False) -> None:
        super().__init__()
        self.enter, self.middle, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.transpose(0, 1)).relu()
        time = x.shape[0]
        if self.flat:
            x = x.reshape(time * ROWS, WIDTH)
        x = self.middle(x).relu().view(time, ROWS, WIDTH)
        return self.head(x.cumsum(0)[-1])


def captured(time: int, *, flat: bool = False, task: str = "a") -> tuple[Program, Tensor]:
    torch.manual_seed(len(task) + time)
    x = torch.randn(2 * ROWS + 1, time, 6)
    program = fxmerge.capture(TimeFirst(flat=flat), (x[:ROWS],), task=task)
    assert program.rows == ROWS
    return program, x


@pytest.mark.parametrize("time", [5, ROWS], ids=["another length", "a length like the number of rows"])
def test_rows_are_put_together_on_their_own_axis(time: int) -> None:
    program, x = captured(time)
    node = [n for n in program if n.op == "call_function" and n.meta["val"].shape == (time, ROWS, WIDTH)][-1]
    assert row_axes(program)[node] == 1
    assert shape_of(program, node) == (time, "batch", WIDTH)
    shown = showing(program, {"inner": node})
    [many] = shown.module(x)
    assert many.shape == (time, len(x), WIDTH)
    for rows in (slice(0, ROWS), slice(ROWS, 2 * ROWS), slice(1, 1 + ROWS)):
        torch.testing.assert_close(many[:, rows], shown.module(x[rows])[0])


def test_a_value_with_rows_and_time_in_one_axis_is_left_out_and_noted() -> None:
    program, x = captured(5, flat=True)
    other, _ = captured(5, flat=True, task="other")
    flat = [n for n in program if n.op == "call_function" and n.meta["val"].shape == (5 * ROWS, WIDTH)]
    assert flat
    assert not any(n in row_axes(program) for n in flat)
    merged = fxmerge.merge([program, other], data=x, steps=2, batch_size=4, augment="none", init="average")
    assert sum("is not compared, its rows are on no axis of their own" in n for n in merged.result["notes"]) == 2
    assert merged(x)["a"].shape == (len(x), 3)
