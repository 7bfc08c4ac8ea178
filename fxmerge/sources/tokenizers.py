"""The longest row that a tokenizer is for, where its tokenizer.json does not state one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fxmerge.errors import SourceError
from fxmerge.io.files import LARGEST_JSON, read_json

CONFIG, TOKENIZER = "tokenizer_config.json", "tokenizer.json"
MOST = 1 << 24
"""Larger numbers stand for no limit: transformers writes 1e30."""


def with_longest(tokenizer: bytes, longest: Any) -> bytes:
    """A tokenizer.json that cuts rows at `longest` tokens; as it is where it has a length, or that is no length."""
    if type(longest) is not int or not 0 < longest <= MOST:
        return tokenizer
    try:
        found = json.loads(tokenizer)
    except (ValueError, RecursionError):  # whoever reads with it says so
        return tokenizer
    if not isinstance(found, dict) or found.get("truncation"):
        return tokenizer
    cut = {"direction": "Right", "max_length": longest, "strategy": "LongestFirst", "stride": 0}
    return json.dumps({**found, "truncation": cut}, ensure_ascii=False).encode()


def longest_in(folder: Path) -> Any:
    """The `model_max_length` in a folder's tokenizer_config.json; None where there is none."""
    file = folder / CONFIG
    try:
        found = read_json(file) if file.is_file() and file.stat().st_size <= LARGEST_JSON else {}
    except SourceError:  # of no use here
        return None
    return found.get("model_max_length") if isinstance(found, dict) else None
