"""Operands that share leading axes, brought to one order and number of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from passes.line_up.carry_moves.moved_view import Atom, Form, Group, Size, divided

TAIL = 2
"""Axes at the end that a product of matrices, or attention, works on."""


@dataclass(frozen=True)
class Batched:
    """The operands (and the mask) as the call takes them, and the form of its result."""

    operands: tuple[Form, ...]
    mask: Form | None
    axes: tuple[Group, ...]
    out: tuple[Group, ...]


def batched(forms: Sequence[Form], mask: Form | None) -> Batched | None:
    """Operands with their leading axes in the order of the first operand's source, joined to at most two.

    The last two axes of all operands stay; the result has rows of the first and columns of the last operand.
    None where the operands broadcast, or their axes have no common factors, or nothing would change.
    """
    every = [*forms, mask] if mask is not None and _has_all_axes(mask, forms[0]) else list(forms)
    lead = _common(every)
    if lead is None:
        return None
    refined = [_refined(form, lead) for form in every]
    if any(form is None for form in refined):
        return None
    parts = [form for form in refined if form is not None]
    count = sum(len(sizes) for sizes in lead)
    place = {atom: number for number, atom in enumerate(parts[0].atoms())}
    order = sorted(range(count), key=lambda i: place[parts[0].out[i][0]])
    runs = _joined(_runs(order, parts))
    whole = _original(parts[0], lead)
    if [tuple(atom for i in run for atom in parts[0].out[i]) for run in runs] == whole:
        return None
    moved = [
        form.regroup([tuple(form.out[i][0] for i in run) for run in runs] + list(form.out[count:])) for form in parts
    ]
    small = mask
    if mask is not None and len(every) == len(forms):
        if any(mask.out[:-TAIL]):
            return None
        small = mask.regroup(mask.out[-TAIL:])
    elif mask is not None:
        small = moved[-1]
    moved = moved[: len(forms)]
    tail = (_own(moved[0].out[-2]), _own(moved[-1].out[-1]))
    return Batched(tuple(moved), small, (*moved[0].out[:-TAIL], *tail), (*whole, *tail))


def _own(group: Group) -> Group:
    """Atoms of the same sizes: rows and columns of a result may come from one axis of one source."""
    return tuple(Atom(atom.size) for atom in group)


def _has_all_axes(mask: Form, first: Form) -> bool:
    return mask.rank == first.rank and mask.shape[:-TAIL] == first.shape[:-TAIL]


def _common(forms: Sequence[Form]) -> list[list[Size]] | None:
    """For every leading axis, factors into which that of every operand falls."""
    first = forms[0]
    if first.rank <= TAIL or any(form.shape[:-TAIL] != first.shape[:-TAIL] for form in forms):
        return None
    found = []
    for axis in range(first.rank - TAIL):
        sizes = [atom.size for atom in first.out[axis]]
        for form in forms[1:]:
            common = _cut(sizes, [atom.size for atom in form.out[axis]])
            if common is None:
                return None
            sizes = common
        found.append(sizes)
    return found


def _cut(a: list[Size], b: list[Size]) -> list[Size] | None:
    """Factors of one number, major to minor, cut wherever one of two lists is."""
    result: list[Size] = []
    a, b = list(a), list(b)
    while a and b:
        x, y = a.pop(0), b.pop(0)
        if x != y:
            rest, more = divided(y, x), divided(x, y)
            if rest is not None:
                b.insert(0, rest)
            elif more is not None:
                a.insert(0, more)
                x = y
            else:
                return None
        result.append(x)
    return None if a or b else result


def _refined(form: Form, lead: list[list[Size]]) -> Form | None:
    """The form with every common factor as an axis."""
    sizes = [length for factors in lead for length in factors]
    return form.reshape([*sizes, *form.shape[-TAIL:]])


def _runs(order: list[int], forms: Sequence[Form]) -> list[list[int]]:
    """Leading axes in order; those that follow one another in the source of every operand stay together."""
    runs: list[list[int]] = []
    for i in order:
        if runs and all(_follows(form, runs[-1][-1], i) for form in forms):
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _follows(form: Form, i: int, j: int) -> bool:
    pairs = (pair for group in form.axes for pair in pairwise(group))
    return any(a is form.out[i][0] and b is form.out[j][0] for a, b in pairs)


def _joined(runs: list[list[int]]) -> list[list[int]]:
    """At most two leading axes: all but the last are one."""
    return runs if len(runs) <= TAIL else [[i for run in runs[:-1] for i in run], runs[-1]]


def _original(form: Form, lead: list[list[Size]]) -> list[Group]:
    """The leading axes as the operand has them, in refined atoms."""
    groups, start = [], 0
    for factors in lead:
        groups.append(tuple(atom for group in form.out[start : start + len(factors)] for atom in group))
        start += len(factors)
    return groups
