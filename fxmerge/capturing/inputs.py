"""What a model is called with and what it gives, as flat tensors with names: "x", "maps.0", "aux.mask"."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fxmerge.errors import CaptureError


@dataclass(frozen=True)
class Slot:
    """Stands where a tensor was."""

    name: str


@dataclass(frozen=True)
class Call:
    """A call of a model: its arguments with a `Slot` for each tensor, and the tensors by name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def arguments(self, tensors: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with these tensors in place."""

        def put(value: Any) -> Any:
            return tensors[value.name] if isinstance(value, Slot) else value

        args, kwargs = _map(self.args, put), _map(dict(self.kwargs), put)
        return args, kwargs


def bind(model: nn.Module, inputs: Any) -> Call:
    """The call that `inputs` describe: positional values or keyword values, tensors nested in them as they like.

    Everything that is no tensor is bound as a constant. Raises `CaptureError` for an argument that forward lacks.
    """
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    named = isinstance(inputs, Mapping)
    takes = inspect.signature(model.forward).parameters.values()
    given = _by_keyword(inputs, takes) if named else _by_position(tuple(inputs), takes)
    packed = next((name for name, value in given.items() if isinstance(value, PackedSequence)), None)
    if packed is not None:
        raise CaptureError(
            f"the input {packed} is a packed sequence", "give the padded batch, and its lengths if needed"
        )
    tensors: dict[str, Tensor] = {}
    slots = {name: _cut(value, name, tensors) for name, value in given.items()}
    if not tensors:
        raise CaptureError("no tensor among the sample inputs", "give at least one tensor input")
    return Call((), slots, tensors) if named else Call(tuple(slots.values()), {}, tensors)


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a model gives, by their path: keys, fields and positions joined by dots."""
    if isinstance(value, Tensor):
        yield name or "logits", value
    for key, item in _items(value):
        yield from flatten(item, f"{name}.{key}" if name else str(key))


def left_out(value: Any, name: str = "") -> Iterator[str]:
    """What a model gives that is neither a tensor nor holds any that `flatten` finds: "cache (DynamicCache)"."""
    items = list(_items(value))
    if not isinstance(value, Tensor | str | bytes | bool | int | float | None) and not items and not _is_empty(value):
        yield f"{name or 'the result'} ({type(value).__name__})"
    for key, item in items:
        yield from left_out(item, f"{name}.{key}" if name else str(key))


def nested_get(tree: Any, name: str) -> Any:
    """The entry of a nested value for the tensor of this name; None where the tree has none."""
    if isinstance(tree, Mapping) and name in tree:
        return tree[name]
    found = tree
    for part in name.split("."):
        if isinstance(found, Mapping):
            found = found.get(part, found.get(int(part)) if part.isdigit() else None)
        elif isinstance(found, Sequence) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def _by_position(inputs: tuple[Any, ...], takes: Any) -> dict[str, Any]:
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [p.name for p in takes if p.kind in plain]
    more = next((p.name for p in takes if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if len(known) < len(inputs) and more is None:
        raise CaptureError(
            f"{len(inputs)} positional inputs for a forward with {len(known)} ({', '.join(known)})",
            "leave out what forward does not take, or give the inputs as a dict of keyword arguments",
        )
    rest = [f"{more}.{i}" for i in range(len(inputs) - len(known))]
    return dict(zip([*known, *rest], inputs, strict=False))


def _by_keyword(inputs: Mapping[str, Any], takes: Any) -> dict[str, Any]:
    known = [p.name for p in takes if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not any(p.kind is p.VAR_KEYWORD for p in takes):
        for name in inputs:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                raise CaptureError(
                    f"forward takes no {name!r}" + (f"; did you mean {close[0]}?" if close else ""),
                    f"it takes {', '.join(known) or 'nothing by name'}; a dict that is itself an input: inputs=(dict,)",
                )
    return dict(inputs)


def _cut(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value with slots for its tensors, which go to `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return Slot(name)
    names = iter([f"{name}.{key}" for key, _ in _items(value)])
    return _rebuilt(value, lambda item: _cut(item, next(names), tensors))


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    """The nested value with every leaf changed."""
    if isinstance(value, Slot) or not _items(value):
        return change(value)
    return _rebuilt(value, lambda item: _map(item, change))


def _items(value: Any) -> list[tuple[Any, Any]]:
    """What lies in a container, with keys; nothing for anything else."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(key, getattr(value, key)) for key in value._fields]
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Slot):
        return [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
    return []


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A container of the same kind whose items are changed; anything else as it is."""
    if isinstance(value, Mapping):
        changed = {key: change(item) for key, item in value.items()}
        return changed if type(value) in (dict, Mapping) else _like(value, changed)
    if isinstance(value, tuple | list):
        items = [change(item) for _, item in _items(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Slot):
        return dataclasses.replace(value, **{key: change(item) for key, item in _items(value)})
    return value


def _like(value: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    """A mapping of the user's own type, or a plain dict where that cannot be made from one."""
    kind: Any = type(value)
    try:
        return kind(changed)
    except TypeError:
        return changed


def _is_empty(value: Any) -> bool:
    return isinstance(value, Mapping | tuple | list) and not value
