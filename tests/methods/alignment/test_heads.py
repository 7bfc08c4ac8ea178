"""Values matched across heads: an approximation that is called one, and nothing where heads do not allow it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fxmerge
from benchmarks.family_nets import Llama
from fxmerge.ir.program import Program
from tests.methods.alignment.planted import planted
from tests.methods.alignment.test_planted import miss
from tests.methods.test_condense import parent

CROSSED = torch.tensor([6, 1, 2, 3, 4, 5, 0, 7, 8, 9, 10, 11])
"""Two heads of 6 units: the first units of both change places."""


def crossed(program: Program) -> Program:
    """Values that change their head where they are written and where they are read: other weights of attention."""
    tensors = dict(program.tensors)
    for name, value in program.tensors.items():
        if ".value." in name:
            tensors[name] = value[CROSSED]
        elif name.endswith("output.weight"):
            tensors[name] = value[:, CROSSED]
    return dataclasses.replace(program.evolve(tensors=tensors), task="b")


def of_role(program: Program, groups: dict[str, str], role: str) -> list[str]:
    return [groups[name] for name, space in fxmerge.inspect(program)["spaces"].items() if space["role"] == role]


@pytest.mark.parametrize("method", ["permute", "transport{reg=0}", "zipit"])
def test_units_that_change_their_head_are_no_symmetry_and_are_called_free(method: str) -> None:
    first, x = parent("vit-fused", 1, "a")
    second, _ = parent("vit-fused", 2, "b")
    free = method.replace("{", "{heads=free,") if "{" in method else f"{method}{{heads=free}}"
    found = fxmerge.merge([first, second], data={"a": x, "b": x}, method=free, seed=0).result
    assert of_role(first, found["merged"]["groups"], "value_output") == ["free"]
    assert of_role(first, found["merged"]["groups"], "heads") == ["free"]
    assert any("which is no symmetry of attention" in note for note in found["notes"])


def test_units_go_back_to_the_head_that_they_came_from() -> None:
    first, x = parent("vit", 1, "a")
    second = crossed(first)
    (mine,), (other,) = first.run(x).values(), second.run(x).values()
    assert float((mine - other).abs().max() / mine.abs().max()) > 1e-2, "it is no symmetry"
    found = fxmerge.merge([first, second], data=x, method="permute{heads=free,on=weights}", seed=0)
    for name in (name for name in first.parameters if ".value." in name or name.endswith("output.weight")):
        torch.testing.assert_close(found.program.tensors[name], first.tensors[name])
    assert any("up to 17% of the units of" in note for note in found.result["notes"])


def test_heads_in_another_order_need_no_unit_to_change_its_head() -> None:
    first, x = parent("vit-fused", 1, "a")
    found, result = miss([first, planted(first)], x, "permute{heads=free}")
    assert found < 1e-5
    assert of_role(first, result["merged"]["groups"], "value_output") == ["permutation"]
    assert any("changes its head, though it might" in note for note in result["notes"])


def test_values_that_groups_of_queries_share_stay_in_their_heads() -> None:
    parents = []
    x = torch.randint(0, 20, (48, 9))
    for seed, task in ((1, "a"), (2, "b")):
        torch.manual_seed(seed)
        net = Llama(20, vocabulary=20, width=16, heads=4, groups=2, hidden=16, depth=1)
        parents.append(fxmerge.capture(net.eval(), (x[:4],), task=task))
    result = fxmerge.merge(parents, data={"input_ids": x}, method="permute{heads=free}").result
    assert any("stay whole: they are no axis of heads by units everywhere" in note for note in result["notes"])
    assert "free" not in of_role(parents[0], result["merged"]["groups"], "value_output")
