"""Two byte-level decoders with tied embeddings, of Shakespeare and of WikiText-2, become one: perplexity a byte."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.merging import Parent, Score, choose_rates, merge_each
from benchmarks.models import GPT
from benchmarks.parents import averaged, parent
from benchmarks.table import Row, arguments, save, show
from benchmarks.tasks import bytes_of

LENGTH = 64
SHAPE: dict[str, Any] = {"width": 96, "heads": 4, "hidden": 288, "depth": 3, "positions": LENGTH}
SETTINGS: dict[str, Any] = {"steps": 3000, "batch": 32, "lr": 3e-3}
TEST_WINDOWS = 1000
MERGING: dict[str, Any] = {"batch_size": 16, "pool": 3200}
"""A window counts for 64 inputs of a classifier, so fewer make a batch."""


def main() -> None:
    given = arguments(__doc__ or "", "decoder", seeds=1)
    parents: list[Parent] = []
    train: dict[str, Tensor] = {}
    for number, name in enumerate(("shakespeare", "wikitext2")):
        train[name], valid = bytes_of(given.data, name)
        settings = {**SETTINGS, **SHAPE, "seed": 40 + number}
        model = parent(
            f"decoder-{name}", lambda: GPT(256, **SHAPE), partial(fit, text=train[name], **SETTINGS), settings
        )
        test = windows(valid, TEST_WINDOWS, torch.Generator().manual_seed(0))
        parents.append(Parent(name, model, perplexity(test), ("input_ids",)))
    rows: list[Row] = [_row("parents", parents, [p.model for p in parents])]
    # The tied embedding is each decoder's head and stays its own, as a classifier's head does.
    means = averaged([p.model for p in parents], lambda weight: weight.startswith(("head", "wte")))
    rows.append(_row("weight average (torch)", parents, means))
    for count in given.inputs or (100, 1000):
        print(f"{count} unlabeled windows of {LENGTH} bytes a task", flush=True)
        rates: dict[str, float] = {}
        for seed in range(given.seeds):
            generator = torch.Generator().manual_seed(100 + seed)
            data = {p.task: {"input_ids": windows(train[p.task], count, generator)[:, :-1]} for p in parents}
            rates = rates or choose_rates(parents, data, steps=given.steps, **MERGING)
            found = merge_each(parents, data, rates, seed=seed, steps=given.steps, **MERGING)
            rows += [{"setting": "decoders", "inputs": count, **_as_perplexity(row)} for row in found]
    show("decoders: perplexity a byte", rows, ("inputs", "method"), [*train, "perplexity", "seconds"])
    save(
        given.out, rows, what="decoders", steps=given.steps, chance=256, shape=SHAPE, training=SETTINGS, merging=MERGING
    )


def windows(text: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random stretches of `LENGTH` + 1 bytes, (count, LENGTH + 1)."""
    starts = torch.randint(0, len(text) - LENGTH - 1, (count,), generator=generator)
    return text[starts[:, None] + torch.arange(LENGTH + 1)]


def fit(model: nn.Module, text: Tensor, *, steps: int, batch: int, lr: float) -> None:
    """Train a decoder on random stretches of a text with AdamW on a one-cycle schedule."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        part = windows(text, batch, generator)
        loss = F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def perplexity(test: Tensor) -> Score:
    """How a decoder is scored on stretches of text: the exponential of its mean loss a byte."""

    @torch.no_grad()
    def score(logits: Any) -> float:
        losses = [
            F.cross_entropy(logits(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
            for part in test.split(200)
        ]
        return math.exp(sum(float(loss) for loss in losses) / test[:, 1:].numel())

    return score


def _row(method: str, parents: list[Parent], models: list[nn.Module]) -> Row:
    scores = {p.task: p.score(model) for p, model in zip(parents, models, strict=True)}
    print(f"{method}: " + ", ".join(f"{task} {score:.4g}" for task, score in scores.items()), flush=True)
    return _as_perplexity({"method": method, **scores, "mean": sum(scores.values()) / len(scores)})


def _as_perplexity(row: Row) -> Row:
    """The mean under a name that says that less is better."""
    return {("perplexity" if key == "mean" else key): value for key, value in row.items()}


if __name__ == "__main__":
    main()
