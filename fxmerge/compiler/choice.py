"""The method that a user chose, its options set: from `name{option=value,…}` and from flags, YAML and Python alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, get_type_hints

from fxmerge.config import EXCLUDING, MergeConfig, check_excluding
from fxmerge.errors import OptionError
from fxmerge.messages import listed, nearest
from fxmerge.methods.base import Method, Trained
from fxmerge.methods.inits import find_init
from fxmerge.pipeline.extension import Extension
from fxmerge.pipeline.options import parse_options

OF_EVERY_METHOD = frozenset({"name", "summary", "needs_data", "about", "excluding"})
"""What a method says of itself, in fields or otherwise: no options."""


def chosen(known: Extension, config: MergeConfig) -> tuple[Method, Trained]:
    """The method that `config` names with its options set, and how it trains where it does.

    Raises `OptionError` for a method nobody knows, for an option that it does not have, for one given twice, and for
    two of which one would be without effect.
    """
    text, given = config.method, config.of_method()
    name, brace, rest = text.partition("{")
    if brace and not rest.endswith("}"):
        raise OptionError(f"cannot read the method {text!r}", "write it as name{option=value,…}")
    method: Method = known.find("method", name)
    types = options_of(method)
    values = parse_options(name, rest[:-1], types) if brace else {}
    twice = next((option for option in values if option in given), None)
    if twice is not None:
        raise OptionError(f"{twice} is given twice: in {text} and by itself", "leave one of them out")
    for option in given:
        if option not in types:
            raise _refused(known, name, option, types)
    MergeConfig.of(**{option: value for option, value in values.items() if option in MergeConfig.model_fields})
    values |= given
    asked = [option for option, value in values.items() if value is not None and value is not False]
    check_excluding((*EXCLUDING, *getattr(method, "excluding", ())), asked)
    for init in str(values.get("init", "auto")).split("+"):
        if init not in ("auto", "parents"):
            find_init(init)
    fields = {f.name for f in dataclasses.fields(Trained)}
    trained = Trained(**{n: v for n, v in values.items() if n in fields})
    if dataclasses.is_dataclass(method) and values.keys() <= _declared(method).keys():
        method = dataclasses.replace(method, **values)
        own = {n: getattr(method, n) for n in fields if hasattr(method, n)}
        trained = dataclasses.replace(trained, **own)
    return method, trained


def options_of(method: Method) -> dict[str, Any]:
    """The types of a method's options by name.

    They are its fields. A method without any that needs data is taken to train, with the options of `Trained`.
    """
    return _declared(method) or (_fields(Trained) if method.needs_data else {})


def _declared(method: Method) -> dict[str, Any]:
    return _fields(type(method)) if dataclasses.is_dataclass(method) else {}


def _fields(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.name not in OF_EVERY_METHOD and f.init}


def _refused(known: Extension, name: str, option: str, types: Collection[str]) -> OptionError:
    others = [method.name for method in known.methods if option in options_of(method)]
    mine = f"its options are {listed(types, 20)}" if types else "it has none"
    todo = f"leave it out ({mine})" + (f", or choose another method: {listed(others)}" if others else "")
    return OptionError(f"{name} has no option {option!r}{nearest(option, types)}", todo)
