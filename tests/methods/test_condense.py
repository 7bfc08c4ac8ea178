"""The closed form: exact where there is nothing to lose, far from the average elsewhere, and a start for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from benchmarks.models import GPT, MLP, ViT
from fxmerge.errors import OptionError
from fxmerge.ir.program import Program

FAMILIES: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (MLP(8, (12, 10), 4), torch.randn(96, 8)),
    "vit": lambda: (
        ViT(image=8, patch=4, width=12, heads=2, hidden=16, depth=2, classes=4), torch.randn(96, 1, 8, 8),
    ),
    "vit-fused": lambda: (
        ViT(image=8, patch=4, width=12, heads=2, hidden=16, depth=1, classes=4, fused=True), torch.randn(96, 1, 8, 8),
    ),
    "gpt": lambda: (GPT(20, width=12, heads=2, hidden=16, depth=2, positions=16), torch.randint(0, 20, (96, 9))),
}  # fmt: skip


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


@pytest.mark.parametrize("family", ["mlp", "gpt"])
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
