"""Which sizes shall be dynamic: what was asked for, then less and less."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.export import Dim

from fxmerge.capturing.inputs import nested_get
from fxmerge.capturing.rows import Rows
from fxmerge.capturing.sizes import AXES
from fxmerge.errors import OptionError

ROWS = 3
"""Rows of the sample used for tracing: with one row, torch.export takes the batch for a constant."""

Shapes = Mapping[str, Mapping[int, Any]]
"""By input: what torch.export shall take each axis for."""


@dataclass(frozen=True)
class Plan:
    """One way to trace."""

    shapes: Shapes
    notes: tuple[str, ...] = ()
    words: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """What axes (input, axis) are called, where their place does not say."""
    numbers: bool = False
    """Sizes that were taken as Python numbers are found by comparing traces."""

    @property
    def batch(self) -> bool:
        return any(0 in axes for axes in self.shapes.values())


def plans(tensors: Mapping[str, Tensor], rows: Rows, given: Any, dynamic: Sequence[str]) -> Iterator[Plan]:
    """Ways to trace tensors (rows first), the best first. The last one fixes every size, unless more was asked for."""
    batch: dict[str, dict[int, Any]] = {n: {0: Dim.DYNAMIC} for n, a in rows.inputs.items() if a is not None}
    if rows.fixed:
        batch = {}
    if given is not None:
        yield Plan(_said(tensors, rows, given))
        return
    if dynamic:
        for wanted, words in _wanted(tensors, dynamic):
            shapes = _joined(_joined(batch, _lengths(tensors)), wanted)
            yield Plan(shapes, words=words)
            yield Plan(shapes, words=words, numbers=True)
        return
    lengths = _lengths(tensors)
    if lengths:
        yield Plan(_joined(batch, lengths))
        yield Plan(_joined(batch, lengths), numbers=True)
    note = ("the sequence length is fixed: the model does not trace with a dynamic one",) if lengths else ()
    if batch:
        yield Plan(batch, note)
        yield Plan(batch, note, numbers=True)
    yield Plan({}, note)


def said_axis(given: Any, tensors: Mapping[str, Tensor]) -> int | None:
    """The batch axis that `dynamic_shapes` says by a name ("batch"), or by letting one axis alone vary everywhere."""
    if given is None:
        return None
    shapes = [_by_axis(spec) for spec in _specs(tensors, given).values()]
    for shape in shapes:
        for axis, size in shape.items():
            if str(getattr(size, "__name__", "")).lower() in ("batch", "batch_size", "rows", "n", "b"):
                return axis
    axes = {axis for shape in shapes for axis in shape}
    return axes.pop() if axes in ({0}, {1}) else None


def _said(tensors: Mapping[str, Tensor], rows: Rows, given: Any) -> Shapes:
    """`dynamic_shapes` as the user gave it, by input, its axes as they are with the rows first."""
    found: dict[str, dict[int, Any]] = {}
    for name, spec in _specs(tensors, given).items():
        first = rows.inputs[name] or 0
        moved = {0 if a == first else a + (a < first): size for a, size in _by_axis(spec).items()}
        found[name] = moved
    return found


def _specs(tensors: Mapping[str, Tensor], given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        roots = list(dict.fromkeys(name.partition(".")[0] for name in tensors))
        given = dict(zip(roots, given, strict=False))
    return {name: nested_get(given, name) for name in tensors}


def _by_axis(spec: Any) -> dict[int, Any]:
    if spec is None:
        return {}
    items = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
    return {axis: size for axis, size in items if size is not None and size is not Dim.STATIC}


def _lengths(tensors: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    """The second axis of tokens, and of what is as long beside them (if that is no length, it stays fixed)."""
    tokens = {n for n, t in tensors.items() if t.ndim >= 2 and not t.is_floating_point()}
    lengths = {tensors[n].shape[1] for n in tokens}
    beside = {n for n, t in tensors.items() if n not in tokens and t.ndim >= 2 and t.shape[1] in lengths}
    return {n: {1: Dim.DYNAMIC} for n in tokens} | {n: {1: Dim.AUTO} for n in beside}


def _wanted(
    tensors: Mapping[str, Tensor], dynamic: Sequence[str]
) -> Iterator[tuple[dict[str, dict[int, Any]], dict[tuple[str, int], str]]]:
    """Axes by what they were called: channels first, then channels last."""
    for word in dynamic:
        if word not in AXES:
            close = difflib.get_close_matches(word, AXES, 1)
            raise OptionError(
                f"no axis is called {word!r}" + (f"; did you mean {close[0]}?" if close else ""),
                f"say which axes shall be dynamic: {', '.join(AXES)}",
            )
    for last in (False, True):
        shapes: dict[str, dict[int, Any]] = {}
        words: dict[tuple[str, int], str] = {}
        for name, value in tensors.items():
            places = _places(value, last)
            for word in dynamic:
                if word in places:
                    shapes.setdefault(name, {})[places[word]] = Dim.DYNAMIC
                    words[name, places[word]] = word
        missing = [word for word in dynamic if word not in words.values()]
        if missing:
            raise OptionError(f"no input has an axis that is a {missing[0]}", "leave it out, or use dynamic_shapes")
        yield shapes, words


def _places(value: Tensor, last: bool) -> dict[str, int]:
    """Where the axes of an input are, by name."""
    if value.ndim >= 4:
        spatial = ("depth", "height", "width")[-(value.ndim - 2) :]
        return {word: axis + (1 if last else 2) for axis, word in enumerate(spatial)}
    if value.ndim == 3:
        length = 2 if last else 1
        return {"time": length, "sequence": length, "height": 1, "width": 2}
    return {"time": 1, "sequence": 1} if value.ndim == 2 else {}


def _joined(a: Shapes, b: Shapes) -> dict[str, dict[int, Any]]:
    return {name: {**a.get(name, {}), **b.get(name, {})} for name in [*a, *(n for n in b if n not in a)]}
