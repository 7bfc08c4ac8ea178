"""What the loss compares: every output of a task has its share, and every trained map is behind something compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxmerge
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods import METHODS
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.wanted import reads, wanted

Forward = Callable[["Layers", Tensor], Any]


class Layers(nn.Module):
    """Some layers, used as a test says."""

    def __init__(self, seed: int, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.one, self.narrow, self.wide = nn.Linear(12, 1), nn.Linear(12, 4), nn.Linear(4, 12)
        self.used = forward

    def forward(self, x: Tensor) -> Any:
        return self.used(self, x)


def hidden(net: Layers, x: Tensor) -> Tensor:
    return torch.relu(net.b(torch.relu(net.a(x))))


def beside(net: Layers, x: Tensor) -> Any:
    h = hidden(net, x)
    return {"logits": net.c(h), "score": net.one(h).squeeze(-1)}


def inner(net: Layers, x: Tensor) -> Any:
    h = torch.relu(net.a(x))
    return net.c(torch.relu(net.b(h))), h


def bottleneck(net: Layers, x: Tensor) -> Any:
    z = net.narrow(torch.relu(net.a(x)))
    return net.c(torch.relu(net.wide(z))), z


def ranks(net: Layers, x: Tensor) -> Any:
    h = hidden(net, x)
    return torch.relu(net.narrow(h)).norm(dim=1), net.c(h), net.c(h).argmax(1), h.mean(1)


def only_inner(net: Layers, x: Tensor) -> Any:
    return torch.sigmoid(net.b(torch.relu(net.a(x)))).mean(1)


def plain(net: Layers, x: Tensor) -> Any:
    return net.c(hidden(net, x))


NETS: dict[str, tuple[Forward, int]] = {
    "a squeezed scalar beside classes": (beside, 2),
    "an inner feature": (inner, 2),
    "encoder and decoder": (bottleneck, 2),
    "outputs of every rank": (ranks, 4),
    "no head": (only_inner, 1),
    "one head": (plain, 1),
}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[SuperNet]:
    """The SuperNets of the merges of a test."""
    found: list[SuperNet] = []
    foldable = next(method for method in METHODS if method.name == "foldable")
    before = type(foldable).__call__

    def call(self: Any, job: Job) -> Outcome:
        found.append(job.supernet)
        return before(self, job)

    monkeypatch.setattr(type(foldable), "__call__", call)
    return found


def behind(node: fx.Node) -> set[fx.Node]:
    found, todo = {node}, [node]
    while todo:
        new = [n for n in reads(todo.pop()) if n not in found]
        found.update(new)
        todo += new
    return found


@pytest.mark.parametrize("name", NETS)
def test_every_map_that_serves_an_output_is_behind_what_is_compared(name: str, kept: list[SuperNet]) -> None:
    forward, outputs = NETS[name]
    x = torch.randn(24, 6)
    parents = [fxmerge.capture(Layers(k, forward), (x,), task=f"t{k}") for k in range(2)]
    how: dict[str, Any] = {"method": "foldable", "init": "average", "augment": "none", "batch_size": 8, "steps": 3}
    merged = fxmerge.merge(parents, data=x, **how)
    assert merged.result["checks"]["all_gradients"] is True
    assert len(parents[0].outputs) == outputs
    (net,) = kept
    nodes = {port.name: node for port, node in zip(net.program.outputs, net.program.result, strict=True)}
    compared = set().union(*(behind(nodes[each.feature.port]) for each in wanted(net)))
    served = set().union(*(behind(nodes[f"{p.task}.{o.name}"]) for p in net.parents for o in p.outputs))
    maps = {node for node in served if node.target in net.program.maps}
    assert maps
    assert maps <= compared
    for k in range(2):
        assert sum(each.weight for each in wanted(net) if each.feature.parent == k) == pytest.approx(1)


def test_a_head_alone_is_stood_for_by_what_it_reads(kept: list[SuperNet]) -> None:
    x = torch.randn(24, 6)
    parents = [fxmerge.capture(Layers(k, plain), (x,), task=f"t{k}") for k in range(2)]
    fxmerge.merge(parents, data=x, method="foldable", init="average", augment="none", batch_size=8, steps=2)
    assert [(each.feature.port.split("/")[0], each.weight) for each in wanted(kept[0])] == [("t0", 1.0), ("t1", 1.0)]
    assert all(each.feature.final for each in wanted(kept[0], 0.5) if each.weight == 1.0)
    assert {each.weight for each in wanted(kept[0], 0.5)} == {1.0, 0.5}


def test_distilling_trains_no_teacher() -> None:
    x = torch.randn(24, 6)
    parents = [fxmerge.capture(Layers(k, ranks), (x,), task=f"t{k}") for k in range(2)]
    before = [{name: value.clone() for name, value in parent.tensors.items()} for parent in parents]
    fxmerge.merge(parents, data=x, method="distill", init="average", augment="none", batch_size=8, steps=3)
    for parent, tensors in zip(parents, before, strict=True):
        assert all(torch.equal(parent.tensors[name], value) for name, value in tensors.items())


def test_an_output_that_never_varies_is_said() -> None:
    def still(net: Layers, x: Tensor) -> Any:
        h = hidden(net, x)
        return net.c(h), net.one(h * 0.0).squeeze(-1)

    x = torch.randn(24, 6)
    parents = [fxmerge.capture(Layers(k, still), (x,), task=f"t{k}") for k in range(2)]
    merged = fxmerge.merge(parents, data=x, method="foldable", init="average", augment="none", batch_size=8, steps=2)
    assert merged.result["checks"]["all_gradients"] is True, "what serves it alone has nothing to learn"
    assert any("has one value for all samples: nothing can be learnt from it" in n for n in merged.result["notes"])
