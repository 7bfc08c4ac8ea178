"""A temperature for every output of class scores, folded into its head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import Feature
from fxmerge.methods.base import Job
from fxmerge.methods.post.scaling import log_probabilities, scaling
from fxmerge.methods.post.step import ROWS, Done, Merge
from fxmerge.methods.sampled import Sampled, of_pool
from fxmerge.methods.student import padding, teachers
from fxmerge.methods.wanted import output_features

NUMBERS = 1 << 23
"""Scores that a temperature is found on at most."""
LEAST, MOST = 1e-3, 1e3
"""Factors of the scores that are looked at."""


@dataclass(frozen=True)
class Temperature:
    """One scalar T an output: softmax(z / T) comes nearest (KL) to what the parent answers, on held-back samples.

    Choices of classes stay as they are; probabilities become comparable. No labels: the parent's answers stand for
    them (Guo et al., ICML 2017, fit T to labels). 1/T is multiplied into the weights that make the scores.
    """

    name: ClassVar[str] = "temperature"
    summary: ClassVar[str] = "one temperature for every output of class scores, folded into its head"

    rows: int = ROWS

    def __call__(self, merge: Merge) -> Done:
        program, changed, left = merge.program, {}, {}
        for feature in output_features(merge.job.supernet):
            found = self._one(merge, program, feature)
            if isinstance(found, str):
                left[feature.port] = found
            else:
                program, changed[feature.port] = found
        return Done(program, changed, left)

    def _one(self, merge: Merge, program: Program, feature: Feature) -> tuple[Program, dict[str, float]] | str:
        """The program with a temperature at one output, and what it was; or why there is none."""
        job, alone, k = merge.job, program.only([feature.port]), feature.parent
        batches = list(_held(job, program, k, self.rows))
        answers = _Answers(job, alone, feature)
        theirs = answers.theirs(batches[0])
        axis = job.classes(k, feature.port.removeprefix(f"{job.supernet.parents[k].task}."), theirs)
        if axis is None:
            return "its values are no scores of classes"
        axis %= theirs.ndim
        factor = best_factor(*(pair := answers.rows(batches, axis)))
        if factor is None:
            return "no temperature brings it nearer to the parent"
        names = scaling(alone, batches[0].inputs, axis)
        if not names or any(n not in program.origins or program.origins[n].owner != k for n in names):
            return "no weights of its own scale it"
        scaled = {name: (program.tensors[name].double() * factor).to(program.tensors[name].dtype) for name in names}
        after = program.evolve(tensors={**program.tensors, **scaled})
        if not self._alone(merge, program, after, feature, batches[0]):
            return "the weights that scale it make other outputs too"
        before, now = (divergence(*pair, each) for each in (1.0, factor))
        return after, {
            "temperature": round(1 / factor, 6), "kl_before": round(before, 6), "kl_after": round(now, 6),
        }  # fmt: skip

    @staticmethod
    def _alone(merge: Merge, before: Program, after: Program, feature: Feature, batch: Sampled) -> bool:
        """Whether all other outputs are what they were."""
        names = [name for name in merge.job.supernet.output_names if name != feature.port]
        with torch.no_grad():
            old, new = (program.only(names).run(batch.inputs) for program in (before, after))
        return all(torch.equal(old[name], new[name]) for name in names)


def best_factor(ours: Tensor, theirs: Tensor) -> float | None:
    """β that minimises Σ KL(softmax(theirs) ‖ softmax(β · ours)) over rows of log probabilities; None at an end.

    The sum is convex in β; its derivative, Σ E_softmax(β·ours)[ours] − E_softmax(theirs)[ours], is bisected.
    """
    wanted = (theirs.exp() * ours).sum()

    def slope(factor: float) -> float:
        return float((torch.softmax(factor * ours, 1) * ours).sum() - wanted)

    low, high = LEAST, MOST
    if not slope(low) < 0 < slope(high):
        return None
    while high / low > 1 + 1e-9:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float((low * high) ** 0.5)


def divergence(ours: Tensor, theirs: Tensor, factor: float) -> float:
    """Mean KL(softmax(theirs) ‖ softmax(factor · ours)) of rows."""
    return float((theirs.exp() * (theirs - torch.log_softmax(factor * ours, 1))).sum(1).mean())


def _held(job: Job, program: Program, k: int, rows: int) -> Iterator[Sampled]:
    """Samples of a task that no trial was trained on, as far as there are any."""
    assert job.pools is not None and job.pool is not None
    pool = (job.pools.held_of(k) or job.pools.held()) if job.pools.triable else job.pool
    yield from of_pool(pool, program, rows)


class _Answers:
    """What the merged model and the parent say at one output."""

    def __init__(self, job: Job, alone: Program, feature: Feature) -> None:
        assert job.pool is not None
        self.alone, self.teacher = alone, teachers(job.supernet, [feature])
        self.names = [port.name for port in job.supernet.program.inputs]
        self.mask = padding(alone, alone.outputs[0], job.pool)

    @torch.no_grad()
    def ours(self, batch: Sampled) -> Tensor:
        value: Tensor = self.alone.module(*(batch.inputs[name] for name in self.names))[0]
        return value

    @torch.no_grad()
    def theirs(self, batch: Sampled) -> Tensor:
        value: Tensor = self.teacher(*(batch.inputs[name] for name in self.names))[0]
        return value

    def rows(self, batches: Sequence[Sampled], axis: int) -> tuple[Tensor, Tensor]:
        """Log probabilities of both, a row for every place that is no padding."""
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for batch in batches:
            for values, value in zip(found, (self.ours(batch), self.theirs(batch)), strict=True):
                values.append(self._places(log_probabilities(value, axis), axis, batch))
            if sum(part.numel() for part in found[0]) > NUMBERS:
                break
        return torch.cat(found[0]), torch.cat(found[1])

    def _places(self, value: Tensor, axis: int, batch: Sampled) -> Tensor:
        rows = value.movedim(axis, -1).flatten(0, -2)
        if self.mask is None or self.mask.axis == axis:
            return rows
        real = batch.inputs[self.names[self.mask.position]] != 0
        shape = [1] * (value.ndim - 1)
        shape[0], shape[self.mask.axis - (self.mask.axis > axis)] = real.shape
        return rows[real.reshape(shape).expand(value.movedim(axis, -1).shape[:-1]).flatten()]
