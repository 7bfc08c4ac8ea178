"""A method: an average in which a parent weighs as much as it has parameters."""

from __future__ import annotations

from dataclasses import dataclass

from fxmerge.methods import Job, Outcome


@dataclass(frozen=True)
class BySize:
    """M = [λ_k I], U = [I; …; I] with λ_k in proportion to parent k's parameters."""

    name: str = "by-size"
    summary: str = "mean of the parents' weights, the larger parent counting more; no data"
    needs_data: bool = False

    def __call__(self, job: Job) -> Outcome:
        supernet = job.supernet
        sizes = [parent.count() for parent in supernet.parents]
        return Outcome(supernet.start([size / sum(sizes) for size in sizes]).program, init="by-size")


BY_SIZE = BySize()
