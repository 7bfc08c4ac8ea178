"""What a method is given, and what it makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fxmerge.compiler.build import Build
from fxmerge.compiler.figures import class_axis, device_of
from fxmerge.errors import FxmergeError, VerificationError
from fxmerge.ir.supernet import SuperNet
from fxmerge.messages import listed
from fxmerge.methods import Job, Outcome
from fxmerge.methods.about import about_of
from fxmerge.methods.average import AVERAGE
from fxmerge.methods.one_base import Nearness
from fxmerge.methods.post import post
from fxmerge.methods.trunks import Weights
from fxmerge.pipeline import Train
from fxmerge.samples.pool import Pools, Recipe
from fxmerge.samples.rows import Samples
from fxmerge.training.answers import usual_batch
from fxmerge.training.memory import budget
from fxmerge.training.optimizers import OPTIMIZERS
from fxmerge.training.settings import Settings, silent


@dataclass(frozen=True)
class OneBase:
    """Whether the parents come from one base, and its trunk where it was given."""

    near: Nearness | None = None
    weights: Callable[[], Weights] | None = None


def job_of(
    build: Build,
    net: SuperNet,
    samples: list[Samples] | None = None,
    held: list[Samples] | None = None,
    *,
    base: OneBase = OneBase(),
    tell: Any = None,
) -> Job:
    """All that a method needs: the SuperNet, rows to train on, and rows that are held back where somebody watches."""
    config, trained = build.config, build.trained
    batch = trained.batch_size or usual_batch(net)
    pools = None
    if samples is not None and _reads(build):
        pools = Pools(net, samples, Recipe(trained.augment, trained.pool, batch, config.seed, trained.steps), tell)
    return Job(
        supernet=net,
        pool=None if pools is None else pools.pool(pools.kinds[0]),
        held=Pools(net, held, Recipe("none", batch=batch)).pool("none") if held else None,
        pools=pools,
        settings=Settings(
            steps=trained.steps,
            batch_size=batch,
            lr=trained.lr or Settings.lr,
            weight_decay=trained.weight_decay,
            optimizer=OPTIMIZERS.get(trained.optimizer, Settings.optimizer),
            seed=config.seed,
            device=device_of(config.device),
            dtype=getattr(torch, trained.dtype),
            memory=budget(config.memory),
        ),
        options=trained,
        hoist=partial(build.run, "train"),
        fold_trunk=build.fold_trunk,
        progress=tell or silent,
        state=Path(config.resume) / "training.pt" if config.resume else None,
        classes=lambda k, name, value: class_axis(build.given[k], name, value, config.metric),
        base=base.weights,
        near=base.near,
    )


def _reads(build: Build) -> bool:
    """Whether anything reads samples: the method, one that it may choose, or a step behind it."""
    about = about_of(build.method)
    return build.method.needs_data or bool(build.config.post) or (about is not None and about.tuned)


def outcome_of(build: Build, job: Job) -> Outcome:
    """What the method makes; an extension's method that fails is named with its owner."""
    start, record = time.perf_counter(), build.verifier.record
    try:
        outcome = build.method(job) if job.supernet.shared else AVERAGE(job)
    except FxmergeError:
        raise
    except Exception as error:
        build.known.blame("method", build.method.name, error)
        raise
    record.steps.clear()
    for each in build.pipeline.stage("train"):
        if isinstance(each, Train):
            record(each, job.supernet.program, outcome.program, time.perf_counter() - start)
    build.notes += job.notes
    if outcome.unreached:
        raise VerificationError(
            f"no gradient reached {listed(outcome.unreached, 3)}",
            "start from --init average, or train for more steps; if it stays, please report it",
        )
    return outcome


def plan_of(build: Build, job: Job) -> Outcome:
    """What the method makes before any training; what maps will do to spaces is not known then."""
    method = build.method
    if hasattr(method, "plan"):
        plan: Outcome = method.plan(job)
        return replace(plan, groups={}, began=None, behind=False)
    if not method.needs_data:
        return outcome_of(build, job)
    build.notes.append(f"how much {method.name} trains is not known before it runs")
    return Outcome(job.supernet.start([1.0] * len(job.supernet.parents)).program, build.trained.init, groups={})


def behind(build: Build, job: Job, outcome: Outcome, probes: list[Samples]) -> tuple[Outcome, list[dict[str, Any]]]:
    """The outcome behind the steps of `--post`, and what they did; the fold in front of them is held to the merge."""
    found, did = post(job, outcome, build.config.post, build.known.rules)
    before, after = (
        each.only(job.supernet.output_names) for each in (outcome.program, job.fold_trunk(outcome.program))
    )
    build.verifier.fold(before, after, probes)
    build.verifier.record.steps.clear()
    return found, did
