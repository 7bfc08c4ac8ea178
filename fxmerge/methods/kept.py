"""Training that brings a start no nearer to the parents on held-back inputs is undone: what was exact stays so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job
from fxmerge.methods.student import student_of, targets_of, train
from fxmerge.training.fit import labels_of, score_labelled
from fxmerge.training.settings import Log


def train_or_keep(program: Program, supernet: SuperNet, job: Job) -> tuple[Program, Log]:
    """`train`; what is no better on held-back inputs than its start gives way to the start, and a note says so.

    Training saw these inputs, so a small gain proves nothing; but that there is none does.
    """
    student = student_of(program, supernet, job)
    trained = [parameter for parameter in student.module.parameters() if parameter.requires_grad]
    with _held_back(student, supernet, job) as error:
        kept, before = [parameter.detach().clone() for parameter in trained], error()
        student, log = train(program, supernet, job)
        after = error()
    if before is not None and after is not None and not after < before:
        job.notes.append(f"the start is kept: training brought its error from {before:.2g} to {after:.2g}")
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
    return student, log


@contextmanager
def _held_back(student: Program, supernet: SuperNet, job: Job) -> Iterator[Callable[[], float | None]]:
    """The loss of the student as it is then on inputs that trials hold back; None where there are no samples."""
    if job.pools is None:
        yield lambda: None
        return
    held, few = job.pools.held(), replace(job.settings, memory=job.settings.memory // 8)
    with labels_of(held, targets_of(student, supernet, replace(job, pool=held)), few) as labels:

        def error() -> float:
            scores = score_labelled(student.module, labels, job.settings)
            return 1 - sum(w * s for w, s in zip(labels.weights, scores, strict=True)) / sum(labels.weights)

        yield error
