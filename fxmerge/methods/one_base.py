"""Whether parents come from one base: how near their weights are, space by space, as the analysis lines them up."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fxmerge.ir.program import Program
from fxmerge.ir.space import leaves
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import about_of
from fxmerge.methods.kernels import operands

SHARED = 0.5
"""From this cosine on parents share a base. Two models whose changes are as large as what they share are there;
independently trained ones are near zero, whatever they learnt, since nothing aligns their units."""


@dataclass(frozen=True)
class Nearness:
    """Cosines between the parents' weights, each weight less its mean; of several pairs the lowest."""

    spaces: Mapping[str, float]
    """By space of the template: of all matrices along it together."""
    changes: float | None = None
    """Where the base is known: the same of what each parent changed, over everything."""

    @property
    def cosine(self) -> float:
        """The middle one of all spaces; zero where nothing can be compared."""
        return statistics.median(self.spaces.values()) if self.spaces else 0.0

    @property
    def shared(self) -> bool:
        return self.cosine >= SHARED

    def as_dict(self) -> dict[str, Any]:
        lowest = min(self.spaces.values(), default=0.0)
        found = {"shared": self.shared, "cosine": round(self.cosine, 4), "lowest": round(lowest, 4)}
        return found | {"spaces": len(self.spaces), "changes": self.changes and round(self.changes, 4)}


def notes_of(near: Nearness, method: object) -> list[str]:
    """What it means for the choice of a method."""
    told = f"their weights have a cosine of {near.cosine:.2f}, the middle one of {len(near.spaces)} spaces"
    about = about_of(method)
    if not near.shared:
        if about is None or about.parents == "any" or getattr(method, "align", "none") != "none":
            return []  # what aligns first needs no base
        name = getattr(method, "name", "the method")
        return [f"{name} is for parents of one base, and these share none ({told}): condense and auto do not need one"]
    tuned = "" if near.changes is None else f"; that of what they changed is {near.changes:.2f}"
    return [f"the parents share a base ({told}{tuned}): the methods for one base apply, and auto starts from them too"]


def nearness(net: SuperNet, base: Mapping[str, Tensor] | None = None) -> Nearness:
    """Compare the parents' matrices wherever the trunk has one of each; `base` by the template's names.

    A parent that only teaches has none there: what stands in its place is the template again.
    """
    sums: dict[str, dict[tuple[int, int], Tensor]] = {}
    changes: dict[tuple[int, int], Tensor] = {}
    for name, values in matrices(net):
        axes = net.parents_spaces[net.template].tensors.get(name, ())
        near = [leaf.space for axis in axes for leaf in leaves(axis) if leaf.space]
        centred = [value - value.mean() for value in values]
        tuned = [] if base is None or name not in base else [value - base[name].to(value) for value in values]
        for i, j in combinations(range(len(values)), 2):
            products = _products(centred[i], centred[j])
            for space in dict.fromkeys(near):
                own = sums.setdefault(space, {})
                own[i, j] = own.get((i, j), 0.0) + products
            if tuned and tuned[i].shape == tuned[j].shape:
                changes[i, j] = changes.get((i, j), torch.zeros(3)) + _products(tuned[i], tuned[j])
    found = {space: min(map(_cosine, pairs.values())) for space, pairs in sums.items()}
    return Nearness(found, min(map(_cosine, changes.values()), default=None))


def matrices(net: SuperNet) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Parameters of two axes or more that all merged parents have in one place and shape, by the template's name."""
    seen = set()
    for nodes in net.twins.values():
        for same in zip(*(operands(node) for node in nodes), strict=False):
            if any(node.op != "get_attr" for node in same) or str(same[net.template].target) in seen:
                continue
            names = [str(node.target) for node in same]
            pairs = [(net.parents[k], names[k]) for k in net.merged]
            own = [parent.tensors[name].detach() for parent, name in pairs]
            trained = all(name in parent.parameters for parent, name in pairs)
            if trained and own[0].ndim > 1 and len({value.shape for value in own}) == 1:
                seen.add(names[net.template])
                yield names[net.template], own


def base_by_names(base: Program, like: Program, lined: Program) -> tuple[dict[str, Tensor], str]:
    """A base's parameters where their names say which of the template's they are, and how many; none if they deny it.

    Names may begin otherwise, as of a model inside another. Nothing is taken on trust: the matrices found must be as
    near to the template's as one base makes them, and `lined`, the template as it is lined up, must hold its own as
    they were given.
    """
    given = {name: value for name, value in like.tensors.items() if name in like.parameters}
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        same = [other for other in base.parameters if f".{name}".endswith(f".{other}") or other.endswith(f".{name}")]
        same = [other for other in same if base.tensors[other].shape == value.shape]
        kept = name in lined.tensors and torch.equal(lined.tensors[name], value)
        if len(same) == 1 and kept:
            found[name] = base.tensors[same[0]].detach().double()
    near = [
        _cosine(_products(given[name] - given[name].mean(), value - value.mean()))
        for name, value in found.items()
        if value.ndim > 1
    ]
    middle = statistics.median(near) if near else 0.0
    said = f"by their names, which {len(found)} of its {len(given)} have (the middle cosine with them is {middle:.2f})"
    return (found if middle >= SHARED else {}), said


def _products(a: Tensor, b: Tensor) -> Tensor:
    """(a·b, a·a, b·b)."""
    a, b = a.double().reshape(-1), b.double().reshape(-1)
    return torch.stack((a @ b, a @ a, b @ b))


def _cosine(products: Tensor) -> float:
    together, first, second = products
    return float(together / (first * second).sqrt().clamp(min=1e-300))
