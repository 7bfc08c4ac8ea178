"""The files that parents read text and pictures with, in the metadata of an ONNX file: each once, whoever shares it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fxmerge.errors import SourceError
from fxmerge.io.files import LARGEST_JSON, parse_json
from fxmerge.sources.bundle import INPUT_ASSETS

KEY = "fxmerge.assets"


def pack(assets: Mapping[str, Mapping[str, bytes]]) -> dict[str, str]:
    """Metadata that holds these files, by task and name: which task has which, and the text of each."""
    found: dict[str, str] = {}
    places: dict[str, dict[str, str]] = {}
    for task, files in assets.items():
        for name, data in files.items():
            if name in INPUT_ASSETS and _is_text(data):
                place = f"{KEY}.{hashlib.sha256(data).hexdigest()[:12]}"
                found[place] = data.decode()
                places.setdefault(task, {})[name] = place
    return {KEY: json.dumps(places), **found} if places else {}


def unpack(values: Mapping[str, str], path: str | Path) -> dict[str, dict[str, bytes]]:
    """The files in the metadata of a model, by task and name. Raises `SourceError` if it is not what `pack` writes."""
    places = parse_json(values.get(KEY, "{}").encode(), f"{path}: {KEY}")
    try:
        return {
            task: {name: values[place].encode() for name, place in files.items() if name in INPUT_ASSETS}
            for task, files in places.items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: its metadata {KEY} is not what fxmerge writes", "merge it again") from error


def _is_text(data: bytes) -> bool:
    try:
        return len(data) <= LARGEST_JSON and bool(data.decode())
    except ValueError:
        return False
