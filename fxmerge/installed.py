"""What is known in this run: the built-in knowledge, installed packages' and that of `--extension`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import passes
from fxmerge.coupling import RuleSet
from fxmerge.errors import ExtensionError
from fxmerge.ir.open_sizes import open_sizes
from fxmerge.methods import METHODS, Method
from fxmerge.pipeline.extension import BUILTIN_OWNER, Extension, collect
from fxmerge.pipeline.knowledge import Knowledge, Plan
from fxmerge.pipeline.passes import Pipeline, Together
from fxmerge.rewrite import operator

Kind = Literal["rules", "rewrites", "passes", "methods"]
Row = tuple[str, str, str]
"""Name, owner, one line."""


def knowledge() -> Knowledge:
    """What the package that knows operators knows. Raises `ExtensionError` if another package of its name hides it."""
    if not hasattr(passes, "KNOWLEDGE"):
        raise ExtensionError(
            f"another package named passes hides fxmerge's own: {getattr(passes, '__file__', 'a namespace package')}",
            "rename it, or run from another folder",
        )
    value: Knowledge = passes.KNOWLEDGE
    return value


def known(extensions: Sequence[str] = ()) -> Extension:
    """Built-in knowledge and methods, those of installed packages, and those of `FILE:NAME`s."""
    return collect(knowledge().builtin + Extension(BUILTIN_OWNER, methods=METHODS), extensions)


def pipeline(known: Extension, plan: Plan) -> Pipeline:
    """Every step of a merge, in order, with the passes of extensions where they ask to be."""
    door = knowledge()
    builtin = set(door.builtin.passes)
    return door.pipeline(plan).having(*(each() for each in known.passes if each not in builtin))


def tracing(rules: RuleSet | None = None) -> AbstractContextManager[None]:
    """Inside, an operator whose rule knows the sizes of its results is traced at sizes that are left open.

    `rules`: those of the run; without them, all that are installed.
    """
    return open_sizes({operator(op): rule.empty for rule in rules or known().rules if rule.empty for op in rule.ops})


def translations(rules: RuleSet | None = None) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Per operator that PyTorch's exporter does not know: how its rule writes it as ONNX."""
    return {operator(op): rule.onnx for rule in rules or known().rules if rule.onnx for op in rule.ops}


def catalogue(kind: Kind, *, extensions: Sequence[str] = ()) -> list[Row]:
    """(name, owner, one line) of everything of a kind; passes as they run, in order."""
    found = known(extensions)
    if kind == "passes":
        return list(_steps(found))
    singular = {"rules": "rule", "rewrites": "rewrite", "methods": "method"}[kind]
    return [(item.name, item.owner, item.summary) for item in found.items if item.kind == singular]


def methods_of(extensions: Sequence[str] = ()) -> list[tuple[Method, str]]:
    """Every method with its owner."""
    found = known(extensions)
    return [(method, found.owner("method", method.name)) for method in found.methods]


def _steps(found: Extension) -> Iterator[Row]:
    for each in pipeline(found, Plan()):
        yield each.name, found.owner("pass", each.name), each.summary()
        if isinstance(each, Together):
            for inner in each.within:
                yield f"  {inner.name}", found.owner("pass", inner.name), f"where it must: {inner.summary()}"
