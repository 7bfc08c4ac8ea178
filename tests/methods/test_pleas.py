"""Every layer is the least squares solution that its paper says, on what comes in from the layers before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from benchmarks.models import MLP
from fxmerge.errors import OptionError
from fxmerge.methods.pleas import _Walk
from fxmerge.methods.sampled import Sampled
from passes.rules import BUILTIN
from passes.supernet.insert_merge import insert_merge


def mlp(seed: int) -> Any:
    torch.manual_seed(seed)
    return MLP(6, (9, 7), 3).eval()


def parents(x: Tensor, *models: nn.Module) -> list[fxmerge.Program]:
    return [fxmerge.capture(model, (x[:4],), task="abc"[k]) for k, model in enumerate(models)]


def test_layers_solve_their_normal_equations_through_the_merged_prefix() -> None:
    torch.manual_seed(3)
    x, nets = torch.randn(80, 6).double(), [mlp(k).double() for k in range(2)]
    programs = parents(x, *nets)
    net = insert_merge(programs, BUILTIN).start([1.0, 1.0], "fixed")
    walk = _Walk(net, [Sampled({net.program.inputs[0].name: x}, [])], ridge=0.0)
    walk.run()
    merged, own = x, [x, x]
    for i in range(2):
        own = [F.linear(h, n.layers[i].weight, n.layers[i].bias).detach() for n, h in zip(nets, own, strict=True)]
        rows = torch.cat([merged, torch.ones(80, 1).double()], 1)
        wanted = torch.linalg.pinv(rows, rtol=1e-9) @ (own[0] + own[1]) / 2
        torch.testing.assert_close(walk.weights[f"layers.{i}.weight"], wanted[:-1].T, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(walk.weights[f"layers.{i}.bias"], wanted[-1], atol=1e-6, rtol=1e-6)
        merged, own = torch.relu(rows @ wanted), [torch.relu(h) for h in own]
    (block,) = (block for _, block in net.maps() if block.kind == "unmerge" and block.size == 7)
    for k in range(2):
        wanted = (torch.linalg.pinv(merged, rtol=1e-9) @ own[k]).T
        torch.testing.assert_close(block.matrix(k).double(), wanted, atol=1e-5, rtol=1e-5)


class Exits(nn.Module):
    """An answer on the way: its features are read long before the last layer is solved."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6 if i == 0 else 8, 8) for i in range(4))
        self.exits = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers[:2]:
            x = layer(x).relu()
        first = self.exits[0](x)
        for layer in self.layers[2:]:
            x = layer(x).relu()
        return first, self.exits[1](x)


def test_features_of_an_early_exit_are_there_when_its_head_is_solved() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 6)
    merged = fxmerge.merge(parents(x, *[Exits().eval()] * 2), data=x, method="pleas{ridge=0}")
    assert all(task["feature_r2"] > 0.999 for task in merged.result["tasks"])


def test_a_parent_in_another_order_is_given_back_and_partial_matches_keep_more() -> None:
    x = torch.randn(300, 6)
    net, other = mlp(0), mlp(0)
    order = torch.randperm(9)
    with torch.no_grad():
        for tensor in (other.layers[0].weight, other.layers[0].bias):
            tensor.copy_(tensor[order])
        other.layers[1].weight.copy_(other.layers[1].weight[:, order])
    same = fxmerge.merge(parents(x, net, other), data=x, method="pleas{ridge=0}")
    for task in "ab":
        torch.testing.assert_close(same(x)[task], net(x), atol=1e-4, rtol=1e-4)
    unlike = parents(x, mlp(1), mlp(2))
    tried: list[tuple[str, dict[str, Any]]] = [("permute", {}), ("pleas", {}), ("pleas", {"width_scale": 1.5})]
    kept = [fxmerge.merge(unlike, data=x, method=method, **size).result["tasks"] for method, size in tried]
    scores = [sum(task["feature_r2"] for task in tasks) for tasks in kept]
    assert scores[0] < scores[1] < scores[2]


def test_what_it_gives_is_a_start_of_folded_weights_only() -> None:
    x = torch.randn(40, 6)
    programs = parents(x, mlp(1), mlp(2))
    trained = fxmerge.merge(programs, data=x, method="distill", init="pleas", steps=3)
    assert trained.result["init"] == "pleas"
    with pytest.raises(OptionError, match="maps cannot hold what pleas gives"):
        fxmerge.merge(programs, data=x, method="foldable", init="pleas", steps=3)
    with pytest.raises(OptionError, match="at least 0"):
        fxmerge.merge(programs, data=x, method="pleas{ridge=-1}")
