"""The flags of `fxmerge merge`, made from the fields of `MergeConfig`, so that the two cannot drift apart."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from fxmerge.config import BY_TASK, MergeConfig, parse_by_task

Verb = Callable[..., Any]

METAVARS = {"arch": "FACTORY", "data": "PATH", "key": "NAME", "metric": "KIND"}
"""What an error calls the value of a flag."""


def with_config_flags(verb: Verb) -> Verb:
    """Give a function of `(config, **own flags)` one flag for each field of `MergeConfig`.

    A flag that is not given leaves the value of the file, or the default, in place.
    """
    fields = MergeConfig.model_fields

    def wrapped(**values: Any) -> Any:
        given = {name: values.pop(name) for name in fields}
        return verb(config=config_of(values.pop("config_file"), **given), **values)

    own = [
        p.replace(kind=p.KEYWORD_ONLY)
        for name, p in inspect.signature(verb, eval_str=True).parameters.items()
        if name != "config"
    ]
    file = _parameter(
        "config_file", str | None, typer.Option(None, "--config", help="Read options from YAML; flags override it.",
        metavar="FILE", rich_help_panel="Files", show_default=False),
    )  # fmt: skip
    made = [_parameter(name, _annotation(name, field), _flag(name, field)) for name, field in fields.items()]
    parameters = [*made, file, *own]
    wrapped.__name__, wrapped.__doc__ = verb.__name__, verb.__doc__
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def config_of(file: str | None = None, **given: Any) -> MergeConfig:
    """The config of flags as they were parsed, over those in a file."""
    flags = {name: value for name, value in given.items() if value not in (None, [], ())}
    for name in BY_TASK:
        if name in flags:
            flags[name] = parse_by_task(name, flags[name], METAVARS.get(name, "VALUE"))
    return MergeConfig.load(file, **flags) if file else MergeConfig.of(**flags)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(name: str, field: FieldInfo) -> Any:
    """The type a flag is parsed as; choices and limits are checked by the config, in its own words."""
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) in (tuple, dict):
        return list[str] | None
    return (kind if kind in (bool, int, float) else str) | None


def _flag(name: str, field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    metavar = str(extra["metavar"]) or None
    text = field.description or ""
    if extra["group"] == "argument":
        return typer.Argument(None, help=text, metavar=metavar, show_default=False)
    if field.default is not False and isinstance(field.default, str | int | float):
        text += f" [dim]\\[default: {field.default}][/dim]"
    if metavar is None and field.annotation is not bool:
        metavar = _metavar(field)
    return typer.Option(
        None, f"--{name.replace('_', '-')}", help=text, metavar=metavar, show_default=False,
        rich_help_panel=str(extra["group"]),
    )  # fmt: skip


def _metavar(field: FieldInfo) -> str:
    kinds = [field.annotation, *get_args(field.annotation)]
    choices = [str(choice) for kind in kinds for choice in get_args(kind) or () if isinstance(choice, str)]
    choices = choices or [kind for kind in kinds if isinstance(kind, str)]
    if choices:
        return "|".join(choices)
    return "N" if int in kinds else "X" if float in kinds else "TEXT"
