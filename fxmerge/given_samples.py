"""The samples of a merge: given by the user for every task, in the bundles, or written by a parent itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxmerge.config import MergeConfig
from fxmerge.errors import DataError
from fxmerge.figures import Samples, rows_of
from fxmerge.ir.program import Program
from fxmerge.parents import by_task, samples_of
from fxmerge.samples.fit import check_samples
from fxmerge.samples.started import started


def all_samples(
    programs: Sequence[Program], data: Any, config: MergeConfig, needed: bool, free: Sequence[str]
) -> tuple[list[Samples] | None, list[str]]:
    """Samples of every task by input name, and notes; None if there are none and none are `needed`.

    Raises `DataError` where some are missing; it names the methods that are `free` to do without.
    """
    given = by_task(data, programs)
    found: list[Samples] = []
    notes: list[str] = []
    for program in programs:
        samples, said = samples_of(program, given.get(program.task, given.get("")), config)
        notes += said
        if not samples and needed and (samples := started(program, config.seed)):
            notes.append(f"no samples for {program.task}: it wrote {rows_of(samples)} rows itself")
        if not samples and needed:
            raise DataError(
                f"no samples for {program.task}: none given with --data and none in the bundle",
                f"give --data {program.task}=PATH, or take a method that needs none: --method {' or '.join(free)}",
            )
        if not samples:
            return None, notes
        check_samples(samples, program, f"the samples of {program.task}")
        found.append(samples)
    return found, notes
