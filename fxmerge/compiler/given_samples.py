"""The samples of a merge: given by the user for every task, in the bundles, or written by a parent itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fxmerge.compiler.parents import by_task, samples_of
from fxmerge.config import MergeConfig
from fxmerge.errors import DataError
from fxmerge.ir.program import Program
from fxmerge.methods import Method
from fxmerge.samples.fit import check_samples
from fxmerge.samples.rows import Samples, rows_of
from fxmerge.samples.started import started


@dataclass
class Given:
    """Samples of every task by input name (none where a task has none), notes, and how many were broken, by task."""

    inputs: list[Samples] | None
    notes: list[str]
    skipped: dict[str, int]


def all_samples(
    programs: Sequence[Program], data: Any, config: MergeConfig, method: Method, known: Iterable[Method]
) -> Given:
    """Samples of every task; none if there are none, and neither method nor gate needs any.

    Raises `DataError` where one does; it names the `known` methods that do without.
    """
    needed, given = method.needs_data or config.gate, by_task(data, programs)
    found: list[Samples] = []
    notes, skipped = list[str](), dict[str, int]()
    for program in programs:
        loaded = samples_of(program, given.get(program.task, given.get("")), config)
        samples, skipped[program.task] = dict(loaded.inputs), loaded.skipped
        notes += loaded.notes
        if not samples and needed and (samples := started(program, config.seed)):
            notes.append(f"no samples for {program.task}: it wrote {rows_of(samples)} rows itself")
        if not samples and needed:
            free = " or ".join(each.name for each in known if not each.needs_data)
            other = f"take a method that needs none: --method {free}" if method.needs_data else "leave out --gate"
            raise DataError(
                f"no samples for {program.task}: none given with --data and none in the bundle",
                f"give --data {program.task}=PATH, or {other}",
            )
        if not samples:
            return Given(None, notes, skipped)
        check_samples(samples, program, f"the samples of {program.task}")
        found.append(samples)
    return Given(found, notes, skipped)
