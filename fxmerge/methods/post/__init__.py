"""Steps behind any method: each changes weights of the merged model, says what it did, and folds like they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from fxmerge.coupling import RuleSet
from fxmerge.errors import DataError
from fxmerge.ir.merge import merge
from fxmerge.messages import listed
from fxmerge.methods.base import Job, Outcome, Stage
from fxmerge.methods.post.batchnorm import BatchNorm
from fxmerge.methods.post.repair import Repair
from fxmerge.methods.post.step import Merge, Step
from fxmerge.methods.post.temperature import Temperature

STEPS: tuple[Step, ...] = (Repair(), BatchNorm(), Temperature())
NAMED = 6
"""So many things are named in one note."""
LESS = 0.01
"""A smaller loss of R² is none."""


def post(job: Job, outcome: Outcome, names: Sequence[str], rules: RuleSet) -> tuple[Outcome, list[dict[str, Any]]]:
    """The outcome after the steps of these names, in their order, and what each of them did.

    Raises `DataError` without samples: all of them look at what the merged model does with its inputs.
    """
    if job.pools is None:
        raise DataError(
            f"--post {','.join(names)} looks at samples, and there are none", "give --data TASK=PATH for every task"
        )
    steps = {step.name: step for step in STEPS}
    program = job.fold_trunk(outcome.program)
    trained = outcome.log is not None and not any(node.target is merge for node in outcome.program.graph.nodes)
    stages = [*outcome.stages[:-1], Stage(outcome.stages[-1].name if outcome.stages else outcome.init, program)]
    did = []
    for name in names:
        done = steps[name](Merge(job, program, rules, trained))
        program = done.program
        stages.append(Stage(name, program))
        did.append({"name": name, "changed": dict(done.changed), "left": dict(done.left)})
    return replace(outcome, program=program, stages=tuple(stages)), did


def told(did: dict[str, Any]) -> str:
    """What a step did, in a line."""
    changed, left = did["changed"], did["left"]
    why: dict[str, list[str]] = {}
    for name, reason in left.items():
        why.setdefault(reason, []).append(name)
    parts = [_changed(changed)] if changed else []
    parts += [f"left as it was: {listed(names, NAMED)} ({reason})" for reason, names in why.items()]
    return f"{did['name']}: " + ("; ".join(parts) or "there was nothing to do")


def fell(tasks: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[str]:
    """A note for every step behind which all tasks are kept worse; `tasks` is what every stage reached, by task."""
    notes = []
    for stages in (list(task) for task in tasks[:1]):
        for before, name in pairwise(stages):
            if name in names and all(task[name] < task[before] - LESS for task in tasks):
                kept = ", ".join(f"{task[before]:.3f} to {task[name]:.3f}" for task in tasks)
                notes.append(f"behind {name} every task is kept worse on held-back samples (R² {kept}): leave it out")
    return notes


def _changed(changed: dict[str, Any]) -> str:
    if all(isinstance(value, dict) for value in changed.values()):
        return ", ".join(f"{name} {_facts(value)}" for name, value in list(changed.items())[:NAMED])
    return f"{len(changed)} tensors changed: {listed(changed, NAMED)}"


def _facts(value: dict[str, Any]) -> str:
    return " ".join(f"{key} {number:.4g}" for key, number in value.items())
