"""Programs run whatever their tensors are called."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from fxmerge.ir.module import attribute_names
from fxmerge.ir.program import Port, Program

NAMES = [
    "class.weight",
    "graph.w",
    "code",
    "training.x",
    "0.1",
    "a b",
    'quo"te',
    "lambda",
    "forward.weight",
    "a",
    "a.b",
]


def doubled(name: str) -> Program:
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.get_attr(name)
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (x, w)),))
    port = Port("x", ("batch", 2), torch.float32)
    return Program(graph, {name: torch.full((2,), 2.0)}, (port,), (port,), frozenset({name}))


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_any_name_is_read(name: str) -> None:
    program = doubled(name)
    x = torch.rand(3, 2)
    assert torch.equal(program.run({"x": x})["x"], 2 * x)
    assert torch.equal(program.run({"x": x}, {name: torch.full((2,), 3.0)})["x"], 3 * x)
    assert [p.requires_grad for p in program.module.parameters()] == [False]


def test_names_stay_where_they_can_and_are_told_apart_where_they_cannot() -> None:
    found = attribute_names(["blocks.0.weight", "class", "class_", "a", "a.b", "a_.b"])
    assert found["blocks.0.weight"] == "blocks.0.weight"
    assert len(set(found.values())) == len(found)
    owners = {own.rpartition(".")[0] for own in found.values()}
    assert not owners & set(found.values())


def test_two_tensors_one_of_which_is_on_the_way_to_the_other() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    total = graph.call_function(torch.ops.aten.add.Tensor, (graph.get_attr("a"), graph.get_attr("a.b")))
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (x, total)),))
    port = Port("x", ("batch", 2), torch.float32)
    program = Program(graph, {"a": torch.ones(2), "a.b": torch.ones(2)}, (port,), (port,), frozenset())
    assert torch.equal(program.run({"x": torch.ones(1, 2)})["x"], torch.full((1, 2), 2.0))
