"""Compute every fold: the SuperNet becomes an ordinary network.

fold([W_1 … W_K], maps, axes)   -->   one tensor          unmerge(x, U, k)   -->   linear(x, U_k)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap
from fxmerge.ir.merge import UNFOLDED, fold, head, unmerge
from fxmerge.ir.program import Program, prune

_linear = torch.ops.aten.linear.default
_permute = torch.ops.aten.permute.default


def fold_merge(program: Program, tasks: Sequence[str], template: int, *, tails: bool = True) -> Program:
    """A hoisted SuperNet with its maps multiplied into weights, in float64.

    Trunk weights carry the template's names, the weights of task t's head "t.NAME"; what a parent had as a buffer (a
    fixed table) is one again. `tails=False` keeps the unmerge nodes and folds only what all parents share.
    """
    graph, where = program.copy_graph()
    tensors = dict(program.tensors)
    parameters = set(program.parameters)
    names = {origin.name for origin in program.origins.values() if origin.owner == template}
    for node in program.graph.nodes:
        if node.target is head and tails:
            where[node].replace_all_uses_with(where[node].all_input_nodes[0])
            continue
        own = tails and node.target in program.origins and any(user.target is not fold for user in node.users)
        if node.target is fold or own:
            name, trained, shared = _name(node, program, tasks, template)
            name = unused(name, tensors if shared else tensors.keys() | names)
            tensors[name] = program.tensors[str(node.target)] if own else _value(node, program)
            parameters.update({name} if trained else ())
            _replace(where[node], name)
    if tails:
        _lower_unmerge(graph, program, tensors, parameters)
    prune(graph)
    return program.evolve(graph=graph, tensors=tensors, parameters=frozenset(parameters))


def _replace(node: fx.Node, name: str) -> None:
    """Let everything but folds read a new tensor in place of a node."""
    with node.graph.inserting_before(node):
        folded = node.graph.get_attr(name)
    folded.meta = {"by": "fold-merge"}
    node.replace_all_uses_with(folded, delete_user_cb=lambda user: user.target is not fold)


def _name(node: fx.Node, program: Program, tasks: Sequence[str], template: int) -> tuple[str, bool, bool]:
    """What a folded tensor is called (the template's name where parents share it, else "task.name"), trained, shared.

    Where "task.name" is the name of another tensor of the template, it is left to that one.
    """
    args: tuple[Any, ...] = node.args
    value, shared = node, False
    if node.target is fold:
        values, parents = args[0], list(args[3])
        shared = len(parents) > 1
        value = values[parents.index(template) if shared else 0]
    while value.op != "get_attr":
        value = value.all_input_nodes[0]
    origin = program.origins[str(value.target)]
    return origin.name if shared else f"{tasks[origin.owner]}.{origin.name}", origin.trained, shared


def unused(name: str, taken: Collection[str]) -> str:
    """A name that is not taken yet: the given one, or one with a number behind it."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def _value(node: fx.Node, program: Program) -> Tensor:
    """What a fold computes, in float64, in its parents' dtype."""
    args: tuple[Any, ...] = node.args
    values, maps, axes, parents = args
    wide = [_tensor(v, program).to(torch.float64) for v in values]
    with torch.no_grad():
        modules = [_axis_map(program, m) for m in maps]
        folded = fold(wide, modules, axes, parents)
    return folded.to(_tensor(values[0], program).dtype)


def _axis_map(program: Program, node: object) -> AxisMap:
    assert isinstance(node, fx.Node)
    module = program.maps[str(node.target)]
    assert isinstance(module, AxisMap)
    return module


def _tensor(node: fx.Node, program: Program) -> Tensor:
    """A parent's tensor, or what moves make of it (several, where the last one splits it)."""
    if node.op == "get_attr":
        return program.tensors[str(node.target)].detach()

    def value(n: fx.Node) -> Any:
        split = isinstance(n.meta.get("val"), tuple | list)
        return _tensor(n, program) if split or isinstance(n.meta.get("val"), Tensor) else n.meta["val"]

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    target: Any = node.target
    result: Tensor = target(*args, **kwargs)
    return result


def _lower_unmerge(graph: fx.Graph, program: Program, tensors: dict[str, Tensor], parameters: set[str]) -> None:
    """Write the unmerge nodes that are left (before outputs, or where no weight follows) as linear calls."""
    for node in list(graph.nodes):
        if node.target is not unmerge:
            continue
        args: tuple[Any, ...] = node.args
        x, axis_map, axis, k = args
        module = _axis_map(program, axis_map)
        with torch.no_grad():
            matrix = module.to_parent(torch.eye(module.size, dtype=torch.float64), k, 1).T
        if matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype)):
            node.replace_all_uses_with(x)
            continue
        name = unused(f"{UNFOLDED}{str(axis_map.target).rpartition('.')[2]}.{k}", tensors)
        shown: Tensor = node.meta["val"]  # what it reads may be another such call, written anew and with no value yet
        tensors[name] = matrix.to(shown.dtype).contiguous()
        parameters.add(name)
        rank = shown.ndim
        order = [i for i in range(rank) if i != axis] + [axis]
        with graph.inserting_before(node):
            weight = graph.get_attr(name)
            if axis == rank - 1:
                result = graph.call_function(_linear, (x, weight))
            else:
                last = graph.call_function(_permute, (x, order))
                back = [order.index(i) for i in range(rank)]
                result = graph.call_function(_permute, (graph.call_function(_linear, (last, weight)), back))
        node.replace_all_uses_with(result)
