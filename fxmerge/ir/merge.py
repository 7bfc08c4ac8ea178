"""The node kinds of a SuperNet, merge and unmerge, and the fold that removes them.

For parents k = 1 … K with widths d_k and a merged width d, a merge map holds M_k (d × d_k) and an unmerge map
U_k (d_k × d). A writer y_k = W_k x_k and its readers become

    y = Σ_k M_k W_k U_k x          W* = Σ_k M_k W_k U_k

(FS-Merge, Kinderman et al. 2025, §4). Everything here holds for any axis of any tensor: a tensor that is linear in
some axes is transformed along each of them. How the weights of a call fold stands in the graph, as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fxmerge.ir.maps import AxisMap


class Weight(NamedTuple):
    """How one operand of a call folds: where it is, and the map of each of its axes that has one."""

    position: int
    """Among the tensor operands of the call."""
    at_root: bool
    """Whether the maps stand at the parents' tensors; otherwise behind the moves that lead to the operand."""
    axes: tuple[int, ...]
    maps: tuple[Any, ...]
    """In a graph the nodes of the maps; when it runs, the maps."""


class Folds(NamedTuple):
    """How the weights of a call, or of every parent's version of it, become one call's weights."""

    template: int
    """The parent whose call the folded one is like."""
    operands: tuple[tuple[Any, ...], ...]
    """`Weight`s as plain tuples: what a graph may hold."""

    @property
    def weights(self) -> list[Weight]:
        return [Weight(*each) for each in self.operands]


def merge(
    values: Sequence[Tensor], axis_map: AxisMap, axis: int, parents: Sequence[int], folds: Folds | None = None
) -> Tensor:
    """Σ_k M_k applied to one axis of each parent's value: from the parents' spaces into the merged one.

    `folds` changes no value: it says how the calls that made `values` become one.
    """
    return _sum([axis_map.to_merged(v, k, axis) for v, k in zip(values, parents, strict=True)])


def unmerge(value: Tensor, axis_map: AxisMap, axis: int, parent: int) -> Tensor:
    """U_k applied to one axis of a merged value: what parent k would see."""
    return axis_map.to_parent(value, parent, axis)


def head(value: Tensor, parent: int, folds: Folds) -> Tensor:
    """`value` as it is: the call of one parent alone, whose weights take in the unmerge maps in front of it."""
    return value


def fold(
    tensors: Sequence[Tensor], axis_maps: Sequence[AxisMap], axes: Sequence[int], parents: Sequence[int]
) -> Tensor:
    """W* = Σ_k of parent k's tensor with a map on each of `axes`: M_k on written axes, U_k on read ones.

    Tensors that write no merged axis are averaged: there is no M_k to weigh them.
    """
    parts = []
    for tensor, k in zip(tensors, parents, strict=True):
        for axis_map, axis in zip(axis_maps, axes, strict=True):
            tensor = axis_map.to_merged(tensor, k, axis)
        parts.append(tensor)
    total = _sum(parts)
    return total if any(axis_map.kind == "merge" for axis_map in axis_maps) else total / len(parts)


Shaped = tuple[Tensor, list[int]]

NODES = frozenset({merge, unmerge, head, fold})
UNFOLDED = "unmerge."
"""How names of matrices begin that are left of maps which folded into no weight."""
"""The call targets that only a SuperNet's graph holds."""


def _merge_shape(
    values: Sequence[Tensor], axis_map: AxisMap, axis: int, parents: Sequence[int], folds: Folds | None = None
) -> Shaped:
    return values[0], _resized(values[0], axis, axis_map.size)


def _unmerge_shape(value: Tensor, axis_map: AxisMap, axis: int, parent: int) -> Shaped:
    return value, _resized(value, axis, axis_map.sizes[parent])


def _head_shape(value: Tensor, parent: int, folds: Folds) -> Shaped:
    return value, list(value.shape)


def _fold_shape(
    tensors: Sequence[Tensor], axis_maps: Sequence[AxisMap], axes: Sequence[int], parents: Sequence[int]
) -> Shaped:
    shape = list(tensors[0].shape)
    for axis_map, axis in zip(axis_maps, axes, strict=True):
        shape[axis] = axis_map.size
    return tensors[0], shape


def _resized(value: Tensor, axis: int, size: int) -> list[int]:
    shape = list(value.shape)
    shape[axis] = size
    return shape


SHAPES: dict[Callable[..., Any], Callable[..., Shaped]] = {
    merge: _merge_shape,
    unmerge: _unmerge_shape,
    head: _head_shape,
    fold: _fold_shape,
}
"""For each node kind, the tensor whose dtype its result has, and the result's shape: known without running it."""


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
