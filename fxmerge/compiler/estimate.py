"""How long a merge will take, and in how much memory: one step of its training is made, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fxmerge.compiler.figures import peak_memory
from fxmerge.ir.probe import probe
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.starts import frozen
from fxmerge.methods.student import student_of, teachers
from fxmerge.methods.wanted import wanted
from fxmerge.result import Estimate
from fxmerge.samples.pool import ROWS
from fxmerge.samples.rows import Samples

TRIALS = 0.7
"""Steps of trials, as a share of the steps of the run, where a method tries starts, optimizers and rates."""
MEASURED = 2
"""So many steps are made; the fastest counts: the first also sets things up."""


def estimate(job: Job, outcome: Outcome, net: SuperNet, probes: Samples) -> Estimate | None:
    """By one step forward and back on `probes`, repeated to a batch, and the parents run on it once.

    None for a method that does not train. What the step changes is a copy.
    """
    if not outcome.trainable:
        return None
    settings, budget = job.settings, getattr(job.options, "budget", None)
    batch = probe(net.program, probes, settings.batch_size)
    inputs = [batch[port.name] for port in net.program.inputs]
    student = student_of(frozen(outcome.program), net, job).module
    shown = teachers(net, [each.feature for each in wanted(net, job.options.inner, job.options.loss)])

    def step() -> None:
        reached = [each for each in student(*inputs) if each.requires_grad]
        torch.autograd.backward([each.square().mean() for each in reached])

    def label() -> None:
        with torch.no_grad():
            shown(*inputs)

    trials = TRIALS if job.options.optimizer == "auto" else 0.0
    steps = settings.steps * (1 + trials)
    rows = job.options.pool * len(net.parents) if job.options.pool else ROWS
    labelled = min(steps, rows / settings.batch_size)
    seconds = steps * _fastest(step) + labelled * _fastest(label) if budget is None else budget
    return Estimate(round(seconds, 1), peak_memory())


def _fastest(work: Callable[[], None]) -> float:
    spent = []
    for _ in range(MEASURED):
        begun = time.perf_counter()
        work()
        spent.append(time.perf_counter() - begun)
    return min(spent)
