"""Values and outputs of attention: whole heads in an order, or units across heads, which attention does not allow.

    respected   (heads, units)   an order of heads, then one inside each: an element of the exact group
    free        (heads · units)  one axis: a unit may go to another head, whose weights of attention it then follows

Verma and Elbayad 2024 compare both ("ignoring heads"), Imfeld et al. 2024 transport across heads. The order of heads of
queries and keys is the respected one in either case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fxmerge.ir.space import pieces
from fxmerge.ir.supernet import NAMED
from fxmerge.messages import listed
from fxmerge.methods.alignment.evidence import Evidence
from fxmerge.methods.alignment.layout import Layout
from fxmerge.methods.alignment.maps import carried_blocks
from fxmerge.methods.alignment.solve import Alignment, Decision, align
from fxmerge.methods.groups import CLOSE

Heads = Literal["respected", "free"]


def align_heads(
    alignment: Alignment, root: str, evidence: Sequence[Evidence], decide: Decision, heads: Heads = "respected"
) -> None:
    """Decide a space and all that is inside it; with free heads, what values and outputs are across them too."""
    align(alignment, root, evidence, decide)
    layout = alignment.layout
    for value in _values(layout, root) if heads == "free" else ():
        owner, site = layout.sites[layout.path(value)[-1]], layout.sites[value]
        factors, wide = (owner.space, value), [a * b for a, b in zip(owner.sizes, site.sizes, strict=True)]
        if _bound(layout, factors) or not (own := [each for each in evidence if each.factors == factors]):
            continue
        similarity = [[_summed(own, a, b, wide) for b in range(layout.count)] for a in range(layout.count)]
        together = replace(site, size=owner.size * site.size, sizes=tuple(wide), owner=None)
        alignment.across[factors] = decide(together, similarity, False)


def told_of_heads(name: str, alignment: Alignment, heads: Heads) -> Iterator[str]:
    """What became of units that were free to change their head, and which were not, and why."""
    layout = alignment.layout
    values = [value for root in layout.roots for value in _values(layout, root)] if heads == "free" else []
    moved, stayed = {}, []
    for value in values:
        factors = (layout.path(value)[-1], value)
        if factors not in alignment.across:
            bound = _bound(layout, factors) or "nothing compares units of different heads"
            yield f"{name}: heads of {value} (value_output) stay whole: {bound}"
        elif share := max(_strangers(alignment, factors, k) for k in range(layout.count)):
            moved[value] = share
        else:
            stayed.append(value)
    if moved:
        yield (
            f"{name}: up to {max(moved.values()):.0%} of the units of {listed(list(moved), NAMED)} (value_output)"
            " follow another head than their own, which is no symmetry of attention: no parent is exactly what it was"
        )
    if stayed:
        yield f"{name}: no unit of {listed(stayed, NAMED)} (value_output) changes its head, though it might"


def _values(layout: Layout, root: str) -> list[str]:
    return [s for s in layout.tree(root) if layout.sites[s].role == "value_output" and layout.path(s)]


def _bound(layout: Layout, factors: tuple[str, str]) -> str:
    """Why units cannot change their head: somewhere the axis of units stands without its heads, or with more."""
    net = layout.supernet
    assert net.spaces is not None
    blocks = [block.factors for _, block in carried_blocks(net)]
    axes = [axis for name, axes in net.spaces.tensors.items() if name in net.spaces.transformed for axis in axes]
    blocks += [piece.factors for axis in axes for piece in pieces(axis)]
    found = {tuple(leaf.space for leaf in block) for block in blocks}
    return "" if {f for f in found if factors[1] in f} <= {factors} else "they are no axis of heads by units everywhere"


def _summed(own: Sequence[Evidence], a: int, b: int, wide: Sequence[int]) -> Tensor:
    return torch.stack([each.common[a][b].reshape(wide[a], wide[b]) for each in own]).sum(0)


def _strangers(alignment: Alignment, factors: tuple[str, str], k: int) -> float:
    """The share of parent k's units, by mass, that go to another head than their own goes to."""
    heads, site = alignment.of(factors[0], ()).to[k], alignment.layout.sites[factors[1]]
    mass = alignment.across[factors].to[k].abs()
    mass = torch.where(mass > CLOSE, mass, 0.0)
    mass = mass.reshape(len(heads), site.size, heads.shape[1], site.sizes[k]).sum((1, 3))
    return float((mass * (heads == 0)).sum() / mass.sum())
