"""YAML of options: plain values, without references, within bounds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from fxmerge.errors import FxmergeError
from fxmerge.io.guard import read_bytes, reading

MOST_BYTES, MOST_DEPTH = 128 << 10, 8


def read_yaml(path: Path, kind: type[FxmergeError], todo: str) -> Any:
    """The value of a YAML file. Raises `kind` if it is none, too large, too deep, or refers to itself."""
    if path.is_file() and path.stat().st_size == 0:
        return None
    return parse_yaml(read_bytes(path, kind, most=MOST_BYTES), path, kind, todo)


def parse_yaml(data: bytes, path: Path, kind: type[FxmergeError], todo: str) -> Any:
    """`read_yaml` of the text itself, which comes from `path`."""
    if len(data) > MOST_BYTES:
        raise kind(f"{path} holds {len(data) >> 10} KiB of YAML", f"the limit is {MOST_BYTES >> 10} KiB")
    with reading(path, kind, todo, how="is no valid YAML"):
        text = data.decode("utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MOST_DEPTH:
                raise ValueError(f"line {event.start_mark.line + 1} is nested too deeply or refers to another place")
        _once(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)


def _once(node: yaml.Node | None) -> None:
    """Raise `ValueError` for a key that is given twice, where YAML would take the last."""
    if isinstance(node, yaml.MappingNode):
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if names and (most := names.most_common(1)[0])[1] > 1:
            raise ValueError(f"line {node.start_mark.line + 1}: {most[0]} is given twice")
        for _, value in node.value:
            _once(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _once(value)
