"""A template wider than its parent: the same graph with every merged width a multiple."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call, RuleSet
from fxmerge.errors import OptionError
from fxmerge.ir.program import Program
from fxmerge.ir.space import AxisExpr, Cat, Leaf, Prod
from passes.supernet.site import Sites
from passes.supernet.sites import SitesOf

INNER = frozenset({"query_key", "value_output"})
"""Roles that keep their width: attention gets more heads, not wider ones, so its scale stays right."""


def widen(program: Program, rules: RuleSet, factor: float) -> Program:
    """`program` with every mergeable space that tolerates permutations `factor` times as large; new entries are zero.

    Raises `OptionError` where an operator cannot run at the new sizes.
    """
    sites = program.get(SitesOf(rules))
    try:
        return resize(program, sites, _sizes(sites, factor))[0]
    except (RuntimeError, ValueError, IndexError) as error:  # an operator met a size it cannot take
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OptionError(
            f"{program.task} does not run at --width-scale {factor:g}: {line}", "choose another factor, or leave it out"
        ) from error


def resize(program: Program, sites: Sites, sizes: Mapping[str, int]) -> tuple[Program, dict[fx.Node, fx.Node]]:
    """`program` with spaces of other sizes (by space id; the others keep theirs), and where each node went."""
    graph, where = program.copy_graph()
    for node in program.graph.nodes:
        if node.op == "call_function":
            _resize_call(node, where[node], sites, sizes)
    tensors = {
        name: _resize_tensor(t, sites.spaces.tensors.get(name, ()), sizes) for name, t in program.tensors.items()
    }
    return program.evolve(graph=graph, tensors=tensors), where


def _sizes(sites: Sites, factor: float) -> dict[str, int]:
    sizes = {}
    for name, space in sites.spaces.spaces.items():
        grows = name in sites.mergeable and space.movable and space.role not in INNER
        sizes[name] = max(1, round(space.size * factor)) if grows else space.size
    return sizes


def _size(axis: AxisExpr, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, Leaf):
        return sizes.get(axis.space, axis.size)
    children = [_size(child, sizes) for child in axis.children]
    return prod(children) if isinstance(axis, Prod) else sum(children)


def _resize_tensor(tensor: Tensor, axes: tuple[AxisExpr, ...], sizes: Mapping[str, int]) -> Tensor:
    """The tensor at the new sizes: its own values where it has them, zeros elsewhere."""
    for number, axis in enumerate(axes):
        index, size = _positions(axis, sizes)
        if size != axis.size:
            moved = tensor.movedim(number, 0)
            tensor = (
                moved.new_zeros(size, *moved.shape[1:]).index_copy(0, index.to(tensor.device), moved).movedim(0, number)
            )
    return tensor.contiguous()


def _positions(axis: AxisExpr, sizes: Mapping[str, int]) -> tuple[Tensor, int]:
    """Where each old position of an axis stands in the new one (clipped where it shrank), and the new size."""
    if isinstance(axis, Leaf):
        size = sizes.get(axis.space, axis.size)
        return torch.arange(axis.size).clamp_max(size - 1), size
    index, total = torch.zeros(1, dtype=torch.long), 0
    if isinstance(axis, Cat):
        parts = []
        for child in axis.children:
            inner, size = _positions(child, sizes)
            parts.append(inner + total)
            total += size
        return torch.cat(parts), total
    total = 1
    for child in axis.children:
        inner, size = _positions(child, sizes)
        index = (index[:, None] * size + inner).reshape(-1)
        total *= size
    return index, total


def _resize_call(old: fx.Node, new: fx.Node, sites: Sites, sizes: Mapping[str, int]) -> None:
    """Write the new sizes where a call spells sizes out."""
    given = Call.of(old).arguments
    axes = sites.spaces.axes.get(old, ())
    args = list(new.args)
    place = {name: number for number, name in enumerate(given) if number < len(args)}
    split = next((place[name] for name in ("split_size", "split_sizes") if name in place), None)
    groups = given.get("groups")
    if split is not None and isinstance(old.meta.get("val"), tuple | list):
        parts = [part[_dim(old)] for part in axes]  # type: ignore[index]
        found = [_size(part, sizes) for part in parts]
        args[split] = found[0] if isinstance(args[split], int) else found
    elif {"dim", "start", "end"} <= given.keys():
        args = _resize_slice(old, args, sites, sizes, [place[name] for name in ("start", "end") if name in place])
    elif "groups" in place and isinstance(groups, int) and groups > 1:
        _, channels, *_ = sites.spaces.axes[old.all_input_nodes[0]]
        if groups == channels.size:  # one filter a channel
            args[place["groups"]] = _size(channels, sizes)
    elif isinstance(old.meta.get("val"), Tensor):
        args = [_resize_list(each, axes, sizes) for each in args]
        left = list(axes)
        for at in (place[name] for name in sites.operators.sizes(old) if name in place):
            axis = next((axis for axis in left if isinstance(args[at], int) and axis.size == args[at]), None)
            if axis is not None:
                left.remove(axis)
                args[at] = _size(axis, sizes)
    new.args = tuple(args)


def _resize_slice(
    old: fx.Node, args: list[Any], sites: Sites, sizes: Mapping[str, int], borders: Sequence[int]
) -> list[Any]:
    known = sites.spaces.axes.get(old.all_input_nodes[0])
    if known is None:  # a constant that no parameter meets
        return args
    axis = known[_dim(old)]
    index, size = _positions(axis, sizes)
    if size == axis.size:
        return args
    for place in borders:
        if isinstance(args[place], int) and args[place] < axis.size:
            at = args[place] % axis.size
            args[place] = int(index[at]) if at else 0
    return args


def _resize_list(given: Any, axes: Sequence[AxisExpr], sizes: Mapping[str, int]) -> Any:
    """An argument that spells out the sizes of the result, or of its last axes, at the new sizes."""
    if not isinstance(given, list | tuple) or not 0 < len(given) <= len(axes):
        return given
    pairs = list(zip(given, axes[len(axes) - len(given) :], strict=True))
    numbers = [(size, axis) for size, axis in pairs if isinstance(size, int)]
    if any(size not in (axis.size, -1) for size, axis in numbers) or any(isinstance(size, Tensor) for size in given):
        return given
    return [_literal(size, axis, sizes) for size, axis in pairs]


def _literal(given: Any, axis: AxisExpr, sizes: Mapping[str, int]) -> Any:
    """A spelt-out size at the new sizes; symbols and -1 stay."""
    return _size(axis, sizes) if isinstance(given, int) and given == axis.size else given


def _dim(node: fx.Node) -> int:
    rank: int = node.all_input_nodes[0].meta["val"].ndim
    return int(Call.of(node).arguments["dim"]) % rank
