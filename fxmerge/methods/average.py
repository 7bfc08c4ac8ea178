"""Weight averaging: the sanity baseline. On independently trained parents it must be near chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxmerge.methods.about import About
from fxmerge.methods.base import Job, Outcome


@dataclass(frozen=True)
class Average:
    """M = [λ_k I], U = [I; …; I], tied. Parents of other widths are cut or filled with zeros."""

    name: ClassVar[str] = "average"
    summary: ClassVar[str] = "mean of the parents' weights, position by position; no data (baseline)"
    needs_data: ClassVar[bool] = False
    about: ClassVar[About] = About("the baseline of every paper")

    def __call__(self, job: Job) -> Outcome:
        if units := job.supernet.unwritten():
            job.notes.append(
                f"average fills no more than the parents have: {units} units of the wider model do nothing"
            )
        if not job.supernet.shared:
            job.notes.append("the tasks share nothing: the parents stand side by side, and there is nothing to train")
        supernet = job.supernet.start([1.0] * len(job.supernet.parents))
        return Outcome(supernet.program, init="average")


AVERAGE = Average()
