"""Parents with inputs of their own, seen as one trunk: a value is that of the copy behind the task's own stem.

    program        x0 → y0 = f(x0, W) → head 0         one trunk       x0 → y0 → head 0
                   x1 → y1 = f(x1, W) → head 1                              y0 → what task 1 reads of it

What is solved once is then met once, whichever task's rows it is solved from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fxmerge.ir.merge import unmerge
from fxmerge.ir.program import Port, Program, prune
from fxmerge.ir.supernet import SuperNet


@dataclass(frozen=True)
class OneTrunk:
    """A program whose tasks have a trunk each, with the first task's in the place of all."""

    program: Program
    """The first task's trunk and head, and what the other tasks read of theirs."""
    copies: Mapping[fx.Node, tuple[fx.Node, ...]]
    """Per task: the node of the whole program that a node of the trunk stands for."""
    alone: Mapping[fx.Node, tuple[int | None, fx.Node]]
    """The other nodes: the task whose they are (None: everyone's), and the node of the whole program."""
    back: Mapping[fx.Node, fx.Node]
    """By node of the whole program: the node that stands for it here."""
    ports: Mapping[fx.Node, str]
    """By placeholder of the whole program: its input."""

    @classmethod
    def of(cls, net: SuperNet, program: Program | None = None) -> OneTrunk | None:
        """Of a SuperNet's own program, or of one that was made from it; None where tasks share one trunk anyway."""
        if not net.copies:
            return None
        whole = net.program if program is None else program
        groups, owner = _groups(net, whole), _owners(net, whole)
        graph, where = whole.copy_graph()
        first = {member: members[0] for members in groups.values() for member in members}
        for member, node in first.items():
            if member is not node:
                where[member].replace_all_uses_with(where[node])
        shown = [(p, n) for p, n in zip(whole.outputs, whole.result, strict=True) if owner[n] in (0, None)]
        shown += [(_port(n), n) for n in whole if n.target is unmerge and n not in first and owner[n]]
        next(iter(reversed(graph.nodes))).args = (tuple(where[first.get(n, n)] for _, n in shown),)
        prune(graph)
        kept = set(graph.nodes)
        back = {n: where[first.get(n, n)] for n in whole if n.op != "output" and where[first.get(n, n)] in kept}
        made = replace(whole, graph=graph, outputs=tuple(p for p, _ in shown))
        copies = {where[node]: members for node, members in groups.items() if where[node] in kept}
        alone = {where[n]: (owner[n], n) for n in whole if n not in groups and where[n] in kept}
        ports = {n: port.name for n, port in zip(whole.placeholders, whole.inputs, strict=True)}
        return cls(made, copies, alone, back, ports)

    def real(self, node: fx.Node, task: int) -> fx.Node | None:
        """The node of the whole program that is run for a task; None where that task has none."""
        if node in self.copies:
            return self.copies[node][task]
        owner, real = self.alone[node]
        return real if owner in (task, None) else None

    def reads(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values are needed for a node, whichever the task."""
        todo, found, seen = list(self.copies.get(node, ())), dict[fx.Node, None](), set[fx.Node]()
        todo += [] if todo else [self.alone[node][1]]
        while todo:
            for each in todo.pop().all_input_nodes:
                if each in self.back:
                    found[self.back[each]] = None
                elif each not in seen:  # a size that only this task's trunk computes
                    seen.add(each)
                    todo.append(each)
        return list(found)


def _groups(net: SuperNet, program: Program) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """By node of the first task's trunk: those of all tasks, and what these are computed from call by call."""
    names = {node.name: node for node in program}
    found: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for own in net.copies.values():
        todo = [tuple(names[name] for name in own if name in names)]
        while todo:
            nodes = todo.pop()
            if len(nodes) == len(own) == len(set(nodes)) and nodes[0] not in found and _alike(nodes):
                found[nodes[0]] = nodes
                todo += zip(*(_operands(node) for node in nodes), strict=False)
    return found


def _alike(nodes: Sequence[fx.Node]) -> bool:
    calls = {(node.op, node.target if node.op == "call_function" else None, len(_operands(node))) for node in nodes}
    return len(calls) == 1 and nodes[0].op in ("call_function", "placeholder")


def _operands(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _owners(net: SuperNet, program: Program) -> dict[fx.Node, int | None]:
    """The task of every node: that of the inputs it is computed from."""
    task = {name: k for k, names in enumerate(net.inputs) for name in names}
    ports = {node: port.name for node, port in zip(program.placeholders, program.inputs, strict=True)}
    found: dict[fx.Node, int | None] = {}
    for node in program:
        read = (owner for n in node.all_input_nodes if (owner := found[n]) is not None)
        found[node] = task[ports[node]] if node in ports else next(read, None)
    return found


def _port(node: fx.Node) -> Port:
    value = node.meta["val"]
    return Port(node.name, tuple(int(size) for size in value.shape), value.dtype)
