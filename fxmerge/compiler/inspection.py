"""Look at one model, or at what is installed: what `inspect`, `check` and the lists of the command line show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxmerge.coupling import RuleSet
from fxmerge.installed import knowledge, known
from fxmerge.ir.program import Program
from fxmerge.ir.space import Spaces
from fxmerge.pipeline.knowledge import Checked
from fxmerge.sources.load import load

Source = Program | str | Path


@dataclass(frozen=True)
class Examined:
    """A model and its spaces."""

    program: Program
    spaces: Spaces
    described: dict[str, Any]
    """What `inspect --json` prints."""


def examine(source: Source, *, extensions: Sequence[str] = (), **options: Any) -> Examined:
    """Load a model and find its spaces, weights it computes included. `options` are those of `fxmerge.load`."""
    rules, door = _rules(extensions), knowledge()
    program = door.plain(
        source if isinstance(source, Program) else load(source, extensions=extensions, **options), rules
    )
    return Examined(program, door.spaces(program, rules), door.describe(program, rules))


def inspect(source: Source, **options: Any) -> dict[str, Any]:
    """The spaces of a model as plain data: what `inspect --json` prints."""
    return examine(source, **options).described


def blocks_of(program: Program, *, extensions: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of a model's blocks, from the inputs on: what `--share-until` takes."""
    return tuple(block["name"] for block in examine(program, extensions=extensions).described["blocks"])


def check(source: Source, *, seed: int = 0, extensions: Sequence[str] = (), **options: Any) -> Checked:
    """Transform every space of a model at random, in float64; the report says whether its outputs moved."""
    rules, door = _rules(extensions), knowledge()
    program = door.plain(
        source if isinstance(source, Program) else load(source, extensions=extensions, **options), rules
    )
    return door.check(program, rules, seed)


def refusals(sources: Sequence[Source], *, extensions: Sequence[str] = (), **options: Any) -> list[str]:
    """A line for each rewrite of an extension: how often it fired on these models, and why not where it did not."""
    installed = known(extensions)
    if not installed.rewrites:
        return []
    programs = [
        source if isinstance(source, Program) else load(source, extensions=extensions, **options) for source in sources
    ]
    first, *others = [knowledge().trace_rewrites(program, installed) for program in programs]
    lines: list[str] = sum(others, start=first).text().splitlines()
    return lines


def _loaded(source: Source, extensions: Sequence[str], options: Mapping[str, Any]) -> Program:
    return source if isinstance(source, Program) else load(source, extensions=extensions, **options)


def _rules(extensions: Sequence[str]) -> RuleSet:
    return known(extensions).rules


def opaque_notes(programs: Sequence[Program], rules: RuleSet) -> list[str]:
    """A note for every call that holds axes of parameters still."""
    found = [knowledge().spaces(program, rules) for program in programs]
    return [opaque.note for spaces in found for opaque in spaces.opaque]
