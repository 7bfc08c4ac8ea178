"""What the parents' weights say of which units match: inner products along an axis, the others aligned already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from fxmerge.ir.space import Leaf, Piece, leaves, pieces
from fxmerge.methods.alignment.evidence import Evidence
from fxmerge.methods.alignment.layout import Layout
from fxmerge.methods.alignment.maps import carried
from fxmerge.methods.alignment.solve import Alignment

SWEEPS = 30
Decide = Callable[[str, Sequence[Evidence]], None]
"""Aligns a space, and what is inside it, by evidence."""


def descend(alignment: Alignment, roots: Sequence[str], decide: Decide, sweeps: int = SWEEPS) -> None:
    """Coordinate descent over spaces until nothing changes (Git Re-Basin, Ainsworth et al. 2023, Algorithm 1).

    Spaces take their first turn when most of what they stand beside is settled: inputs and outputs are from the start.
    """
    layout, left = alignment.layout, list(roots)
    settled = {space for space in layout.sites if not any(space in layout.tree(root) for root in roots)}
    while left:
        known = {root: list(_evidence(alignment, root, settled)) for root in left}
        root = max(left, key=lambda each: (sum(map(_weight, known[each])), -left.index(each)))
        decide(root, known[root] or list(_evidence(alignment, root, None)))
        settled.update(layout.tree(root))
        left.remove(root)
    for _ in range(sweeps):
        before = alignment.everything
        for root in roots:
            decide(root, list(_evidence(alignment, root, None)))
        if all(same(before.get(key), now.to) for key, now in alignment.everything.items()):
            break


def same(before: object, now: Sequence[Tensor]) -> bool:
    """Whether carriers (of an object that may have none) are these."""
    old = getattr(before, "to", None)
    return old is not None and all(torch.allclose(a, b, atol=1e-7) for a, b in zip(old, now, strict=True))


def _weight(evidence: Evidence) -> float:
    return sum(float(evidence.common[k][k].sum() != 0) * evidence.common[k][k].numel() for k in range(1))


def _evidence(alignment: Alignment, root: str, settled: set[str] | None) -> Iterator[Evidence]:
    """Of every tensor that carries a space of this tree and, beside it, only such spaces as are settled (None: any)."""
    layout = alignment.layout
    spaces = layout.supernet.spaces
    assert spaces is not None
    tree, unlike = set(layout.tree(root)), layout.unlike
    for name, theirs in layout.supernet.names.items():
        axes = spaces.tensors.get(name, ())
        found = [leaf.space for axis in axes for leaf in leaves(axis)]
        output = any(spaces.spaces[space].role == "output" for space in found if space in spaces.spaces)
        if not tree & set(found) or layout.aside & set(found) or output or name in unlike:
            continue
        if name in spaces.steady or name not in spaces.transformed or name in layout.folded:
            continue
        others = {space for space in found if space in layout.sites} - tree
        if settled is None or others <= settled:
            yield from _of(alignment, name, theirs, tree)


def _of(alignment: Alignment, name: str, theirs: Sequence[str], tree: set[str]) -> Iterator[Evidence]:
    supernet = alignment.layout.supernet
    assert supernet.spaces is not None
    ours = supernet.spaces.tensors[name]
    own = [s.tensors[each] for s, each in zip(supernet.parents_spaces, theirs, strict=True)]
    with_tree = [i for i, axis in enumerate(ours) if any(leaf.space in tree for leaf in leaves(axis))]
    if any(len(axes) != len(ours) for axes in own):
        return
    for axis in with_tree:  # a space on several axes: each in its turn, the others where they are now
        rows = rows_of(alignment, name, theirs, axis)
        yield from _blocks(rows, pieces(ours[axis]), [pieces(axes[axis]) for axes in own], tree)


def rows_of(alignment: Alignment, name: str, theirs: Sequence[str], axis: int) -> list[Tensor]:
    """Per parent: a tensor as rows of what stands along an axis, the other axes carried to the merged units."""
    layout = alignment.layout
    supernet = layout.supernet
    assert supernet.spaces is not None
    ours, rows = supernet.spaces.tensors[name], []
    for k, each in enumerate(theirs):
        value = _scaled(layout, name, supernet.parents[k].tensors[each].detach().double(), k)
        for other, (a, b) in enumerate(zip(ours, supernet.parents_spaces[k].tensors[each], strict=True)):
            value = value if other == axis else carried(alignment, value, other, a, b, k, squared=False)
        rows.append(value.movedim(axis, -1).reshape(-1, value.shape[axis]))
    return rows


def _scaled(layout: Layout, name: str, value: Tensor, k: int) -> Tensor:
    """With the scales of folded norms that a tensor reads, and those of what it writes."""
    spaces = layout.supernet.spaces
    assert spaces is not None
    factors = [(norm.space, norm.scales[k]) for norm in layout.norms if name in norm.tensors]
    factors += [(scale.space, scale.values[k]) for scale in layout.scales if name in scale.writers]
    for space, factor in factors:
        for axis, carried_by in enumerate(spaces.tensors[name]):
            if carried_by == Leaf(space, value.shape[axis]):
                value = (value.movedim(axis, -1) * factor).movedim(-1, axis)
    return value


def _blocks(
    rows: Sequence[Tensor], ours: Sequence[Piece], own: Sequence[Sequence[Piece]], tree: set[str]
) -> Iterator[Evidence]:
    """One evidence for each block of an axis: inner products of its units over everything beside."""
    if any(len(each) != len(ours) for each in own):
        return
    for i, piece in enumerate(ours):
        factors = tuple(f.space for f in piece.factors)
        theirs = [each[i] for each in own]
        if not tree & set(factors) or any(len(p.factors) != len(factors) for p in theirs):
            continue
        shapes = [p.index.shape for p in theirs]
        parts = [row[:, p.index.reshape(-1)] for row, p in zip(rows, theirs, strict=True)]
        common: list[list[Tensor]] = [[] for _ in parts]
        for a, b in product(range(len(parts)), repeat=2):
            common[a].append((parts[a].T @ parts[b]).reshape(*shapes[a], *shapes[b]))
        yield Evidence(factors, common)
