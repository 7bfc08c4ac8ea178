"""The main job on real data that ships with a dependency: two digit classifiers of different widths become one."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from fxmerge.from_onnx.runtime import OnnxModel
from fxmerge.ir.program import Program
from fxmerge.output.onnx import export_onnx

UNLABELED = 300
"""Inputs a task that merging may see, at most. Their labels are dropped before they reach it."""


class ViT(nn.Module):
    """Pre-norm vision transformer with a class token: images (B, channels, image, image) to logits (B, classes).

    `fused` computes query, key and value with one linear map instead of three.
    """

    def __init__(
        self,
        *,
        image: int,
        patch: int,
        width: int,
        heads: int,
        hidden: int,
        depth: int,
        classes: int,
        channels: int = 1,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, fused) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around a skip connection."""

    def __init__(self, width: int, heads: int, hidden: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        seen = self.norm1(x)
        parts = self.qkv(seen).chunk(3, dim=2) if self.fused else (self.query(seen), self.key(seen), self.value(seen))
        q, k, v = (part.reshape(batch, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.output(mixed)
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


@cache
def digits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits in random order: images (N, 1, 8, 8) in 0..1 and labels (N,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    images = torch.tensor(data.images[order] / 16, dtype=torch.float32)[:, None]
    return images, torch.tensor(data.target[order])


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) moved by up to `most` pixels in each direction; what enters is 0."""
    padded = F.pad(x, (most,) * 4)
    rows, columns = (torch.randint(0, 2 * most + 1, (len(x), 1), generator=generator) for _ in range(2))
    rows = rows + torch.arange(x.shape[2])
    columns = columns + torch.arange(x.shape[3])
    return padded[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(
    model: nn.Module,
    inputs: Sequence[Tensor],
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    seed: int,
    batch: int = 64,
    weight_decay: float = 0.05,
    augment: Callable[[Sequence[Tensor], torch.Generator], Sequence[Tensor]] | None = None,
) -> None:
    """Train a classifier on its own labels with AdamW on a one-cycle schedule."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(labels) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(labels), generator=generator), batch)[: len(labels) // batch]:
            part = [x[rows] for x in inputs]
            if augment is not None:
                part = list(augment(part, generator))
            loss = F.cross_entropy(model(*part), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(logits: Callable[..., Tensor], inputs: Sequence[Tensor], labels: Tensor) -> float:
    """Share of rows whose largest logit is the label's."""
    hits = 0
    for rows in torch.split(torch.arange(len(labels)), 500):
        hits += int((logits(*(x[rows] for x in inputs)).argmax(-1) == labels[rows]).sum())
    return hits / len(labels)


@dataclass(frozen=True)
class Half:
    """One task of the demo: some digits, and the shape of the classifier trained on them."""

    task: str
    classes: range
    shape: Mapping[str, Any]
    seed: int


NARROW = Half("digits04", range(0, 5), {"width": 32, "heads": 4, "hidden": 64}, seed=1)
WIDE = Half("digits59", range(5, 10), {"width": 48, "heads": 6, "hidden": 128}, seed=2)
TRAIN_SHARE = 0.65
EPOCHS = 60

METHODS: Mapping[str, Mapping[str, Any]] = {
    "average": {"method": "average"},
    "distill": {"method": "distill", "lr": 1.2e-2},
    "fxmerge": {},
}
"""What is compared: distillation at its best rate in `benchmarks/results/digits.json`, and the default."""


@dataclass(frozen=True)
class Part:
    """A half with its parent, unlabeled inputs for merging, and test images with labels that only scoring reads."""

    half: Half
    model: ViT
    unlabeled: Tensor
    test: Tensor
    test_labels: Tensor


def split_of(half: Half) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels of one half; its classes are numbered from 0."""
    x, y = digits()
    y = y - half.classes.start
    own = (y >= 0) & (y < len(half.classes))
    known = torch.arange(len(y)) < int(TRAIN_SHARE * len(y))
    return x[own & known], y[own & known], x[own & ~known], y[own & ~known]


def build(half: Half) -> ViT:
    torch.manual_seed(half.seed)
    return ViT(image=8, patch=2, depth=3, classes=len(half.classes), **half.shape)


def fit(model: nn.Module, half: Half) -> None:
    """Train the classifier of one half of the digits; about ten seconds."""
    x, y, _, _ = split_of(half)

    def moved(inputs: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
        return [shifted(inputs[0], 1, generator)]

    train(model, [x], y, epochs=EPOCHS, lr=3e-3, seed=half.seed, batch=32, augment=moved)


def part_of(half: Half) -> Part:
    """A half with its trained parent."""
    model = build(half)
    fit(model, half)
    seen, _, test, labels = split_of(half)
    return Part(half, model, seen[:UNLABELED], test, labels)


def run(*, seed: int = 0, steps: int = 600, out: Path | None = None, console: Console | None = None) -> dict[str, Any]:
    """Train, merge by each method, compare, print a table; the same figures as a dict.

    `out` keeps the merged ONNX model. Takes about two minutes on two cores.
    """
    console = console or Console()
    parts = []
    for half in (NARROW, WIDE):
        with console.status(f"training a vision transformer of width {half.shape['width']} for {half.task}"):
            parts.append(part_of(half))
    programs = [fxmerge.capture(p.model, (p.unlabeled,), task=p.half.task) for p in parts]
    data = {p.half.task: p.unlabeled for p in parts}
    rows = [{"model": "parents", **_scores(parts, [p.model for p in parts]), "parameters": sum(map(_count, parts))}]
    for name, options in METHODS.items():
        with console.status(f"merging by {name}"):
            begin = time.perf_counter()
            trained: dict[str, Any] = {} if name == "average" else {"steps": steps}
            merged = fxmerge.merge(programs, data=data, like=1, seed=seed, **trained, **options)
            seconds = time.perf_counter() - begin
        answers = [partial(_answer, merged, p.half.task) for p in parts]
        row = {"model": name, **_scores(parts, answers), "parameters": merged.result["merged"]["parameters"]}
        rows.append({**row, "seconds": seconds, "checks": merged.result["checks"]})
    with console.status("timing in ONNX Runtime"), tempfile.TemporaryDirectory() as folder:
        target = out or Path(folder) / "merged.onnx"
        gap = merged.export_onnx(target)
        times = _onnx_times(programs, target, Path(folder), parts[0].test[:32])
    rows[0]["onnx_ms"], rows[-1]["onnx_ms"] = times
    _print(console, rows, [p.half.task for p in parts], gap)
    return {"rows": rows, "onnx_max_abs": gap, "unlabeled": {p.half.task: len(p.unlabeled) for p in parts}}


def _answer(merged: Any, task: str, x: Tensor) -> Tensor:
    logits: Tensor = merged(x)[task]
    return logits


def _count(part: Part) -> int:
    return sum(p.numel() for p in part.model.parameters())


def _scores(parts: Sequence[Part], models: Sequence[Callable[..., Tensor]]) -> dict[str, float]:
    scores = {p.half.task: accuracy(model, [p.test], p.test_labels) for p, model in zip(parts, models, strict=True)}
    return {**scores, "mean": statistics.fmean(scores.values())}


def _onnx_times(programs: Sequence[Program], merged: Path, folder: Path, x: Tensor) -> tuple[float, float]:
    """Median milliseconds of a batch through all parents, and through the merged model.

    They run in turn in this one process, so that both meet the same disturbances.
    """
    parents = []
    for program in programs:
        path = folder / f"{program.task}.onnx"
        export_onnx(program, path)
        parents.append(OnnxModel(path))
    groups = [parents, [OnnxModel(merged)]]
    spent: list[list[float]] = [[], []]
    for _ in range(200):
        for group, times in zip(groups, spent, strict=True):
            begin = time.perf_counter()
            for model in group:
                model.run({"x": x})
            times.append(time.perf_counter() - begin)
    both, one = (1000 * statistics.median(times[20:]) for times in spent)
    return both, one


def _print(console: Console, rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], gap: float) -> None:
    table = Table(title="Two digit classifiers of different widths as one: accuracy on held-out images")
    for heading in ("model", *tasks, "mean", "parameters", "merge s", "ONNX ms"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        cells = [f"{row[name]:.3f}" for name in (*tasks, "mean")]
        optional = [
            f"{row[name]:.{digits}f}" if name in row else "" for name, digits in (("seconds", 1), ("onnx_ms", 2))
        ]
        table.add_row(str(row["model"]), *cells, f"{row['parameters']:,}", *optional)
    console.print(table)
    console.print(f"At most {UNLABELED} unlabeled images a task. ONNX Runtime is within {gap:.0e} of the folded model.")
    console.print("ONNX ms: a batch of 32 through both parents, and through the one merged model, measured in turn.")
