"""Samples for a program from every kind of file: arrays, images, text."""

from __future__ import annotations

import os
from pathlib import Path

from fxmerge.errors import DataError
from fxmerge.io.guard import check_file
from fxmerge.ir.program import Program
from fxmerge.messages import listed, nearest
from fxmerge.samples import arrays, images, tables, text
from fxmerge.samples.fit import Raw, Samples, check_samples, fit

__all__ = ["LABELS", "Samples", "check_samples", "load_samples"]

LABELS = ("labels", "y", "label")
"""Arrays of these names are labels, not inputs."""


def load_samples(
    path: str | Path, program: Program, *, limit: int | None = None, batch_axis: int | None = None
) -> Samples:
    """Samples from `path` as `program` takes them: the first `limit` rows, with labels where there are some.

    Arrays (.npz, .npy, .safetensors), a folder of images, or text (.csv, .tsv, .jsonl, .parquet, .txt).
    `batch_axis` says where arrays have the batch, for inputs that the model does not take with the batch first.
    Raises `DataError` if the file is missing, empty, damaged, of no known kind, or does not fit the program's inputs.
    """
    path = Path(path)
    where = str(path)
    if os.path.isdir(path):
        return fit(images.read_images(path, program, limit), program, where, limit)
    check_file(path, DataError)
    if path.suffix in arrays.SUFFIXES:
        found, notes = arrays.read_arrays(path)
        key = next((n for n in LABELS if n in found and n not in {p.name for p in program.inputs}), None)
        labels = found.pop(key) if key else None
        return fit(Raw(found, labels, notes, as_model=True), program, where, limit, batch_axis)
    if path.suffix in tables.SUFFIXES:
        return fit(text.tokenize(tables.read_text(path, limit), program, where), program, where, limit)
    known = (*arrays.SUFFIXES, *tables.SUFFIXES)
    raise DataError(
        f"{path} is of no known kind{nearest(path.suffix, known)}", f"give a folder of images, or {listed(known, 20)}"
    )
