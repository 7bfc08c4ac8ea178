"""Folders of the datasets library, and of the hub: which files hold which split. No script in them is run.

dataset_dict.json, train/, test/      DatasetDict.save_to_disk: a folder for each split
state.json, dataset_info.json         Dataset.save_to_disk: Arrow files, in the order of state.json
train-00000-of-00002.parquet, …       as on the hub, in the folder itself or in data/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fxmerge.errors import DataError
from fxmerge.io.files import parse_json
from fxmerge.io.guard import read_bytes
from fxmerge.messages import listed, nearest, printable

DICT, STATE, TRAIN = "dataset_dict.json", "state.json", "train"
MOST_JSON, MOST_FILES = 1 << 24, 10_000
SHARD = re.compile(r"(?P<split>.+?)(-\d+-of-\d+)?(-[0-9a-f]{8,})?\.(parquet|arrow)")


@dataclass(frozen=True)
class Split:
    """The files of a split, in order, and what to say of the choice."""

    where: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def find(path: Path) -> Split | None:
    """The split at `path`, a folder or FOLDER/SPLIT; of several "train". None if there is no such folder.

    Raises `DataError` if it cannot be told which split is meant.
    """
    if path.is_dir():
        return _chosen(path, _splits(path))
    if path.exists() or not path.parent.is_dir():
        return None
    splits = _splits(path.parent)
    if not splits:
        return None
    if path.name not in splits:
        raise DataError(
            f"{path.parent} has no split {path.name!r}{nearest(path.name, splits)}",
            f"give one of {listed(sorted(splits))}",
        )
    return _chosen(path, {path.name: splits[path.name]})


def _chosen(path: Path, splits: Mapping[str, tuple[Path, ...]]) -> Split | None:
    if not splits:
        return None
    name = TRAIN if TRAIN in splits else next(iter(splits))
    if len(splits) == 1:
        return Split(str(path), splits[name])
    names = printable(listed(sorted(splits)))
    if TRAIN not in splits:
        raise DataError(f"{path} has several splits: {names}", f"name one, as {path}/{printable(name)}")
    return Split(str(path), splits[name], (f"{path}: the split {name} is used, of {names}",))


def _splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of every split."""
    if (folder / DICT).is_file():
        names = _strings(folder / DICT, _json(folder / DICT).get("splits"))
        return {name: _saved(folder / name) for name in names}
    if (folder / STATE).is_file():
        return {folder.name: _saved(folder)}
    found: dict[str, tuple[Path, ...]] = {}
    for place in (folder, folder / "data"):
        files = sorted(f for f in place.iterdir() if SHARD.fullmatch(f.name)) if place.is_dir() else []
        for file in files[:MOST_FILES] if not found or place == folder else ():
            match = SHARD.fullmatch(file.name)
            assert match is not None
            found[match["split"]] = (*found.get(match["split"], ()), file)
        if found:
            break
    return found


def _saved(folder: Path) -> tuple[Path, ...]:
    """The files of one saved data set."""
    path = folder / STATE
    said = _json(path)
    if said.get("_indices_data_files"):
        raise DataError(f"{folder} keeps its rows in an order of their own", "save it with flatten_indices()")
    files = said.get("_data_files")
    shards = files if isinstance(files, list) else []
    names = [each.get("filename") if isinstance(each, dict) else None for each in shards]
    return tuple(folder / name for name in _strings(path, names))


def _strings(path: Path, value: object) -> list[str]:
    """Names of files or folders beside `path`."""
    names = value if isinstance(value, list) else []
    plain = all(isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name for name in names)
    if not names or not plain or len(names) > MOST_FILES:
        raise DataError(f"{path} names no files beside it", "save the data set again with save_to_disk")
    return names


def _json(path: Path) -> dict[str, object]:
    value = parse_json(read_bytes(path, DataError, most=MOST_JSON), str(path))
    return value if isinstance(value, dict) else {}
