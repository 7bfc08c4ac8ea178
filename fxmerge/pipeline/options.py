"""Options of a pass as text and back: `rank=12,order=auto,tails=false`."""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fxmerge.bounds import Within
from fxmerge.errors import OptionError
from fxmerge.messages import nearest

_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_ITEM = re.compile(r"\s*([\w-]+)\s*=\s*(\[[^\]]*\]|\"(?:[^\"\\]|\\.)*\"|[^,\[\]\"]*?)\s*(,|$)")


def shown(value: Any) -> str:
    """An option's value as text: words stand bare, other strings in quotes, sequences in brackets."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, str):
        plain = _WORD.fullmatch(value) and value not in ("true", "false", "none")
        return value if plain else json.dumps(value)
    if isinstance(value, tuple | list):
        return "[" + " ".join(shown(v) for v in value) + "]"
    return repr(value)


def parse_options(owner: str, text: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `name=value,…` for these fields (name -> type). Raises `OptionError` naming what is wrong."""
    found: dict[str, Any] = {}
    place = 0
    while place < len(text.rstrip()):
        item = _ITEM.match(text, place)
        if item is None:
            raise OptionError(f"cannot read the options of {owner} from here: {text[place:]!r}", "write name=value,…")
        name, value, place = item[1].replace("-", "_"), item[2], item.end()
        if name not in fields:
            known = f"its options are: {', '.join(fields)}" if fields else "it has none"
            raise OptionError(f"{owner} has no option {name!r}{nearest(name, fields)}", known)
        if name in found:
            raise OptionError(f"{owner} is given {name} twice", "leave one of them out")
        found[name] = _value(owner, name, value, fields[name])
    return found


def _value(owner: str, name: str, text: str, kind: Any) -> Any:
    for choice in _choices(kind):
        try:
            return _read(text, choice)
        except ValueError:
            continue
    raise OptionError(f"{owner}: {name} cannot be {text!r}", f"it is {_kind_text(kind)}")


def _choices(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union, narrowest first, so that text is the last resort."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    order = [types.NoneType, bool, int, float]
    return tuple(sorted(options, key=lambda k: order.index(k) if k in order else len(order) + (k is str)))


def _read(text: str, kind: Any) -> Any:
    if kind in (None, types.NoneType):
        return _one_of(text, {"none": None})
    if kind is bool:
        return _one_of(text, {"true": True, "false": False})
    if get_origin(kind) is Annotated:
        inner, *bounds = get_args(kind)
        value = _read(text, inner)
        if not all(each.holds(value) for each in bounds if isinstance(each, Within)):
            raise ValueError(text)
        return value
    if kind is int:
        return int(text)
    if kind is float:
        return _finite(float(text))
    if get_origin(kind) is Literal:
        return _one_of(text, {shown(value): value for value in get_args(kind)})
    if get_origin(kind) is tuple:
        return _sequence(text, get_args(kind)[0])
    if kind is str:
        return json.loads(text) if text.startswith('"') else text
    raise ValueError(f"options of type {kind} have no text form")


def _sequence(text: str, kind: Any) -> tuple[Any, ...]:
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(text)
    return tuple(_read(item, kind) for item in text[1:-1].replace(",", " ").split())


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(value)
    return value


def _one_of(text: str, values: Mapping[str, Any]) -> Any:
    if text not in values:
        raise ValueError(text)
    return values[text]


def _kind_text(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}
    parts = []
    for choice in _choices(kind):
        if get_origin(choice) is Literal:
            parts += [shown(value) for value in get_args(choice)]
        elif get_origin(choice) is Annotated:
            inner, *bounds = get_args(choice)
            parts.append(" ".join([_kind_text(inner), *(str(b) for b in bounds if isinstance(b, Within))]))
        elif get_origin(choice) is tuple:
            parts.append(f"a list in brackets, [A B], of {_kind_text(get_args(choice)[0])} each")
        else:
            parts.append(names.get(choice, str(choice)))
    return " or ".join(parts)
