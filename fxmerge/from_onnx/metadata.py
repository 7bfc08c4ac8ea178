"""What a merged ONNX file says of itself, checked: any program may have written it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fxmerge.errors import SourceError
from fxmerge.io.files import parse_json
from fxmerge.ir.program import Port
from fxmerge.messages import printable

AGAIN = "merge it again"
TASKS = "fxmerge.tasks"
GATE = "fxmerge.gate"
BY_TASK = ("fxmerge.labels", "fxmerge.parents", "fxmerge.turned")
"""What is said by task, as JSON."""


@dataclass(frozen=True)
class Answer:
    """An output for whoever does not know the task, under the parents' name for it."""

    output: str
    how: Literal["none", "choose", "mix"]
    """The likeliest task's, or all tasks' weighed by the gate's probabilities."""
    of: tuple[str, ...]
    """The tasks' outputs, in the order of the gate's probabilities."""


@dataclass(frozen=True)
class Metadata:
    """Tasks in their order; by task: class names, the hash of the parent's file, turned inputs."""

    tasks: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...] | None]
    parents: Mapping[str, str]
    turned: Mapping[str, Mapping[str, int]]
    """By task, the inputs that its parent takes with the batch on another axis than the first, and that axis."""
    gate: str | None = None
    """The output that gives the probability of each task, in their order."""
    answers: Mapping[str, Answer] = field(default_factory=dict)
    """By name: the outputs for rows whose task is not known."""


def task_of(name: str, tasks: Iterable[str]) -> str | None:
    """The task of an output "TASK.OUTPUT", or of an input of its own: the longest that fits, of "a" and "a.b"."""
    return max((task for task in tasks if name.startswith(f"{task}.")), key=len, default=None)


def read_metadata(values: Mapping[str, str], outputs: Sequence[Port], path: str | Path) -> Metadata:
    """The metadata of a model with these outputs; without any, its tasks are those its outputs are named after.

    Raises `SourceError` if it is of another kind than fxmerge writes, or names tasks without outputs.
    """
    names = [port.name for port in outputs]
    known = _json(values, TASKS, path)
    tasks = known if known is not None else list(dict.fromkeys(name.split(".")[0] for name in names))
    if known is None and not all("." in name for name in names):
        raise SourceError(f"{path} is no merged model: its outputs are not called TASK.OUTPUT", AGAIN)
    if not tasks or not _texts(tasks) or len(set(tasks)) != len(tasks):
        raise _wrong(TASKS, path)
    with_outputs = {task_of(name, tasks) for name in names}
    without = next((task for task in tasks if task not in with_outputs), None)
    if without is not None:
        raise SourceError(f"{path} names the task {printable(without)!r}, but gives no output for it", AGAIN)
    labels = _json(values, "fxmerge.labels", path) or {}
    if not isinstance(labels, dict) or not all(v is None or _texts(v) for v in labels.values()):
        raise _wrong("fxmerge.labels", path)
    parents = _json(values, "fxmerge.parents", path) or {}
    if not isinstance(parents, dict) or not _texts(list(parents.values())):
        raise _wrong("fxmerge.parents", path)
    turned = _json(values, "fxmerge.turned", path) or {}
    if not isinstance(turned, dict) or not all(isinstance(v, dict) and _axes(v) for v in turned.values()):
        raise _wrong("fxmerge.turned", path)
    gate = _json(values, GATE, path)
    if gate is not None and not (isinstance(gate, dict) and gate.get("output") in names and gate.get("tasks") == tasks):
        raise _wrong(GATE, path)
    answers = (gate or {}).get("answers", {})
    if not isinstance(answers, dict) or not all(name in names and _answer(v, names) for name, v in answers.items()):
        raise _wrong(GATE, path)
    named = {task: tuple(v) if v else None for task, v in labels.items()}
    made = {name: Answer(name, value["how"], tuple(value["of"])) for name, value in answers.items()}
    return Metadata(tuple(tasks), named, parents, turned, gate["output"] if gate else None, made)


def _json(values: Mapping[str, str], key: str, path: str | Path) -> Any:
    return parse_json(values[key].encode(), f"{path}: {key}") if key in values else None


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v == printable(v) for v in value)


def _answer(value: Any, names: Sequence[str]) -> bool:
    if not isinstance(value, dict) or value.get("how") not in ("choose", "mix"):
        return False
    return _texts(value.get("of")) and set(value["of"]) <= {*names}


def _axes(value: Mapping[Any, Any]) -> bool:
    return all(type(axis) is int and 0 < axis < 8 for axis in value.values())


def _wrong(key: str, path: str | Path) -> SourceError:
    return SourceError(f"{path}: its metadata {key} is not what fxmerge writes", AGAIN)
