"""YAML of options: plain values, without references, within bounds."""

from __future__ import annotations

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
        return yaml.load(text, Loader=_Once)


class _Once(yaml.SafeLoader):
    """Plain values; what is said twice is an error, where YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"line {node.start_mark.line + 1}: {twice} is given twice")
        return super().construct_mapping(node, deep)
