"""What is known in this run: the built-in passes, installed packages' and those of `--extension`."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Literal

from fxmerge.errors import ExtensionError
from fxmerge.pipeline.extension import Extension, collect

Kind = Literal["rules", "rewrites", "passes", "methods"]


def passes() -> ModuleType:
    """The package that knows operators. Raises `ExtensionError` if another package of that name hides it."""
    import passes as found

    if not hasattr(found, "BUILTIN"):
        raise ExtensionError(
            f"another package named passes hides fxmerge's own: {getattr(found, '__file__', 'a namespace package')}",
            "rename it, or run from another folder",
        )
    return found


def known(extensions: Sequence[str] = ()) -> Extension:
    """Built-in knowledge, that of installed packages, and that of `FILE:NAME`s."""
    return collect(passes().BUILTIN, extensions)


def catalogue(kind: Kind, *, extensions: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    """(name, owner, one line) of everything of a kind."""
    items = known(extensions).items
    singular = {"rules": "rule", "rewrites": "rewrite", "passes": "pass", "methods": "method"}[kind]
    return [(item.name, item.owner, item.summary) for item in items if item.kind == singular]
