"""Samples for a program from every kind of file: arrays, images, sound, text."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fxmerge.errors import DataError
from fxmerge.io.guard import check_file
from fxmerge.ir.program import Program
from fxmerge.messages import listed, nearest
from fxmerge.samples import arrays, columnar, columns, datasets, files_in_rows, images, sounds, tables, text
from fxmerge.samples.fit import Raw, Samples, check_samples, fit
from fxmerge.samples.reading import USUAL, Broken, Reading

__all__ = ["LABELS", "Reading", "Samples", "check_samples", "load_samples"]

LABELS = ("labels", "y", "label")
"""Arrays of these names are labels, not inputs."""


def load_samples(path: str | Path, program: Program, reading: Reading = USUAL) -> Samples:
    """Samples from `path` as `program` takes them, with labels where there are some and they are asked for.

    Arrays (.npz, .npy, .safetensors), a folder of images or recordings, a recording (.wav), text (.csv, .tsv, .jsonl,
    .txt), tables of text, pictures or sound (.parquet, .arrow), or a folder of the datasets library.
    Raises `DataError` if the file is missing, empty, damaged, of no known kind, or does not fit the program's inputs.
    Of several files, and of rows, those that are broken are left out and counted, unless `reading` is strict.
    """
    path, broken = Path(path), Broken(reading.strict)
    return fit(_read(path, program, reading, broken), program, str(path), reading, broken)


def _read(path: Path, program: Program, reading: Reading, broken: Broken) -> Raw:
    """What is at `path`."""
    where, sound = str(path), sounds.wave_port(program.inputs) is not None
    if (split := datasets.find(path)) is not None:
        found = columnar.Columnar.of(split.where, split.files, reading.strict)
        raw = _of_rows(found, split.files[0].parent, program, reading, broken)
        return replace(raw, notes=(*split.notes, *raw.notes))
    if os.path.isdir(path) and sound and sounds.holds_sounds(path):
        files = images.in_turns(path, sounds.SUFFIXES, "recordings", reading.limit, sounds.MOST_FILES)
        return sounds.read_sounds(sounds.recordings(files.paths, files.classes), program, where, reading, broken)
    if os.path.isdir(path):
        return images.read_images(path, program, reading.limit, broken)
    check_file(path, DataError)
    if path.suffix in arrays.SUFFIXES:
        held, notes = arrays.read_arrays(path, broken)
        key = next((n for n in LABELS if n in held and n not in {p.name for p in program.inputs}), None)
        labels = held.pop(key) if key else None
        broken.check(all(port.name in held for port in program.inputs))
        return Raw(held, labels, notes, as_model=True)
    if path.suffix in tables.SUFFIXES:
        return _of_rows(tables.Lines.of(path), path.parent, program, reading, broken)
    if path.suffix in columnar.SUFFIXES:
        return _of_rows(columnar.Columnar.of(where, [path], reading.strict), path.parent, program, reading, broken)
    if path.suffix.lower() in sounds.SUFFIXES:
        return sounds.read_sounds(sounds.recordings([path], None), program, where, reading, broken)
    known = (*arrays.SUFFIXES, *tables.SUFFIXES, *columnar.SUFFIXES, *sounds.SUFFIXES)
    raise DataError(
        f"{path} is of no known kind{nearest(path.suffix, known)}", f"give a folder of images, or {listed(known, 20)}"
    )


def _of_rows(rows: tables.Rows, folder: Path, program: Program, reading: Reading, broken: Broken) -> Raw:
    """What a table holds of what the program takes: pictures, sound, or text. Files are read in `folder` alone."""
    names = files_in_rows.file_columns(rows)
    config = images.preprocessing(program.assets, program.task) if names else {}
    picture, wave = images.picture_port(program.inputs, config), sounds.wave_port(program.inputs)
    if names and (picture or wave):
        most = images.most_of(picture[1]) if picture and not wave else sounds.MOST_FILES
        found = files_in_rows.files(rows, names, folder, reading, broken, most)
        read = sounds.read_sounds if wave else images.read_rows
        with closing(found):
            return read(found, program, rows.where, reading, broken)
    return text.tokenize(columns.read_text(rows, reading.limit, broken, reading.labels), program, rows.where)
