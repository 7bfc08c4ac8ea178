"""Merge nodes whose one merged call is solved as a whole: its kernel, from what it reads to what it should write.

    merge([conv(unmerge(x, U, k), W_k) for k], M)   -->   conv(x, W*)     W*: ridge regression from patches of x

One U per channel cannot say what a patch says. So W* is no fold of the parents' kernels, and holds beside the maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap
from fxmerge.ir.merge import fold
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.map_nodes import Merge, Unmerge


@dataclass(frozen=True)
class Kernel:
    """The template's call of a merge node, on the merged value itself and with a kernel of merged sizes."""

    call: fx.Node
    read: fx.Node
    """The operand of the call that stands for the merged value."""
    source: fx.Node
    weight: fx.Node
    biases: tuple[fx.Node, ...]
    shape: tuple[int, ...]
    """Of the merged kernel: what it writes first."""
    name: str
    """What the template calls it."""
    bias: str
    """What the template calls what is added, if anything is."""
    parents: tuple[fx.Node, ...]
    """The parents' kernels."""
    maps: tuple[tuple[str, int], ...]
    """The maps that would fold them, and the axis of each."""

    @classmethod
    def of(cls, node: fx.Node, supernet: SuperNet, every: bool = False) -> Kernel | None:
        """The kernel of a merge node: more than a matrix, read by nothing else, at the template's tensor itself.

        With `every` a matrix too, and one that reads what all parents are given.
        """
        merged = Merge.of(node)
        if merged is None or merged.folds is None or merged.folds.template not in merged.parents:
            return None
        calls = [operands(call) for call in merged.calls]
        least = 2 if every else 3
        weights = [w for w in merged.folds.weights if calls[0][w.position].meta["val"].ndim >= least]
        if len(weights) != 1 or not weights[0].at_root or weights[0].axes[:1] != (0,):
            return None
        position = weights[0].position
        tensors = [operands[w.position] for operands in calls for w in merged.folds.weights]
        read = [[n for n in operands if n not in tensors] for operands in calls]
        if any(n.op != "get_attr" or len(n.users) > 1 for n in tensors) or any(len(own) != 1 for own in read):
            return None
        sources = {u.source if (u := Unmerge.of(own[0])) else own[0] if every else None for own in read}
        source = sources.pop()
        if sources or source is None:
            return None
        k = merged.parents.index(merged.folds.template)
        weight = calls[k][position]
        shape = list(weight.meta["val"].shape)
        maps = tuple((str(m.target), axis) for m, axis in zip(weights[0].maps, weights[0].axes, strict=True))
        for axis_map, axis in maps:
            shape[axis] = supernet.program.maps[axis_map].size
        biases = tuple(n for n in calls[k] if n in tensors and n is not weight)
        name, bias = (supernet.program.origins[str(n.target)][1] for n in (weight, biases[0] if biases else weight))
        theirs = tuple(own[position] for own in calls)
        found = cls(merged.calls[k], read[k][0], source, weight, biases, tuple(shape), name, bias, theirs, maps)
        return found if found._is_linear(merged.axis) else None

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the call gives with these in the place of its operands."""
        given: dict[fx.Node, Any] = dict.fromkeys(self.biases, bias)
        given |= {self.read: x, self.weight: weight}
        args, kwargs = fx.node.map_arg((self.call.args, self.call.kwargs), lambda n: given[n])
        target: Any = self.call.target
        result: Tensor = target(*args, **kwargs)
        return result

    def folded(self, tensors: Mapping[str, Tensor], maps: Mapping[str, AxisMap], parents: Sequence[int]) -> Tensor:
        """The kernel that the maps give, as a matrix (writes × features)."""
        names, axes = zip(*self.maps, strict=True)
        wide = [tensors[str(n.target)].detach().double() for n in self.parents]
        return fold(wide, [maps[name] for name in names], axes, parents).flatten(1)

    def solved(self, matrix: Tensor, constant: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """By the template's names: the kernel that is this matrix (writes × features), and its bias if it has one."""
        found = {self.name: matrix.reshape(self.shape).to(dtype)}
        return found | {self.bias: constant.to(dtype)} if self.biases else found

    def features(self, x: Tensor) -> Tensor:
        """What the kernel is multiplied with: the call with every kernel of a single one, along the axis it writes."""
        size = prod(self.shape[1:])
        eye = torch.eye(size, dtype=x.dtype).reshape(size, *self.shape[1:])
        return self.run(x, eye)

    def _is_linear(self, axis: int) -> bool:
        """Whether features times kernel is what the call gives: one group, what is written first, nothing beside."""
        generator = torch.Generator().manual_seed(0)
        shape = self.source.meta["val"].shape
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        try:
            whole, features = self.run(x, weight), self.features(x)
        except (RuntimeError, TypeError, KeyError):
            return False
        found = torch.tensordot(features, weight.flatten(1), ([axis], [1])).movedim(-1, axis)
        return found.shape == whole.shape and bool(torch.allclose(found, whole))


def operands(call: fx.Node) -> list[fx.Node]:
    """The tensor operands of a call, in order."""
    found: list[fx.Node] = []
    fx.node.map_arg(
        (call.args, call.kwargs), lambda n: found.append(n) if isinstance(n.meta.get("val"), Tensor) else None
    )
    return found
