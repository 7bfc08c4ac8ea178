"""What users write, as values of options: flags by task, paths and names in any form, files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fxmerge.errors import OptionError
from fxmerge.io.yaml_text import read_yaml


def parse_data(values: Iterable[str]) -> dict[str, str]:
    """`["mnist=a.npz", "b.npz"]` by task; the key "" stands for every task."""
    return parse_by_task("data", values, "PATH")


def parse_by_task(name: str, values: Iterable[str], what: str = "VALUE") -> dict[str, str]:
    """The values of a flag that may be given once per task, `TASK=VALUE`; the key "" stands for every task."""
    found: dict[str, str] = {}
    for value in values:
        task, mark, given = value.partition("=")
        if not mark or "/" in task or Path(value).exists():  # an equals sign inside a path
            task, given = "", value
        if not given or (mark and not task and given != value):
            missing = "no task" if given else f"no {'file' if what == 'PATH' else what.lower()}"
            raise OptionError(
                f"--{name} {value} names {missing}", f"write it as --{name} TASK={what}, or --{name} {what} for all"
            )
        if task in found:
            raise OptionError(f"--{name} is given twice for {task or 'every task'}", "give it once per task")
        found[task] = given
    return found


def read_options(path: Path) -> dict[str, Any]:
    """The options in a YAML file. Raises `OptionError` for a file that holds none."""
    if not path.exists():
        raise OptionError(f"--config {path}: no such file", "write one with --save-config")
    values = read_yaml(path, OptionError, "write one with --save-config")
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise OptionError(f"--config {path} is no table of options", "write one option a line, as `method: foldable`")
    return dict(values)


def as_texts(value: Any) -> Any:
    """Paths, alone or in a collection, as text."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return tuple(as_texts(item) for item in value)
    return {key: as_texts(item) for key, item in value.items()} if isinstance(value, dict) else value


def as_names(value: Any) -> Any:
    """The names in a text, or in every text of a collection."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, tuple | list) or not all(isinstance(text, str) for text in texts):
        return value
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())
