"""Same-task pairs: two networks of one kind, trained for one task from two seeds, and the loss half way between them.

The loss half way between aligned parents, less the mean of the parents' own, is the barrier (Entezari et al. 2022). A
merged model keeps a head for each task; the mean of their answers is what the mean of two linear heads answers, so it
stands for the whole network half way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.families import BRIEF, FAMILIES, Family, Net, gpt, vit
from benchmarks.family_tasks import Study
from benchmarks.quality_case import Case
from benchmarks.quality_cells import Ledger, code
from benchmarks.table import Row
from fxmerge.methods import Method

INPUTS = 100
"""Unlabeled inputs that are merged with; of texts windows of 64 bytes."""
LOOKED_AT = 2000
"""Labelled inputs whose loss is measured; of texts a tenth."""
MEASURED = ("average", "permute", "rotate", "transport", "align")
"""The methods whose barriers are measured."""


def pair(family: Family, net: Net) -> Family:
    """The first task of a family twice, and two nets that differ in their seed."""

    def studies(folder: Path) -> list[Study]:
        one = family.studies(folder)[0]
        return [one, replace(one, name=f"{one.name}-again")]

    both = (net, replace(net, seed=net.seed + 1))
    return replace(family, name=f"pair-{net.label}", studies=studies, nets=both, joint=net, options={}, training={})


SMALL_VIT = {"image": 28, "patch": 7, "width": 48, "heads": 4, "hidden": 96, "depth": 3}
SMALL_GPT = {"width": 48, "heads": 4, "hidden": 144, "depth": 2, "positions": 64}
VIT_PAIR = pair(FAMILIES["vits"], Net("vit-digits", vit, SMALL_VIT, {**BRIEF, "epochs": 3}, seed=110))
GPT_PAIR = pair(
    FAMILIES["gpt"], Net("gpt-shakespeare", gpt, SMALL_GPT, {"steps": 700, "lr": 3e-3, "batch": 32}, seed=120)
)
PAIRS: Mapping[str, Family] = {family.name: family for family in (VIT_PAIR, GPT_PAIR)}
PAPER: Mapping[str, Mapping[str, float]] = {
    VIT_PAIR.name: {"average": 1.69, "permute": 1.27, "rotate": 0.36, "align": 0.0},
    GPT_PAIR.name: {"average": 2.02, "permute": 1.43, "rotate": 0.34, "align": 0.02},
}
"""Barriers of the like in the paper on generalised linear mode connectivity (NeurIPS 2025), of far larger networks: ViT
on CIFAR-10 and GPT-2 on Shakespeare; its weight matching beside `rotate`, its learned matching beside `align`."""


@dataclass(frozen=True)
class Ends:
    """Labelled inputs, and the mean loss of both parents on them."""

    inputs: tuple[Tensor, ...]
    labels: Tensor
    mean: float

    @classmethod
    @torch.no_grad()
    def of(cls, case: Case) -> Ends:
        texts = case.family.figure == "perplexity"
        given, labels = case.studies[0].draw(LOOKED_AT // 10 if texts else LOOKED_AT, torch.Generator().manual_seed(7))
        losses = [float(_loss(model(*given), labels)) for model in case.models]
        return cls(tuple(given), labels, sum(losses) / len(losses))

    @torch.no_grad()
    def barrier(self, merged: Any) -> float:
        """The loss half way, less the mean of the ends."""
        answers = torch.stack(list(merged(*self.inputs).values()))
        return float(_loss(answers.mean(0), self.labels)) - self.mean


def _loss(given: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(given.flatten(0, -2), labels.flatten())


def measure(name: str, methods: Sequence[Method], folder: Path, ledger: Ledger, seeds: int, again: bool) -> None:
    """The barrier of a pair by every method that has one, kept in the file."""
    case = Case.of(PAIRS[name], folder)
    ends = Ends.of(case)
    for method in (each for each in methods if each.name in MEASURED):
        for seed in range(seeds):
            keys = {"setting": name, "method": method.name, "inputs": INPUTS, "seed": seed}
            if ledger.find(case.settings, **keys) and not again:
                continue
            begun = time.process_time()
            merged, _ = case.merge(case.data(INPUTS, seed), seed, {"method": method.name})
            row = {**keys, "barrier": ends.barrier(merged), "loss_of_ends": ends.mean, "settings": case.settings}
            ledger.keep({**row, "cpu_seconds": time.process_time() - begun, "code": code()})
            print(f"  {name} {method.name} seed {seed}: barrier {row['barrier']:.3f}", flush=True)


def show_barriers(rows: Sequence[Row]) -> None:
    """Print the barriers, the paper's beside them."""
    table = Table(title="Loss half way between two networks of one task, less the mean of their own")
    table.add_column("pair")
    table.add_column("method")
    for heading in ("barrier", "the paper's", "CPU s", "seeds"):
        table.add_column(heading, justify="right")
    for name in PAIRS:
        for method in MEASURED:
            own = [row for row in rows if row["setting"] == name and row["method"] == method]
            if own:
                barrier, spent = (sum(row[key] for row in own) / len(own) for key in ("barrier", "cpu_seconds"))
                paper = PAPER[name].get(method)
                cells = f"{barrier:.3f}", "" if paper is None else f"{paper:.2f}", f"{spent:.0f}", str(len(own))
                table.add_row(name, method, *cells)
    Console().print(table)
