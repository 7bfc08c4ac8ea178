"""Sizes at capture: taken as Python numbers, fixed, tied, asked for by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxmerge import Program, capture
from fxmerge.errors import CaptureError, OptionError

WIDTH = 6


class Net(nn.Module):
    """A linear map before and after a forward of the test's own."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(width, 8), nn.Linear(8, 3)


class PythonSizes(Net):
    def forward(self, x: Tensor) -> Tensor:
        rows, length = len(x), int(x.size(1))
        flat = self.enter(x.float().reshape(rows * length, WIDTH)).relu()
        return self.head(flat.view(rows, length, 8).mean(1)) + torch.zeros(rows, 1)


class Written(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.enter(x).relu().view(4, 8))


class Root(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.enter(x).relu()) / len(x) ** 0.5


def same(program: Program, model: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(program(*inputs), model(*inputs))


def test_sizes_as_python_numbers_stay_dynamic() -> None:
    model = PythonSizes()
    program = capture(model, (torch.randn(1, 5, WIDTH),))
    assert program.inputs[0].shape == ("batch", 5, WIDTH)
    assert program.notes == ()
    for rows in (1, 2, 7):
        same(program, model, torch.randn(rows, 5, WIDTH))


def test_the_length_of_tokens_as_a_python_number_stays_dynamic() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 3)

        def forward(self, ids: Tensor) -> Tensor:
            flat = self.table(ids.reshape(int(ids.size(0)) * int(ids.size(1))))
            return flat.view(len(ids), -1, 3).sum(1)

    model = Tokens()
    program = capture(model, (torch.randint(0, 20, (2, 5)),))
    assert program.inputs[0].shape == ("batch", "sequence")
    same(program, model, torch.randint(0, 20, (4, 9)))


@pytest.mark.parametrize(("model", "rows", "why"), [(Written(), 4, "takes no other number"), (Root(), 5, "not trace")])
def test_a_fixed_batch_is_said_and_runs_in_blocks(model: nn.Module, rows: int, why: str) -> None:
    program = capture(model, (torch.randn(rows, WIDTH),))
    assert program.rows == rows
    assert program.inputs[0].shape == ("batch", WIDTH)
    note = program.notes[-1]
    assert f"fixed at {rows} rows" in note
    assert why in note
    x = torch.randn(2 * rows + 1, WIDTH)
    found = program(x)
    with torch.no_grad():
        torch.testing.assert_close(found[:rows], model(x[:rows]))
    torch.testing.assert_close(found[2 * rows :], program(x[2 * rows :]))
    assert found.shape == (2 * rows + 1, 3)


def test_gradients_pass_through_blocks() -> None:
    program = capture(Written(), (torch.randn(4, WIDTH),))
    x = torch.randn(6, WIDTH, requires_grad=True)
    program.module(x)[0].sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any(1).all())


class Beside(Net):
    """Two pairs of inputs whose lengths have nothing to do with each other."""

    def forward(self, a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor) -> Tensor:
        both = [(self.enter(x) * m.unsqueeze(-1)).sum(1) for x, m in ((a, mask_a), (b, mask_b))]
        return self.head(both[0] + both[1])


def test_sizes_equal_in_the_sample_alone_are_not_tied() -> None:
    model, x, mask = Beside(), torch.randn(2, 5, WIDTH), torch.ones(2, 5)
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = capture(model, (x, mask, x, mask), dynamic_shapes=dict.fromkeys(("a", "mask_a", "b", "mask_b"), any_size))
    shapes = {port.name: port.shape[1] for port in program.inputs}
    assert shapes["a"] == shapes["mask_a"]
    assert shapes["b"] == shapes["mask_b"]
    assert shapes["a"] != shapes["b"]


def pictures(last: bool) -> nn.Module:
    class Pictures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.convolution(x.movedim(3, 1) if last else x).relu()

    return Pictures()


@pytest.mark.parametrize("last", [False, True])
def test_any_height_and_width_on_request(last: bool) -> None:
    shape = (2, 8, 8, 3) if last else (2, 3, 8, 8)
    model = pictures(last)
    program = capture(model, (torch.randn(shape),), dynamic=("height", "width"))
    assert program.inputs[0].shape == (("batch", "height", "width", 3) if last else ("batch", 3, "height", "width"))
    same(program, model, torch.randn((1, 9, 12, 3) if last else (1, 3, 9, 12)))


def test_an_axis_that_no_input_has() -> None:
    with pytest.raises(OptionError, match="no axis is called 'heigth'; did you mean height"):
        capture(pictures(False), (torch.randn(2, 3, 8, 8),), dynamic=("heigth",))
    with pytest.raises(OptionError, match="no input has an axis that is a height"):
        capture(Root(), (torch.randn(2, WIDTH),), dynamic=("height",))


def test_an_axis_that_cannot_vary() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    with pytest.raises(CaptureError, match="cannot be traced"):
        capture(Flat(), (torch.randn(2, 3, 8, 8),), dynamic=("height",))
