"""Samples for a program from every kind of file: arrays, images, text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxmerge.errors import DataError
from fxmerge.io import arrays
from fxmerge.io.files import listed
from fxmerge.io.samples import Samples, check_samples, fit, fit_labels, row_ports
from fxmerge.ir.program import Program

__all__ = ["Samples", "check_samples", "load_samples"]

LABELS = ("labels", "y", "label")
"""Arrays and columns of these names are labels, not inputs."""


def load_samples(path: str | Path, program: Program, *, limit: int | None = None) -> Samples:
    """Samples from `path` as `program` takes them: the first `limit` rows, with labels where the file has some.

    Raises `DataError` if the file is missing, empty, damaged, of no known kind, or does not fit the program's inputs.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist", "give --data TASK=PATH with an existing file or folder")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty", "write the samples again")
    if path.suffix in arrays.SUFFIXES:
        return _from_arrays(path, program, limit)
    raise DataError(f"{path} is of no known kind", "give one of " + listed(arrays.SUFFIXES, 20))


def _from_arrays(path: Path, program: Program, limit: int | None) -> Samples:
    found = arrays.read_arrays(path)
    names = {port.name for port in program.inputs}
    key = next((n for n in LABELS if n in found and n not in names), None)
    labels = found.pop(key) if key else None
    return finish(found, labels, program, str(path), limit)


def finish(found: Mapping[str, Any], labels: Any, program: Program, where: str, limit: int | None) -> Samples:
    """Samples from raw arrays and labels, cut to `limit` rows."""
    inputs, notes = fit(found, program, where)
    rows = row_ports(program)
    count = next((inputs[name].shape[0] for name in rows), 0)
    if labels is not None:
        labels, more = fit_labels(labels, count, program, where)
        labels, notes = labels[:limit], (*notes, *more)
    return Samples({n: t[:limit] if n in rows else t for n, t in inputs.items()}, labels, notes)
