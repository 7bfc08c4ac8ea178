"""Heads: which spaces may have a map of their own for every index of another (the inner spaces of attention heads)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product as combinations

from fxmerge.coupling.axes import Axis, Class, factors, segments
from fxmerge.coupling.inference import Inference, Lawful
from fxmerge.coupling.tolerance import Tolerances, occurrences
from fxmerge.coupling.views import Held, Promise


def within(tolerances: Tolerances) -> dict[Class, Class]:
    """Owner of each space whose map may differ for every index of the owner.

    That holds if the owner can be permuted and stands, once, beside the space wherever a value carries it; and if no
    operator mixes the indices of the owner along the way.
    """
    inference = tolerances.inference
    owners = _candidates(tolerances)
    for value in _values(inference):
        for component in components(value):
            for cls in component.keys() & owners.keys():
                owners[cls] = [h for h in owners[cls] if component[h] == 1 and component[cls] == 1]
    for law in inference.lawful:
        _drop_mixed(law, owners)
    return {cls: found[0] for cls, found in owners.items() if found}


def _candidates(tolerances: Tolerances) -> dict[Class, list[Class]]:
    """For each movable space the movable spaces that stand before it in every parameter that carries it."""
    inference = tolerances.inference
    found: dict[Class, list[Class]] = {}
    movable = {cls for cls, group in tolerances.groups.items() if group != "identity"}
    for name in sorted(inference.transformed & inference.tensors.keys()):
        for component in _ordered(inference.tensors[name]):
            for i, cls in enumerate(component):
                if cls in movable:
                    before = [h for h in component[:i] if h in movable and h is not cls]
                    found[cls] = [h for h in found.get(cls, before) if h in before]
    return {cls: owners for cls, owners in found.items() if owners}


def _values(inference: Inference) -> Iterator[Sequence[Axis]]:
    """The axes of every value and parameter that is made from parameters; views by their undivided axes."""
    yield from (axes for name, axes in inference.tensors.items() if name in inference.transformed)
    for node in inference.trained:
        value = inference.values.get(node, ())
        for axes in value if value and isinstance(value[0], tuple) else (value,):
            yield _undivided(axes)


def _undivided(axes: Sequence[Held]) -> list[Axis]:
    plain: dict[int, Axis] = {}
    for axis in axes:
        if isinstance(axis, Promise) and axis.view.redeemed:  # its other factors may stand elsewhere, in a product
            plain[id(axis)] = axis.view.parts[axis.index]
        elif isinstance(axis, Promise):
            plain.setdefault(id(axis.view), axis.view.base)
        else:
            plain[id(axis) if axis.size > 1 else -1] = axis
    return list(plain.values())


def _ordered(axes: Sequence[Axis]) -> Iterator[tuple[Class, ...]]:
    """The leaf classes of a value, concatenations distributed: one sequence per combination of segments."""
    return (sum(parts, ()) for parts in combinations(*(_sequences(axis) for axis in axes)))


def _sequences(axis: Axis) -> list[tuple[Class, ...]]:
    if axis.size <= 1:
        return [()]
    if axis.kind == "leaf":
        return [(axis.cls,)]
    parts = segments(axis)
    if len(parts) > 1:
        found = [sequence for part in parts for sequence in _sequences(part)]
    else:
        found = [sum(each, ()) for each in combinations(*(_sequences(factor) for factor in factors(axis)))]
    return list(dict.fromkeys(found))


def components(axes: Sequence[Axis]) -> Iterator[Mapping[Class, int]]:
    """How often each leaf class stands in each part of a value that is a plain product."""
    return (Counter(sequence) for sequence in _ordered(axes))


def _drop_mixed(law: Lawful, owners: dict[Class, list[Class]]) -> None:
    """Operands that share a label must share the label of its owner too (a Gram matrix over heads does not)."""
    places = {
        label: {slot: {leaf.cls for leaf in occurrences(axis)} for slot, axis in slots.items()}
        for label, slots in law.labels.items()
    }
    for label, slots in places.items():
        for cls in set().union(*slots.values()) & owners.keys() if slots else ():
            needed = {slot for slot, classes in slots.items() if cls in classes}
            owners[cls] = [
                h
                for h in owners[cls]
                if h in set().union(*slots.values())
                or any(
                    all(h in other.get(slot, ()) for slot in needed) for name, other in places.items() if name != label
                )
            ]
