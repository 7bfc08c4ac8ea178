"""Sizes between one model and all parents side by side: where the trunk ends, chosen by size or by what is kept.

    --max-size 1.3    of the places whose model fits, the one at which the closed form keeps the outputs best
    --keep 0.99       from the smallest model on, the first at which every task keeps so much; at last, all apart
    --curve           size against what is kept, at a handful of places

What stays apart is always the end of the graph: a block kept apart in the middle would need its map into the shared
blocks behind it, which are solved for one input only, and a trunk pass for every task from there on; a tail needs
neither. So the choice is one place, and the gain per parameter decides between places, not between single blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fxmerge.compiler.choice import chosen
from fxmerge.compiler.inspection import blocks_of
from fxmerge.compiler.parents import load_parents
from fxmerge.config import MergeConfig
from fxmerge.errors import OptionError
from fxmerge.installed import known
from fxmerge.ir.program import Program
from fxmerge.output.merged import Merged
from fxmerge.result import Point

NOTHING = "input"
"""What is shared in front of all blocks."""
PLACES = 6
"""So many places are measured at most, evenly among the blocks."""
CLOSED = "condense"
"""The method that measures places without training."""

Merge = Callable[..., Merged]


def merge_to_size(parents: Sequence[Any], data: Any, config: MergeConfig, merge: Merge, stages: Any) -> Merged:
    """The merge whose trunk ends where `--max-size` or `--keep` want it, with the points of the curve.

    Raises `OptionError` where no place fits, or where nothing can be measured.
    """
    plain = config.with_options(max_size=None, keep=None, curve=False)
    search = _Search(load_parents(parents, config, data), data, plain, partial(merge, estimated=False))
    until = config.share_until
    if config.max_size is not None:
        until = search.within(config.max_size)
    elif config.keep is not None:
        until = search.keeping(config.keep)
    points = list(search.measured.values())
    if config.curve or config.dry_run:
        points = [search.point(name) for name in handful(search.smaller)]
    merged = merge(parents, data=data, config=plain.with_options(share_until=until), stages=stages)
    if config.max_size is None and not config.gate:  # whose choice has other measures; a gate reads a trunk
        points = [p for p in points if p.shared_until == NOTHING or p.size < search.size(NOTHING)]
    curve = tuple(sorted(points, key=lambda point: point.size))
    merged.facts = replace(merged.facts, curve=curve, notes=(*search.notes, *merged.facts.notes))
    return merged


@dataclass
class _Search:
    programs: list[Program]
    data: Any
    config: MergeConfig
    merge: Merge
    notes: list[str] = field(default_factory=list)
    measured: dict[str, Point] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        template = self.programs[self.config.like]
        self.places = (NOTHING, *blocks_of(template, extensions=self.config.extension))
        """From the largest model to the smallest."""

    @property
    def smaller(self) -> list[str]:
        """Those at which the model is smaller than the parents side by side, and that one."""
        return [NOTHING, *(name for name in self.places[1:] if self.size(name) < self.size(NOTHING))]

    # -- choosing ------------------------------------------------------------------------------------

    def within(self, most: float) -> str:
        """Of the places whose model has at most this size, the one where the closed form keeps the outputs best."""
        least = self.size(self.places[-1])
        if least > most:
            raise OptionError(
                f"--max-size {most:g}: with all blocks shared the model has {least:.3f} times the size of a parent",
                f"give {least + 0.001:.3f} or more, or leave it out",
            )
        every = not self.config.gate and self.size(NOTHING) <= most  # a gate reads what is shared
        fitting = self.places if every else self.places[self._first(most) :]
        tried = [fitting[0], *handful(fitting[1:], PLACES // 2)] if len(fitting) > 1 else [fitting[0]]
        tried = [name for name in tried if self.size(name) <= most] or [self.places[-1]]
        if self.config.dry_run:
            return tried[0]
        points = [self.point(name, CLOSED) for name in tried]
        errors = {p.shared_until: p.error for p in points if p.error is not None}
        if len(errors) < len(points):
            self.notes.append("--max-size: nothing to measure places with, so the largest model that fits is made")
            return tried[0]
        sizes = {name: self.size(name) for name in tried}
        if chosen(known(self.config.extension), self.config)[0].needs_data:  # maps may stay as matrices
            sizes = {p.shared_until: max(p.size, sizes[p.shared_until]) for p in points}
        fits = [name for name in tried if sizes[name] <= most] or [self.places[-1]]
        best = min(fits, key=lambda name: (errors.get(name, 0.0), self.size(name)))
        said = ", ".join(f"{name} {errors[name]:.3f} at {sizes[name]:.2f}" for name in tried)
        self.notes.append(f"--max-size {most:g}: shared until {best}; error of the outputs by {CLOSED} ({said})")
        return best

    def _first(self, most: float) -> int:
        """The number of the first place whose model fits: sizes fall from place to place."""
        low, high = 1, len(self.places) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.size(self.places[middle]) <= most else (middle + 1, high)
        return low

    def keeping(self, wanted: float) -> str:
        """The place with the smallest model of which every task keeps so much: at worst the one that shares nothing."""
        if self.config.dry_run:
            return self.places[-1]
        best: Point | None = None
        for name in reversed(handful(self.places[1:])):
            if self.size(name) >= self.size(NOTHING):
                continue
            point = self.point(name)
            if point.kept is None:
                raise OptionError("--keep: there are no samples to measure with", "give --data TASK=PATH")
            if point.size >= self.size(NOTHING):  # maps that stay as matrices count
                continue
            if point.kept >= wanted:
                return name
            if best is None or best.kept is None or point.kept > best.kept:
                best = point
        said = (
            "there is no smaller one" if best is None else f"{best.kept:.4f} at {best.size:.2f} is the most otherwise"
        )
        less = "" if best is None else f"; --share-until {best.shared_until} gives that one"
        self.notes.append(
            f"--keep {wanted:g}: only parents that share nothing keep so much: the model holds them side by side"
            f" ({said}{less})"
        )
        self.point(NOTHING)
        return NOTHING

    # -- measuring -----------------------------------------------------------------------------------

    def size(self, name: str) -> float:
        """How many times as many parameters as a parent the model has whose trunk ends there."""
        if name not in self.sizes:
            self.sizes[name] = self._merged(name, self.config.with_options(dry_run=True)).facts.merged.size
        return self.sizes[name]

    def point(self, name: str, method: str | None = None) -> Point:
        """What is kept at a place by the method of the merge, or by another one; of a dry run the size alone."""
        config = self.config
        if method is not None and method != config.method:
            own = set(config.of_method()) | {"method"}
            kept = {n: v for n, v in config.model_dump(exclude_unset=True).items() if n not in own}
            config = MergeConfig.of(**kept, method=method)
        key = f"{name} {config.method}"
        if key not in self.measured:
            self.measured[key] = point_of(name, self._merged(name, config).result)
        return self.measured[key]

    def _merged(self, name: str, config: MergeConfig) -> Merged:
        left = {"out": None, "opset": None, "resume": None, "report": None, "gate": False, "answer": "none"}
        config = config.with_options(share_until=name, **left)
        return self.merge(self.programs, data=self.data, config=config)


def point_of(name: str, result: Mapping[str, Any]) -> Point:
    """A point of the curve from what a merge says of itself: of all tasks the one that is kept least."""
    tasks = result["tasks"]
    shown = [out for task in tasks for out in task["outputs"]]
    errors = [out["error"] for out in shown if out["error"] is not None]
    kept = [k for k in map(_kept, tasks) if k is not None]
    return Point(
        name,
        result["merged"]["size"],
        result["merged"]["parameters"],
        result["method"],
        min(kept) if kept else None,
        sum(errors) / len(errors) if errors else None,
    )


def _kept(task: Mapping[str, Any]) -> float | None:
    """The agreement of a task; R² of its outputs where they are no class scores."""
    if task["agreement"] is not None:
        return float(task["agreement"])
    found = [out["r2"] for out in task["outputs"] if out["r2"] is not None]
    return sum(found) / len(found) if found else None


def handful(places: Sequence[str], most: int = PLACES) -> list[str]:
    """At most so many of the places, evenly taken, the first and the last among them."""
    if len(places) <= most:
        return list(places)
    return [places[round(i * (len(places) - 1) / (most - 1))] for i in range(most)]
