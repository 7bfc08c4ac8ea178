"""Samples for a program from every kind of file: arrays, images, text."""

from __future__ import annotations

import os
from pathlib import Path

from fxmerge.errors import DataError
from fxmerge.io.guard import check_file
from fxmerge.ir.program import Program
from fxmerge.messages import listed, nearest
from fxmerge.samples import arrays, columnar, columns, images, tables, text
from fxmerge.samples.fit import Raw, Samples, check_samples, fit
from fxmerge.samples.reading import USUAL, Broken, Reading

__all__ = ["LABELS", "Reading", "Samples", "check_samples", "load_samples"]

LABELS = ("labels", "y", "label")
"""Arrays of these names are labels, not inputs."""


def load_samples(path: str | Path, program: Program, reading: Reading = USUAL) -> Samples:
    """Samples from `path` as `program` takes them, with labels where there are some and they are asked for.

    Arrays (.npz, .npy, .safetensors), a folder of images, or text (.csv, .tsv, .jsonl, .parquet, .txt).
    Raises `DataError` if the file is missing, empty, damaged, of no known kind, or does not fit the program's inputs.
    Of several files, and of rows, those that are broken are left out and counted, unless `reading` is strict.
    """
    path, broken = Path(path), Broken(reading.strict)
    return fit(_read(path, program, reading, broken), program, str(path), reading, broken)


def _read(path: Path, program: Program, reading: Reading, broken: Broken) -> Raw:
    """What is at `path`."""
    if os.path.isdir(path):
        return images.read_images(path, program, reading.limit, broken)
    check_file(path, DataError)
    if path.suffix in arrays.SUFFIXES:
        found, notes = arrays.read_arrays(path, broken)
        key = next((n for n in LABELS if n in found and n not in {p.name for p in program.inputs}), None)
        labels = found.pop(key) if key else None
        broken.check(all(port.name in found for port in program.inputs))
        return Raw(found, labels, notes, as_model=True)
    if path.suffix in (*tables.SUFFIXES, *columnar.SUFFIXES):
        rows = (
            tables.Lines.of(path)
            if path.suffix in tables.SUFFIXES
            else columnar.Columnar.of(str(path), [path], reading.strict)
        )
        table = columns.read_text(rows, reading.limit, broken, reading.labels)
        return text.tokenize(table, program, str(path))
    known = (*arrays.SUFFIXES, *tables.SUFFIXES, *columnar.SUFFIXES)
    raise DataError(
        f"{path} is of no known kind{nearest(path.suffix, known)}", f"give a folder of images, or {listed(known, 20)}"
    )
