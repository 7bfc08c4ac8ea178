"""Steps that ran, kept until what came of them is known to be right; and which of them is to blame if it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from fxmerge.ir.program import Program
from fxmerge.pipeline.passes import Known, Pass, Together, Use, Watcher, use_of
from fxmerge.rewrite import Match, Refusal, Rewrite


@dataclass(frozen=True)
class Step:
    """One pass that ran, on one program."""

    done: Pass
    before: Program
    after: Program


@dataclass
class Record:
    """A watcher that remembers, and tells the one behind it."""

    behind: Watcher | None = None
    steps: list[Step] = field(default_factory=list)

    def __call__(self, done: Pass, before: Program, after: Program, seconds: float) -> None:
        told = isinstance(done, Together) and any(step.after is after for step in self.steps)  # by what is within it
        if after is not before and not told:
            self.steps.append(Step(done, before, after))
        if self.behind is not None:
            self.behind(done, before, after, seconds)

    def between(self, first: Program, last: Program) -> list[Step]:
        """The steps that led from one program to another."""
        found: list[Step] = []
        while last is not first:
            step = next((each for each in self.steps if each.after is last), None)
            if step is None:
                break
            found.append(step)
            last = step.before
        return found[::-1]


@dataclass(frozen=True)
class Fired:
    """A rewrite that fired, and the source line of what it replaced."""

    name: str
    source: str | None


def guilty_rewrite(step: Step, known: Known, wrong: Callable[[Program], bool]) -> Fired | None:
    """The rewrite whose firing made a step's program wrong, found by stopping the step after ever fewer firings.

    None if it is not the fault of one: the step is wrong without any, or right when it runs again.
    """

    def stopped(most: int) -> tuple[bool, list[Fired]]:
        fired: list[Fired] = []
        use = use_of(step.done, known)
        limited = tuple(_limited(each, most, fired) for each in use.rewrites)
        return wrong(step.done.run(step.before, Use(use.rules, limited))), fired

    is_wrong, fired = stopped(1 << 40)
    if not is_wrong or stopped(0)[0]:
        return None
    right, bad = 0, len(fired)
    while bad - right > 1:
        middle = (right + bad) // 2
        if stopped(middle)[0]:
            bad = middle
        else:
            right = middle
    return fired[bad - 1]


def _limited(each: Rewrite, most: int, fired: list[Fired]) -> Rewrite:
    """A rewrite that counts its firings with the others and refuses when there were enough."""

    def replaced(match: Match) -> fx.Node | Refusal:
        if len(fired) >= most:
            return Refusal("it was stopped here")
        made = each.replace(match)
        if isinstance(made, fx.Node):
            fired.append(Fired(each.name, match.root.meta.get("source")))
        return made

    return replace(each, replace=replaced)


def names(steps: Sequence[Step]) -> str:
    """The passes that ran, for a message."""
    return ", ".join(dict.fromkeys(step.done.name for step in steps))
