"""The HTML report of a merge: one page that needs nothing else, a table of sections, each a function and a template."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxmerge.cli.answers import shown_answers
from fxmerge.cli.inspect_page import HUES
from fxmerge.cli.picture import draw
from fxmerge.cli.report import CHECKS, eval_command, gate_line, templates
from fxmerge.compiler.comparison import Row
from fxmerge.compiler.inspection import examine
from fxmerge.config import MergeConfig
from fxmerge.errors import FxmergeError
from fxmerge.messages import reason
from fxmerge.output.insight import blocks
from fxmerge.output.latency import latencies
from fxmerge.output.merged import Merged

Shown = Mapping[str, Any] | None
DRAWN = 40
"""Blocks of a model that are drawn at most: a page stays small."""


@dataclass(frozen=True)
class Page:
    """What a report is made of: figures, and the model where it is at hand."""

    result: Mapping[str, Any]
    config: MergeConfig
    merged: Merged | None = None
    rows: Sequence[Row] = ()
    """Other methods on the same parents, where they were run."""


def html(result: Mapping[str, Any], config: MergeConfig, merged: Merged | None = None, rows: Sequence[Row] = ()) -> str:
    """The page. A section that cannot be made says why: a report is no reason to lose a merge."""
    page, sections = Page(result, config, merged, rows), []
    for name, section in SECTIONS.items():
        try:
            shown = section(page)
        except (FxmergeError, RuntimeError, ValueError, KeyError, TypeError, IndexError, OSError) as error:
            shown = {"failed": f"{type(error).__name__}: {reason(error)}"}
        if shown is not None:
            sections.append((name, shown))
    return templates().get_template("report.html.j2").render(result=result, sections=sections)


def _tasks(page: Page) -> Shown:
    figures = {task["task"]: task for task in page.result["tasks"]}
    gate = gate_line(page.result["gate"]) if page.result.get("gate") else ""
    return {"figures": figures, "gate": gate, "eval": eval_command(page.result)}


def _methods(page: Page) -> Shown:
    return {"rows": page.rows} if page.rows else None


def _stages(page: Page) -> Shown:
    staged = [task for task in page.result["tasks"] if task.get("stages")]
    return {"staged": staged} if staged else None


def _size(page: Page) -> Shown:
    return {"total": sum(parent["parameters"] for parent in page.result["parents"])}


def _latency(page: Page) -> Shown:
    merged = page.merged
    if merged is None or merged.insight is None or merged.insight.samples is None:
        return None
    given = merged.insight.given(merged.program)
    timed = latencies(merged.program, merged.parents, given)
    return {"timed": timed, "most": max(each.milliseconds for each in timed)}


def _verification(page: Page) -> Shown:
    found = page.result["checks"]
    return {"checks": [(what, found.get(key)) for key, what in CHECKS] if found else []}


def _training(page: Page) -> Shown:
    training = page.result["training"]
    if not training:
        return None
    losses, total = training.get("losses") or (), training["steps"]
    every = max(1, total // 100)
    trained = [(every * i + 1, loss) for i, loss in enumerate(losses)]
    return {"training": training, "curves": curves(trained, training.get("held_back") or (), steps=total)}


def _mixed(page: Page) -> Shown:
    if page.merged is None or page.merged.insight is None or not page.merged.insight.mixed:
        return None
    pictures = [(each, [_cells(matrix.tolist()) for matrix in each.parents]) for each in page.merged.insight.mixed]
    return {"pictures": pictures, "tasks": page.merged.tasks}


def _blocks(page: Page) -> Shown:
    merged = page.merged
    found = blocks(merged.program, merged.insight) if merged is not None and merged.insight is not None else {}
    return {"blocks": found, "tasks": merged.tasks} if found and merged is not None else None


def _answers(page: Page) -> Shown:
    merged = page.merged
    if merged is None or merged.insight is None or merged.insight.samples is None:
        return None
    return {"tasks": shown_answers(merged, merged.insight, page.config.metric)}


def _spaces(page: Page) -> Shown:
    if page.merged is None or page.merged.insight is None:
        return None
    template = page.merged.parents[page.merged.insight.supernet.template]
    found = examine(template, extensions=page.config.extension)
    picture = draw(found.program, found.spaces, list(found.described["spaces"]))
    if len(picture.blocks) > DRAWN:
        raise ValueError(f"{len(picture.blocks)} blocks are too many to draw here; `fxmerge inspect --html` draws them")
    return {"picture": picture, "hues": HUES, "task": template.task}


def _sizes(page: Page) -> Shown:
    points = page.result.get("curve", ())
    return {"points": points, "places": places(points)} if points else None


def _run(page: Page) -> Shown:
    options = page.config.model_dump(exclude_defaults=True)
    return {"options": {name.replace("_", "-"): value for name, value in options.items()}}


SECTIONS: Mapping[str, Callable[[Page], Shown]] = {
    "tasks": _tasks, "methods": _methods, "stages": _stages, "size": _size, "latency": _latency,
    "verification": _verification, "training": _training, "blocks": _blocks, "answers": _answers, "mixed": _mixed,
    "spaces": _spaces, "sizes": _sizes, "run": _run,
}  # fmt: skip
"""In the order of the page; `templates/report/NAME.html.j2` shows what a section returns, None leaves it out."""


def curves(*found: Sequence[tuple[int, float]], steps: int, width: int = 640, height: int = 160) -> list[str]:
    """Points of an SVG polyline for each curve: losses on one logarithmic axis over the steps."""
    known = [[(x, math.log(y)) for x, y in curve if y > 0 and math.isfinite(y)] for curve in found]
    every = [y for curve in known for _, y in curve]
    if len(every) < 2:
        return []
    low, span = min(every), (max(every) - min(every)) or 1.0
    return [
        " ".join(f"{width * x / max(steps, 1):.1f},{height * (low + span - y) / span:.1f}" for x, y in curve)
        for curve in known
    ]


def places(points: Sequence[Mapping[str, Any]], width: int = 640, height: int = 160) -> list[tuple[float, float]]:
    """Where the points of size against what is kept stand in a picture: smallest size left, most kept on top."""
    known = [(point["size"], point["kept"]) for point in points if point["kept"] is not None]
    if len(known) < 2:
        return []
    left, right = min(x for x, _ in known), max(x for x, _ in known)
    low = min(y for _, y in known)
    across, up = (right - left) or 1.0, (1 - low) or 1.0
    return [(width * (x - left) / across, height * (1 - y) / up) for x, y in known]


def _cells(matrix: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A matrix as one picture: its rows and columns, and (x, y, share of the largest) of what is not nearly zero."""
    most = max((value for row in matrix for value in row), default=0.0) or 1.0
    cells = [(x, y, value / most) for y, row in enumerate(matrix) for x, value in enumerate(row)]
    return {
        "width": len(matrix[0]) if matrix else 0,
        "height": len(matrix),
        "cells": [(x, y, round(share, 2)) for x, y, share in cells if share >= 0.05],
    }
