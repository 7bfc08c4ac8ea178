"""Names mean nothing: parts of a model may be called like anything that a SuperNet has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxmerge
import passes

X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
WORDS = ("maps", "parents", "class")
QUICK = {"method": "foldable", "steps": 4, "batch_size": 8, "pool": 32, "init": "average", "augment": "none"}


class Named(nn.Module):
    """Every part is called `word`, or lies in something that is."""

    def __init__(self, word: str) -> None:
        super().__init__()
        inner = nn.ModuleDict({word: nn.LayerNorm(8), "m1": nn.ModuleDict({word: nn.Linear(8, 8)})})
        self.parts = nn.ModuleDict({"stem": nn.Linear(5, 8), "head": nn.Linear(8, 3)})
        self.add_module(word, inner)
        self.word = word

    def forward(self, x: Tensor) -> Tensor:
        inner = self.get_submodule(self.word)
        x = self.parts["stem"](x)
        return self.parts["head"](x + inner["m1"][self.word](inner[self.word](x)).relu())


def named(word: str, task: str, seed: int) -> fxmerge.Program:
    torch.manual_seed(seed)
    return fxmerge.capture(Named(word).eval(), (X,), task=task)


@pytest.mark.parametrize("word", WORDS)
def test_parts_may_be_called_anything(word: str) -> None:
    one = named(word, "a", 0)
    merged = fxmerge.merge([one, named(word, "b", 1)], data=X, **QUICK)
    trunk = {name for name in one.parameters if not name.startswith("parts.head")}
    heads = {f"{task}.parts.head.{leaf}" for task in "ab" for leaf in ("weight", "bias")}
    assert set(merged.state_dict()) == trunk | heads
    assert merged.result["checks"]["fold_max_abs"] < 1e-5
    twin = fxmerge.merge([one, one.evolve(task="twin")], method="average")
    torch.testing.assert_close(twin(X)["twin"], one(X))


def test_a_norm_in_a_part_called_maps_trains() -> None:
    parents = [named("maps", "a", 0), named("maps", "b", 1)]
    merged = fxmerge.merge(parents, data=X, **QUICK)
    assert not torch.equal(merged.state_dict()["maps.maps.weight"], torch.ones(8))


@pytest.mark.parametrize("tasks", [("parts", "maps.m0"), ("0", "class")])
def test_tasks_may_be_called_anything_too(tasks: tuple[str, str], tmp_path: Path) -> None:
    parents = [named("maps", task, seed) for seed, task in enumerate(tasks)]
    merged = fxmerge.merge(parents, data=X, out=str(tmp_path / "m.onnx"), **QUICK)
    assert set(merged(X)) == set(tasks)
    assert merged.result["checks"]["onnx_max_abs"] < 1e-4


def test_maps_tell_their_axes_and_where_they_stand() -> None:
    net = passes.insert_merge([named("maps", "a", 0), named("maps", "b", 1)], passes.BUILTIN.rules)
    assert set(net.places) == set(net.program.maps)
    for name, place in net.places.items():
        assert net.nodes_of(name)
        assert place.merged.size == net.program.maps[name].size
        assert [axis.size for axis in place.parents] == list(net.program.maps[name].sizes)
        assert all(leaf.space in net.spaces.spaces for leaf in [place.merged])
