"""From an alignment to the maps of a SuperNet: M shares every merged unit among the parents that have it, U goes back.

M_k = (C_k of the space) / (how many parents' units are in it)      U_k = C_kᵀ      P_k a permutation: [I/K, P_k/K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxmerge.errors import OptionError
from fxmerge.ir.maps import AxisMap, Form, Map
from fxmerge.ir.space import AxisExpr, Leaf, leaves, pieces
from fxmerge.ir.supernet import Own, SuperNet
from fxmerge.methods.alignment.layout import FoldedNorm
from fxmerge.methods.alignment.solve import Alignment, Path
from fxmerge.methods.map_nodes import Block, blocks_of

EPSILON = 1e-12
RIDGE = 1e-12
"""Of the least squares for shifts: a coordinate with scale zero has none."""


@torch.no_grad()
def aligned(alignment: Alignment, form: Form, seed: int = 0, weights: Sequence[float] | None = None) -> SuperNet:
    """The SuperNet with every map and own tensor set from an alignment, its maps in this form.

    The parents count alike, or by their `weights`. Raises `OptionError` if maps of low rank cannot hold the alignment:
    they hold orders and signs, no turns.
    """
    weights = weights or [1.0] * alignment.layout.count
    supernet = alignment.layout.supernet.start(weights)
    generator = torch.Generator().manual_seed(seed)
    for name, block in carried_blocks(supernet):
        matrices = matrices_of(alignment, name, block, weights)
        if matrices is not None:
            _set(block.map, matrices, form, generator)
        else:
            block.map.start([block.map.matrix(k) for k in range(len(block.map.sizes))], form, generator)
    tensors = dict(supernet.program.tensors)
    tensors |= {n: value.to(tensors[n].dtype) for n, value in own_tensors(alignment, weights).items()}
    return supernet.with_program(supernet.program.evolve(tensors=tensors))


def carried_blocks(supernet: SuperNet) -> list[tuple[str, Block]]:
    """Every map of a SuperNet once, as a block of an axis, with the name of that axis' maps."""
    found: dict[int, tuple[str, Block]] = {}
    for name, place in supernet.places.items():
        module = supernet.program.maps[name]
        assert isinstance(module, AxisMap)
        for block in blocks_of(module, place):
            found.setdefault(id(block.map), (name, block))
    return list(found.values())


def matrices_of(alignment: Alignment, name: str, block: Block, weights: Sequence[float]) -> list[Tensor] | None:
    """What a map holds of an alignment, one matrix per parent; None where its spaces are not aligned."""
    held = block.map
    scales = {norm.space: norm.scales for norm in alignment.layout.norms if name in norm.reads}
    carried = [_Product(alignment.at(held), scales).of(block.factors, own, k) for k, own in enumerate(block.theirs)]
    if any(f is None or f[0].shape != (held.size, held.sizes[k]) for k, f in enumerate(carried)):
        return None
    to, back = [f[0] for f in carried if f], [f[1] for f in carried if f]
    if held.kind == "unmerge":
        return back
    found = shared(to, back, weights, alone=held.alone or held.kind == "turn")
    for scale in (scale for scale in alignment.layout.scales if scale.merge == name):
        found = [matrix * factors.to(matrix.device) for matrix, factors in zip(found, scale.values, strict=True)]
    return found


def own_tensors(alignment: Alignment, weights: Sequence[float]) -> dict[str, Tensor]:
    """The parents' mean of every tensor that no map carries."""
    layout, found = alignment.layout, {}
    for norm in layout.norms:
        if norm.scale:
            found[norm.scale] = torch.ones_like(norm.scales[0])
        if norm.shift:
            found[norm.shift] = _shift(alignment, norm, weights)
    for scale in layout.scales:
        found[scale.tensor] = torch.ones_like(layout.supernet.program.tensors[scale.tensor])
    return {
        n: _average(alignment.at(n), n, own, weights) for n, own in layout.supernet.own.items() if n not in found
    } | found


def _shift(alignment: Alignment, norm: FoldedNorm, weights: Sequence[float]) -> Tensor:
    """The b for which all diag(γ_k) C_kᵀ b are nearest to the parents' β_k."""
    carriers, like = alignment.of(norm.space, ()), {"device": alignment.device, "dtype": torch.float64}
    left = torch.zeros(len(carriers.to[0]), len(carriers.to[0]), **like)  # type: ignore[call-overload]
    right = left[0]
    for to, scale, shift, weight in zip(carriers.to, norm.scales, norm.shifts, weights, strict=True):
        scaled = to * scale.to(to.device)
        left, right = left + weight * scaled @ scaled.T, right + weight * scaled @ shift.to(to.device)
    eye = torch.eye(len(left), **like)  # type: ignore[call-overload]
    found: Tensor = torch.linalg.solve(left + RIDGE * left.diagonal().mean().detach() * eye, right)
    return found


def _set(held: Map, matrices: Sequence[Tensor], form: Form, generator: torch.Generator) -> None:
    matrices = [matrix.detach().to(held.support(k)[0].device) for k, matrix in enumerate(matrices)]
    if not isinstance(form, str) and not held.support_on(matrices):
        raise OptionError(
            f"maps of rank {form} cannot hold a turn or a mixture of units", "give --full, or --init permute"
        )
    held.start(matrices, form, generator)


