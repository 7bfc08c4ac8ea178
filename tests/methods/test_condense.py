"""The closed form: exact where there is nothing to lose, far from the average elsewhere, and a start for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from benchmarks.models import GPT, MLP, ViT
from fxmerge.errors import OptionError
from fxmerge.ir.program import Program


class Residual(nn.Module):
    """A small ResNet: a block around an identity, then one around a strided projection."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 8, 3, 2), (8, 8, 3, 1), (8, 8, 3, 1), (8, 12, 3, 2), (12, 12, 3, 1), (8, 12, 1, 2))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        stem, a, b, c, d, short = (nn.Sequential(*pair) for pair in zip(self.convs, self.norms, strict=True))
        x = F.relu(stem(x))
        x = F.relu(b(F.relu(a(x))) + x)
        x = F.relu(d(F.relu(c(x))) + short(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


FAMILIES: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (MLP(8, (12, 10), 4), torch.randn(96, 8)),
    "vit": lambda: (
        ViT(image=8, patch=4, width=12, heads=2, hidden=16, depth=2, classes=4), torch.randn(96, 1, 8, 8),
    ),
    "vit-fused": lambda: (
        ViT(image=8, patch=4, width=12, heads=2, hidden=16, depth=1, classes=4, fused=True), torch.randn(96, 1, 8, 8),
    ),
    "gpt": lambda: (GPT(20, width=12, heads=2, hidden=16, depth=2, positions=16), torch.randint(0, 20, (96, 9))),
    "resnet": lambda: (settled(Residual(), torch.randn(96, 1, 12, 12)), torch.randn(96, 1, 12, 12)),
}  # fmt: skip


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """A model whose running statistics are those of a batch."""
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def parent(family: str, seed: int, task: str) -> tuple[Program, Tensor]:
    torch.manual_seed(seed)
    model, x = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std().nan_to_num(1.0))
    return fxmerge.capture(model.eval(), (x[:4],), task=task), x


def merged(parents: list[tuple[Program, Tensor]], method: str) -> Any:
    data = {program.task: x for program, x in parents}
    return fxmerge.merge([program for program, _ in parents], data=data, method=method, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_parent_merged_with_itself_is_itself(family: str) -> None:
    first, x = parent(family, 3, "a")
    both = merged([(first, x), (dataclasses.replace(first, task="b"), x)], "condense{ridge=1e-8,rows=200}")
    given = first.run({first.inputs[0].name: x[:32]})["logits"]
    for found in both(x[:32]).values():
        assert float((found - given).abs().max() / given.std()) < 2e-2


@pytest.mark.parametrize("family", ["mlp", "gpt", "resnet"])
def test_it_is_far_better_than_the_average(family: str) -> None:
    parents = [parent(family, seed, task) for seed, task in ((3, "a"), (4, "b"))]
    scores = {
        method: [task["feature_r2"] for task in merged(parents, method).result["tasks"]]
        for method in ("average", "condense{rows=200}")
    }
    assert min(scores["condense{rows=200}"]) > max(scores["average"]) + 0.1


def test_training_starts_from_it() -> None:
    parents = [parent("vit", seed, task) for seed, task in ((3, "a"), (4, "b"))]
    plain = merged(parents, "condense{rows=200}").result["tasks"]
    found = merged(parents, 'distill{init=condense,steps=20,lr=0.001,augment="none"}').result
    assert found["init"] == "condense"
    assert all(a["feature_r2"] > b["feature_r2"] - 0.05 for a, b in zip(found["tasks"], plain, strict=True))


def test_what_it_cannot_do_is_said() -> None:
    parents = [parent("mlp", seed, task) for seed, task in ((3, "a"), (4, "b"))]
    with pytest.raises(OptionError, match="maps of rank 2 cannot hold the closed form"):
        merged(parents, "foldable{init=condense,rank=2,steps=5}")
    with pytest.raises(OptionError, match="3 numbers to balance 2 parents"):
        merged(parents, "condense{balance=[1.0 1.0 2.0]}")
