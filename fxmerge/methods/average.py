"""Weight averaging: the sanity baseline. On independently trained parents it must be near chance."""

from __future__ import annotations

from dataclasses import dataclass

from fxmerge.methods.base import Job, Outcome


@dataclass(frozen=True)
class Average:
    """M = [λ_k I], U = [I; …; I], tied. Parents of other widths are cut or filled with zeros."""

    name: str = "average"
    summary: str = "mean of the parents' weights, position by position; no data (baseline)"
    needs_data: bool = False

    def __call__(self, job: Job) -> Outcome:
        supernet = job.supernet.start([1.0] * len(job.supernet.parents))
        return Outcome(supernet.program, init="average")


AVERAGE = Average()
