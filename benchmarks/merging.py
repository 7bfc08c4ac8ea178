"""Shared by the benchmarks: merge parents by each method, with rates searched fairly, and score the result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxmerge
from benchmarks.table import Row

RATES = (3e-4, 1e-3, 3e-3, 6e-3, 1.2e-2)
"""Peak learning rates both trained methods choose from, for every setting; the search goes on at the upper end."""
HIGHEST = 0.1
"""No rate above is tried."""

TRAINED = ("distill", "foldable")

OF_TRAINING = ("batch_size", "pool")
"""Options that the other methods do not have."""

Score = Callable[[Callable[..., Tensor]], float]
"""From a function (inputs to logits) to the figure of its task."""


@dataclass(frozen=True)
class Parent:
    """A trained model, its task's name, and how its task is scored on test inputs that nothing else sees."""

    task: str
    model: nn.Module
    score: Score
    inputs: tuple[str, ...] = ("x",)


def merge_each(
    parents: Sequence[Parent],
    data: Mapping[str, Mapping[str, Tensor]],
    rates: Mapping[str, float],
    *,
    seed: int,
    steps: int,
    methods: Sequence[str] = ("average", *TRAINED),
    **options: Any,
) -> list[Row]:
    """One row a method: score of each task, their mean, seconds, the checks (that of ONNX Runtime for seed 0 only)."""
    programs = [_program(p, data) for p in parents]
    rows = []
    for method in methods:
        trained = {"steps": steps, "lr": rates[method]} if method in TRAINED else {}
        how = {name: value for name, value in options.items() if method in TRAINED or name not in OF_TRAINING}
        begin, spent = time.perf_counter(), time.process_time()
        merged = fxmerge.merge(programs, data=dict(data), method=method, seed=seed, **trained, **how)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - spent
        scores = {p.task: p.score(_answer(merged, p.task)) for p in parents}
        row: Row = {"method": method, "seed": seed, **scores, "mean": sum(scores.values()) / len(scores)}
        row |= {"lr": rates.get(method), "seconds": seconds, "cpu_seconds": cpu}
        row |= {"checks": merged.result["checks"], "parameters": merged.result["merged"]["parameters"]}
        if seed == 0:
            row["checks"] = {**merged.result["checks"], "onnx_max_abs": _onnx_gap(merged)}
        rows.append(row)
        print(f"  {method:9} seed {seed}: " + ", ".join(f"{t} {s:.4g}" for t, s in scores.items()), flush=True)
    return rows


def choose_rates(
    parents: Sequence[Parent], data: Mapping[str, Mapping[str, Tensor]], *, steps: int, seed: int = 0, **options: Any
) -> dict[str, float]:
    """The rate at which each trained method best reproduces the parents on a held-back quarter of inputs.

    The same search for each; labels and test inputs take no part in it.
    """
    kept, held = {}, {}
    for task, inputs in data.items():
        count = len(next(iter(inputs.values())))
        cut = count - max(2, count // 4)
        kept[task] = {k: x[:cut] for k, x in inputs.items()}
        held[task] = {k: x[cut:] for k, x in inputs.items()}
    programs = [_program(p, data) for p in parents]
    best: dict[str, float] = {}
    for method in TRAINED:
        errors: dict[float, float] = {}
        todo = list(RATES)
        while todo:
            rate = todo.pop(0)
            merged = fxmerge.merge(programs, data=kept, method=method, seed=seed, steps=steps, lr=rate, **options)
            errors[rate] = sum(_distance(p, merged, held[p.task]) for p in parents) / len(parents)
            best[method] = min(errors, key=lambda rate: errors[rate])
            if not todo and best[method] == rate and 2 * rate <= HIGHEST:
                todo.append(2 * rate)
        found = ", ".join(f"{rate:g}: {error:.3f}" for rate, error in errors.items())
        print(f"  held-back error of {method} at rate {found}", flush=True)
    return best


@torch.no_grad()
def _distance(parent: Parent, merged: Any, inputs: Mapping[str, Tensor]) -> float:
    """Mean squared difference of the logits, as a share of the parent's own variance."""
    values = [inputs[name] for name in parent.inputs]
    wanted = parent.model(*values)
    got = _answer(merged, parent.task)(*values)
    spread = (wanted - wanted.flatten(0, -2).mean(0)).square().mean()
    return float((got - wanted).square().mean() / spread)


def _onnx_gap(merged: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        gap: float = merged.export_onnx(Path(folder) / "merged.onnx")
    return gap


def _answer(merged: Any, task: str) -> Callable[..., Tensor]:
    return lambda *inputs: merged(*inputs)[task]


def _program(parent: Parent, data: Mapping[str, Mapping[str, Tensor]]) -> Any:
    sample = data[parent.task]
    return fxmerge.capture(parent.model, tuple(sample[name][:4] for name in parent.inputs), task=parent.task)
