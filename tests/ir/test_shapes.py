"""Values of nodes at the sizes of one program, while another has the same graph."""

from __future__ import annotations

import torch
from torch import nn

import fxmerge
from fxmerge.ir.shapes import propagate


def test_another_program_of_the_same_graph_leaves_its_values_alone() -> None:
    program = fxmerge.capture(nn.Linear(3, 2), (torch.randn(4, 3),))
    before = {node: node.meta.get("val") for node in program}
    larger = program.evolve(hints={"batch": 37})
    assert [port.meta["val"].shape[0] for port in larger.placeholders] == [37]
    assert all(node.meta.get("val") is value for node, value in before.items())
    assert [port.meta["val"].shape[0] for port in program.placeholders] == [program.hints["batch"]]


def test_the_same_values_keep_the_same_graph() -> None:
    program = fxmerge.capture(nn.Linear(3, 2), (torch.randn(4, 3),))
    assert program.evolve(tensors={name: 2 * value for name, value in program.tensors.items()}).graph is program.graph


def test_propagating_writes_nothing() -> None:
    program = fxmerge.capture(nn.Linear(3, 2), (torch.randn(4, 3),))
    before = {node: dict(node.meta) for node in program}
    found = propagate(program.graph, program.inputs, program.tensors, program.maps, {"batch": 41})
    assert {node: dict(node.meta) for node in program} == before
    assert found[program.result[0]].value.shape == (41, 2)
