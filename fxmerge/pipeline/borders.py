"""What must hold of a program where one pass ends and the next begins: small predicates with a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxmerge.errors import VerificationError
from fxmerge.ir.merge import NODES
from fxmerge.ir.program import Program, target_name

REPORT = "nothing was written; report it to the owner of the pass (`fxmerge passes` lists owners)"


@dataclass(frozen=True)
class Property:
    """A named predicate on programs: `wrong` says what is wrong with one, None if nothing is."""

    name: str
    wrong: Callable[[Program], str | None]
    advice: str = REPORT
    """What to do where it does not hold."""


def require_all(properties: Iterable[Property], program: Program, when: str) -> None:
    """Raise `VerificationError` for the first property that does not hold."""
    for each in properties:
        wrong = each.wrong(program)
        if wrong is not None:
            raise VerificationError(f"{when}, the program is not {each.name}: {wrong}", each.advice)


def _left(program: Program) -> str | None:
    """The first merge node, or map, that a program still has."""
    for node in program.graph.nodes:
        if node.target in NODES:
            return f"no weight takes in the {node.target.__name__} at {_place(node)}"
    if program.maps:
        return f"{len(program.maps)} maps are left, the first is {next(iter(program.maps))}"
    return None


def _place(node: fx.Node) -> str:
    """The call that a merge or unmerge stands behind, and its line."""
    call = next((n for n in node.all_input_nodes if n.op == "call_function"), node)
    line = call.meta.get("source") or node.meta.get("source") or "an unknown line"
    return f"{target_name(call.target) if call.op == 'call_function' else call.name} ({line})"


FOLDED = Property(
    "folded",
    _left,
    "leave out the pass that puts a call between a weight and its maps (`fxmerge passes` lists who brought which),"
    ' or let it run on the merged model (stage = "merged")',
)
"""No merge or unmerge map is left: the program is an ordinary network."""


@dataclass(frozen=True)
class Untouched:
    """A program's graph as it was, to tell whether somebody edited it in place."""

    program: Program
    calls: tuple[tuple[fx.Node, Any, Any, Any], ...]

    def require(self, name: str) -> None:
        """Raise `VerificationError` naming the pass if the graph is no longer what it was."""
        now = _calls(self.program)
        same = len(now) == len(self.calls) and all(
            all(x is y for x, y in zip(a, b, strict=True)) for a, b in zip(now, self.calls, strict=True)
        )
        if not same:
            raise VerificationError(
                f"{name} edited the graph of the program that it was given",
                "programs are values: program.copy_graph() gives a graph to edit, program.evolve(graph=…) the next one",
            )


def untouched(program: Program) -> Untouched:
    """A program's graph as it is now."""
    return Untouched(program, _calls(program))


def _calls(program: Program) -> tuple[tuple[fx.Node, Any, Any, Any], ...]:
    return tuple((node, node.target, node.args, node.kwargs) for node in program.graph.nodes)
