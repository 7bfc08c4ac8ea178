"""Nested inputs and outputs by name; arguments that do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge import capture
from fxmerge.errors import CaptureError, DataError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(6, 8), nn.Linear(8, 3)


class Two(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Sample:
    image: Tensor
    power: int


class Lists(Net):
    def forward(self, maps: Any, more: Any = None) -> Tensor:
        return self.head((self.enter(maps[0]) - self.enter(maps[1]) + (0 if more is None else more["x"][0])).relu())


class Fields(Net):
    def forward(self, sample: Sample) -> Tensor:
        return self.head(self.enter(sample.image**sample.power).relu())


def x(rows: int = 4, width: int = 6) -> Tensor:
    return torch.randn(rows, width)


@pytest.mark.parametrize(
    ("model", "inputs", "names"),
    [
        (Lists(), ([x(), x()],), ["maps.0", "maps.1"]),
        (Lists(), ((x(), x()), {"x": [x(4, 8)]}), ["maps.0", "maps.1", "more.x.0"]),
        (Lists(), {"maps": Two(x(), x())}, ["maps.left", "maps.right"]),
        (Fields(), (Sample(x(), 3),), ["sample.image"]),
    ],
)
def test_nested_tensors_are_inputs(model: nn.Module, inputs: Any, names: list[str], tmp_path: Path) -> None:
    fxmerge.save(model, tmp_path / "a.pt", inputs=inputs)
    program = fxmerge.load(tmp_path / "a.pt")
    assert [port.name for port in program.inputs] == names
    with torch.no_grad():
        wanted = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    torch.testing.assert_close(program(**program.samples), wanted)
    half = {name: value / 2 for name, value in program.samples.items()}
    assert not torch.allclose(program(**half), wanted)


class Outputs(Net):
    def __init__(self, give: Any) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> Any:
        h = self.enter(x).relu()
        return self.give(self.head(h), h)


@dataclass
class Answer:
    logits: Tensor
    features: Tensor | None = None


@pytest.mark.parametrize(
    ("give", "names"),
    [
        (lambda y, h: y, ["logits"]),
        (lambda y, h: (y, None, h), ["0", "2"]),
        (lambda y, h: {"logits": y, "aux": {"mask": h, "none": None}}, ["logits", "aux.mask"]),
        (lambda y, h: {"logits": y, "hidden": (h, h.sum(1))}, ["logits", "hidden.0", "hidden.1"]),
        (Answer, ["logits", "features"]),
        (Two, ["left", "right"]),
    ],
)
def test_outputs_by_name(give: Any, names: list[str]) -> None:
    assert [port.name for port in capture(Outputs(give), (x(),)).outputs] == names


def test_what_is_no_tensor_is_said_to_be_left_out() -> None:
    class Cache:
        pass

    program = capture(Outputs(lambda y, h: {"logits": y, "cache": Cache()}), (x(),))
    assert program.notes == ("left out of the outputs, it is no tensor: cache (Cache)",)


def test_arguments_that_do_not_fit() -> None:
    net = Outputs(lambda y, h: y)
    with pytest.raises(CaptureError, match=r"2 positional inputs for a forward with 1 \(x\)"):
        capture(net, (x(), x()))
    with pytest.raises(CaptureError, match="forward takes no 'xs'; did you mean x"):
        capture(net, {"xs": x()})
    with pytest.raises(CaptureError, match="does not run on the sample inputs"):
        capture(net, (x(4, 5),))


def test_an_input_too_many_is_an_error() -> None:
    program = capture(Outputs(lambda y, h: y), (x(),))
    with pytest.raises(DataError, match="2 inputs for a program that takes 1"):
        program(x(), x())
    with pytest.raises(DataError, match="'y', for a program that takes 1; 'x' is missing"):
        program(y=x())
