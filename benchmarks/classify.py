"""The course of a classification benchmark: train or load parents, merge by each method, score, write."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from benchmarks.merging import Parent, choose_rates, merge_each
from benchmarks.parents import averaged, parent
from benchmarks.table import Row, save, show
from benchmarks.tasks import Task
from fxmerge.demo import accuracy


def run(
    setting: str,
    given: argparse.Namespace,
    tasks: Sequence[Task],
    *,
    build: Callable[[Task], nn.Module],
    fit: Callable[[Task, nn.Module], None],
    settings: Sequence[Mapping[str, Any]],
    heads: Callable[[str], bool] | None,
    sizes: Sequence[int],
    **options: Any,
) -> list[Row]:
    """Merge the tasks' parents for each number of unlabeled inputs and each seed; print a table, write JSON.

    `heads` tells a parent's own head from the weights that a plain average shares; None where shapes differ.
    `options` go to every merge.
    """
    parents = []
    for task, own in zip(tasks, settings, strict=True):
        name = f"{given.out.stem}-{task.name.replace(' ', '')}"
        model = parent(name, partial(build, task), partial(fit, task), own)
        score = partial(accuracy, inputs=list(task.test.values()), labels=task.test_labels)
        parents.append(Parent(task.name, model, score, tuple(task.test)))
    facts = {
        "what": setting,
        "steps": given.steps,
        "chance": sum(1 / task.classes for task in tasks) / len(tasks),
        "test_inputs": {task.name: len(task.test_labels) for task in tasks},
        "parents": list(settings),
        "merging": options,
    }
    rows: list[Row] = [_row("parents", parents, [p.model for p in parents])]
    if heads is not None:
        rows.append(_row("weight average (torch)", parents, averaged([p.model for p in parents], heads)))
    for count in given.inputs or sizes:
        print(f"{setting}: {count} unlabeled inputs a task", flush=True)
        rates: dict[str, float] = {}
        for seed in range(given.seeds):
            data = {task.name: task.unlabeled(count, 100 + seed) for task in tasks}
            rates = rates or choose_rates(parents, data, steps=given.steps, **options)
            found = merge_each(parents, data, rates, seed=seed, steps=given.steps, **options)
            rows += [{"setting": setting, "inputs": count, **row} for row in found]
        save(given.out, rows, **facts)
    show(f"{setting}: test accuracy", rows, ("inputs", "method"), [*(task.name for task in tasks), "mean", "seconds"])
    return rows


def _row(method: str, parents: Sequence[Parent], models: Sequence[nn.Module]) -> Row:
    scores = {p.task: p.score(model) for p, model in zip(parents, models, strict=True)}
    print(f"{method}: " + ", ".join(f"{task} {score:.4f}" for task, score in scores.items()), flush=True)
    return {"method": method, **scores, "mean": sum(scores.values()) / len(scores)}
