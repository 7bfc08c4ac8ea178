"""What the loss compares: values of the SuperNet that, together, every trainable map is behind.

    output of a task   all of it read from final features       -->  those features, in front of the frozen head
                       a map reaches it on some other path too  -->  the output itself as well
                       answers at many places, if asked for     -->  the output itself, by its kind (`answers`)

So a map that serves any output gets its gradient, whatever the outputs are: by construction, not by luck.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx

from fxmerge.ir.merge import head, merge
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import Feature, SuperNet
from fxmerge.training.answers import kind_of
from fxmerge.training.measures import Kind, Squares

Loss = Literal["auto", "features"]
SQUARES = Kind(Squares)


@dataclass(frozen=True)
class Wanted:
    """A value that the loss compares, and its weight in it. The weights of a task sum to one, inner features aside."""

    feature: Feature
    weight: float
    kind: Kind = field(default=SQUARES, compare=False)
    """How it is measured."""


def wanted(supernet: SuperNet, inner: float = 0.0, loss: Loss = "features") -> tuple[Wanted, ...]:
    """What is compared, each output of a task with the same weight in all; `inner` is that of every inner feature.

    With `loss` "auto" outputs with answers at many places are compared as what they are, not by their features.
    """
    kinds: dict[str, Kind] = {}
    nodes = {port.name: node for port, node in zip(supernet.program.outputs, supernet.program.result, strict=True)}
    weights: dict[str, float] = {}
    known = {f.port: f for f in (*supernet.features, *output_features(supernet))}
    for k in range(len(supernet.parents)):
        own = [f for f in supernet.features if f.parent == k]
        outputs = [f for f in output_features(supernet) if f.parent == k]
        if loss == "auto":
            kinds |= {f.port: kind for f in outputs if (kind := kind_of(supernet, k, f.node)) is not None}
        taught = supernet.parents[k].teacher is not None  # it has no features but its outputs
        found = {
            f.port: [f.port] if taught or f.port in kinds else _of_output(f, own, nodes, supernet.program)
            for f in outputs
        }
        count = sum(bool(ports) for ports in found.values())
        for ports in found.values():
            for port in ports:
                weights[port] = weights.get(port, 0.0) + 1 / (count * len(ports))
    if inner:
        shown = [f.port for f in supernet.features if supernet.parents[f.parent].teacher is None]
        weights |= {port: inner for port in shown if port not in weights}
    return tuple(Wanted(known[port], weight, kinds.get(port, SQUARES)) for port, weight in weights.items())


def output_features(supernet: SuperNet) -> tuple[Feature, ...]:
    """The outputs of all tasks, as places where the SuperNet shows what a parent shows."""
    return tuple(
        Feature(k, f"{parent.task}.{port.name}", node, True)
        for k, parent in enumerate(supernet.parents)
        for port, node in zip(parent.outputs, parent.result, strict=True)
    )


def _of_output(output: Feature, own: Iterable[Feature], nodes: dict[str, fx.Node], program: Program) -> list[str]:
    """The ports that stand for an output: the final features it reads, itself where something trained passes them by.

    An output that has no gradient (a chosen class) is stood for by the features nearest to it.
    """
    final = {nodes[f.port]: f.port for f in own if f.final}
    met, trained = _behind(nodes[output.port], final, program)
    if not trained:
        return met
    if output.node.meta["val"].is_floating_point():
        return list(dict.fromkeys([*met, final.get(nodes[output.port], output.port)]))
    met, _ = _behind(nodes[output.port], {nodes[f.port]: f.port for f in own}, program)
    return met


def _behind(node: fx.Node, features: dict[fx.Node, str], program: Program) -> tuple[list[str], bool]:
    """The features first met on the way from a value to the inputs, and whether something trained is met before."""
    met: list[str] = []
    trained, seen, todo = False, {node}, [node]
    while todo:
        each = todo.pop()
        if each in features:
            met.append(features[each])
            continue
        trained |= each.op == "get_attr" and (each.target in program.maps or each.target in program.parameters)
        todo += [n for n in reads(each) if n not in seen]
        seen.update(reads(each))
    return sorted(met), trained


def reads(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values a call uses; how its weights fold changes no value."""
    values: list[fx.Node] = []
    fx.node.map_arg(
        node.args[: VALUES[node.target]] if node.target in VALUES else (node.args, node.kwargs), values.append
    )
    return values


VALUES: dict[Any, int] = {merge: 2, head: 1}
"""How many arguments of these calls are values."""
