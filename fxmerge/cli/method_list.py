"""What `fxmerge methods` prints: a line a method where there is room, else two; or JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxmerge.methods.about import about_of
from fxmerge.methods.base import Method
from fxmerge.pipeline.extension import BUILTIN_OWNER

SAMPLES = {"yes": "needs samples", "optional": "samples optional", "no": "no samples"}
ROOMY = 160
"""Columns from which a method takes one line."""
HEADINGS = ("method", "what", "", "samples", "trained", "parents", "looks for", "source")


def described(method: Method, owner: str) -> dict[str, Any]:
    """Everything said of a method, for programs; what an extension's method does not say is null."""
    about = about_of(method)
    facts = None if about is None else {
        "trained": about.trained, "parents": about.parents, "widths": about.widths, "depths": about.depths,
        "groups": list(about.groups), "source": about.source, "uses_data": method.needs_data or about.tuned,
    }  # fmt: skip
    return {
        "name": method.name, "owner": owner, "summary": method.summary, "needs_data": method.needs_data,
        **(facts or dict.fromkeys(("trained", "parents", "widths", "depths", "groups", "source", "uses_data"))),
    }  # fmt: skip


def listed(found: Iterable[tuple[Method, str]], width: int) -> RenderableType:
    """The methods with their owners, as wide as `width` allows."""
    rows = [_row(method, owner) for method, owner in found]
    if width >= ROOMY:
        table = Table(*HEADINGS, box=None, pad_edge=False)
        for column in table.columns[:1]:
            column.no_wrap = True
        for name, *rest in rows:
            table.add_row(Text(name, style="bold"), *map(Text, rest))
        return table
    indent = 2 + max(len(name) for name, *_ in rows)
    parts: list[RenderableType] = []
    for name, what, owner, samples, trained, *rest in rows:
        needs = [SAMPLES[samples], *(["trained"] if trained == "yes" else [])]
        facts = " · ".join([*needs, *(each for each in rest if each)])
        table = Table.grid()
        table.add_column(width=indent)
        table.add_column()
        table.add_row(Text(name, style="bold"), Text(f"{what} {owner}".rstrip()))
        table.add_row("", Text(facts, style="dim"))
        parts.append(table)
    return Group(*parts)


def _row(method: Method, owner: str) -> tuple[str, ...]:
    about = about_of(method)
    whose = "" if owner == BUILTIN_OWNER else f"from {owner}"
    known = ("", "", "", "")
    if about is not None:
        own = "fxmerge's own" if owner == BUILTIN_OWNER else ""
        known = ("yes" if about.trained else "no", about.suits, ", ".join(about.groups), about.source or own)
    samples = "yes" if method.needs_data else "optional" if about is not None and about.tuned else "no"
    return (method.name, method.summary, whose, samples, *known)