def shared(to: Sequence[Tensor], back: Sequence[Tensor], weights: Sequence[float], alone: bool) -> list[Tensor]:
    """Every merged unit divided among the parents that have it; by itself (`alone`) among a parent's own units."""
    present = [presence(t, b).detach() for t, b in zip(to, back, strict=True)]
    if alone:
        return [t / p.clamp(min=1.0)[:, None] for t, p in zip(to, present, strict=True)]
    parts = [w * p for w, p in zip(weights, present, strict=True)]
    total = sum(parts[1:], parts[0]).clamp(min=EPSILON)
    return [w * t / total[:, None] for w, t in zip(weights, to, strict=True)]


def presence(to: Tensor, back: Tensor) -> Tensor:
    """How much of every merged unit a parent has: 1 in an order and in a soft one, n in a group of n, less in a turn
    from fewer."""
    return to.sum(1) if bool((to >= 0).all()) else (to * back.T).sum(1)


@dataclass(frozen=True)
class _Product:
    """The carriers of products of spaces."""

    alignment: Alignment
    scales: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    """By space, per parent: what the way back is multiplied with."""

    def of(self, ours: Sequence[Leaf], theirs: Sequence[Leaf], k: int) -> tuple[Tensor, Tensor] | None:
        """(d × d_k, d_k × d) of a product of factors, major to minor; None where the parents' has other factors."""
        if len(ours) != len(theirs):
            return None
        if across := self.alignment.across.get(tuple(leaf.space for leaf in ours)):
            return across.to[k], across.back[k]
        return self._of(tuple(ours), tuple(theirs), k, {})

    def _of(
        self, ours: tuple[Leaf, ...], theirs: tuple[Leaf, ...], k: int, at: dict[str, int]
    ) -> tuple[Tensor, Tensor]:
        to, back = self._leaf(ours[0], theirs[0], k, at)
        if len(ours) == 1:
            return to, back
        layout, first = self.alignment.layout, ours[0].space
        if not any(f.space in layout.sites and first in layout.path(f.space) for f in ours[1:]):
            rest = self._of(ours[1:], theirs[1:], k, at)
            return torch.kron(to, rest[0]), torch.kron(back, rest[1])
        d, n = _size(ours[1:]), _size(theirs[1:])
        there = to.new_zeros(len(to), d, to.shape[1], n)
        here = to.new_zeros(to.shape[1], n, len(to), d)
        for unit, own in to.nonzero().tolist():
            rest = self._of(ours[1:], theirs[1:], k, {**at, first: unit})
            there[unit, :, own], here[own, :, unit] = to[unit, own] * rest[0], back[own, unit] * rest[1]
        return there.reshape(len(to) * d, -1), here.reshape(to.shape[1] * n, -1)

    def _leaf(self, ours: Leaf, theirs: Leaf, k: int, at: dict[str, int]) -> tuple[Tensor, Tensor]:
        layout = self.alignment.layout
        if ours.space in layout.sites and layout.sites[ours.space].sizes[k] == theirs.size:
            path: Path = tuple(at[owner] for owner in layout.path(ours.space) if owner in at)
            carriers = self.alignment.of(ours.space, path)
            back = carriers.back[k]
            if ours.space in self.scales:
                back = self.scales[ours.space][k].to(back.device)[:, None] * back
            return carriers.to[k], back
        eye = torch.eye(ours.size, theirs.size, dtype=torch.float64, device=self.alignment.device)
        return eye, eye.T


def _size(factors: Sequence[Leaf]) -> int:
    return torch.Size([f.size for f in factors]).numel()


# -- tensors of the SuperNet's own -------------------------------------------------------------------


def _average(alignment: Alignment, name: str, own: Own, weights: Sequence[float]) -> Tensor:
    """The parents' mean of a tensor that no map carries, each brought to the merged units first.

    Signs do not matter to what multiplies along a space, and go with what is added.
    """
    layout = alignment.layout
    spaces, parents = layout.supernet.spaces, layout.supernet.parents_spaces
    assert spaces is not None
    values, seen = [], []
    for k, theirs in enumerate(own.names):
        value = layout.supernet.parents[k].tensors[theirs].detach().to(alignment.device, torch.float64)
        mask = torch.ones_like(value)
        for axis, (ours, other) in enumerate(zip(spaces.tensors[name], parents[k].tensors[theirs], strict=True)):
            steady = name in spaces.steady
            value = carried(alignment, value, axis, ours, other, k, squared=steady)
            mask = carried(alignment, mask, axis, ours, other, k, squared=True)
        values.append(value)
        seen.append(mask)
    return Own(tuple(values), tuple(seen), own.names).average(weights)


def carried(
    alignment: Alignment, value: Tensor, axis: int, ours: AxisExpr, theirs: AxisExpr, k: int, *, squared: bool
) -> Tensor:
    a, b = pieces(ours), pieces(theirs)
    if len(a) != len(b) or not any(leaf.space in alignment.layout.sites for leaf in leaves(ours)):
        return _cut(value, axis, ours.size)
    moved = value.movedim(axis, -1)
    result = moved.new_zeros(*moved.shape[:-1], ours.size)
    for mine, other in zip(a, b, strict=True):
        found = _Product(alignment).of(mine.factors, other.factors, k)
        if found is None:
            return _cut(value, axis, ours.size)
        matrix = found[0] * found[1].T if squared else found[0]
        result[..., mine.index.reshape(-1)] = moved[..., other.index.reshape(-1)] @ matrix.T
    return result.movedim(-1, axis)


def _cut(value: Tensor, axis: int, size: int) -> Tensor:
    """An axis that nothing aligns, cut or filled with zeros."""
    moved = value.movedim(axis, 0)[:size]
    return torch.cat((moved, moved.new_zeros(size - len(moved), *moved.shape[1:]))).movedim(0, axis)
