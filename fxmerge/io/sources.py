"""Programs from every kind of model file, by what the file holds and not by its name."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fxmerge.errors import SourceError
from fxmerge.io.bundle import GRAPH, load_bundle
from fxmerge.ir.program import Program


def load(
    source: str | Path,
    *,
    arch: str | None = None,
    weights: str | Path | None = None,
    inputs: str | Path | None = None,
    task: str | None = None,
    allow_pickle: bool = False,
) -> Program:
    """The program of a model file or folder.

    Raises `SourceError`, or `UnsafeFileError` if reading would execute code.
    """
    path = Path(source)
    if not path.exists():
        raise SourceError(
            f"{path} does not exist", "give the path of a model: a bundle, a .pt2, a state dict or a folder"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError(f"{path} is empty", "copy or write the file again")
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if GRAPH in archive.namelist():
                program = load_bundle(path)
                return program.evolve(task=task) if task else program
    raise SourceError(f"{path} is no model fxmerge can read", "capture it with `fxmerge capture`")
