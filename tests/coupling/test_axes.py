"""Axes are coupled, split and cut; what one occurrence learns all others know."""

from __future__ import annotations

import pytest

from fxmerge.coupling.axes import Axis, Coupler, concat, factors, leaf, product, segments, twin


@pytest.fixture
def coupler() -> Coupler:
    return Coupler(equate=lambda a, b: None, pin=lambda axis, reason: None)


def sizes(axis: Axis) -> object:
    """The structure of an axis: a size, a tuple for a product, a list for a concatenation."""
    if axis.kind == "leaf":
        return axis.size
    if axis.kind == "prod":
        return tuple(sizes(factor) for factor in factors(axis)) or 1
    return [sizes(part) for part in segments(axis)]


def test_splitting_one_occurrence_splits_every_other(coupler: Coupler) -> None:
    axis = leaf(12)
    other = twin(axis)
    major, minor = coupler.split(axis, 4)
    assert (major.size, minor.size) == (3, 4)
    assert sizes(other) == (3, 4)
    assert factors(other)[1].cls is minor.cls


def test_products_of_other_factors_have_common_ones(coupler: Coupler) -> None:
    a, b = product([leaf(12), leaf(4)]), product([leaf(4), leaf(12)])
    coupler.unify(a, b)
    assert sizes(a) == sizes(b) == (4, 3, 4)
    assert [f.cls for f in factors(a)] == [f.cls for f in factors(b)]


def test_factors_that_do_not_divide_each_other_are_pinned() -> None:
    pinned: list[int] = []
    coupler = Coupler(equate=lambda a, b: None, pin=lambda axis, reason: pinned.append(axis.size))
    coupler.unify(product([leaf(6), leaf(8)]), product([leaf(8), leaf(6)]))
    assert sorted(pinned) == [6, 6, 8, 8]


def test_concatenations_are_cut_where_either_is_cut(coupler: Coupler) -> None:
    a, b = concat([leaf(3), leaf(7)]), concat([leaf(8), leaf(2)])
    coupler.unify(a, b)
    assert sizes(a) == sizes(b) == [3, 5, 2]


def test_a_concatenation_of_a_product_with_a_product(coupler: Coupler) -> None:
    """`[x y]` beside `(h d)`: the border falls between two heads."""
    head, inner = leaf(5), leaf(3)
    axis = product([head, inner])
    coupler.unify(concat([leaf(6), leaf(9)]), axis)
    assert sizes(head) == [2, 3]
    assert sizes(inner) == 3


def test_a_cut_inside_a_row_cuts_the_minor_factor_too(coupler: Coupler) -> None:
    head, inner = leaf(3), leaf(4)
    before, after = coupler.cut(product([head, inner]), 6)
    assert (before.size, after.size) == (6, 6)
    assert sizes(inner) == [2, 2]
    assert sizes(head) == [1, 1, 1]


def test_segments_that_end_inside_a_row_are_regrouped(coupler: Coupler) -> None:
    """A fused weight `[48 6 6 12]` seen as rows of 12: the two sixes are one row."""
    axis = concat([leaf(48), leaf(6), leaf(6), leaf(12)])
    major, minor = coupler.split(axis, 12)
    assert sizes(major) == [4, 1, 1]
    assert sizes(minor) == [6, 6]


def test_halves_that_meet_each_other_crosswise_become_one(coupler: Coupler) -> None:
    """rotate_half: `[a b]` meets `[b a]`, and the answer is a = b, not "nothing to do"."""
    a, b = leaf(5), leaf(5)
    coupler.unify(concat([a, b]), concat([b, a]))
    assert a.cls is b.cls


def test_a_concatenation_in_a_minor_place_stays_there(coupler: Coupler) -> None:
    """A qkv weight fused per head is `(h [q k v])`."""
    axis = leaf(36)
    _, rest = coupler.split(axis, 9)
    coupler.cut(rest, 3)
    assert sizes(axis) == (4, [3, 6])
    assert coupler.take(rest, 3, 9).size == 6


def test_splitting_by_a_misfit_tolerates_nothing() -> None:
    pinned: list[str] = []
    coupler = Coupler(equate=lambda a, b: None, pin=lambda axis, reason: pinned.append(reason))
    coupler.split(product([leaf(4), leaf(9)]), 6)
    assert len(pinned) == 3 and "across its factors" in pinned[0]


def test_different_sizes_cannot_be_one(coupler: Coupler) -> None:
    with pytest.raises(AssertionError, match="sizes 3 and 4 cannot be one"):
        coupler.unify(leaf(3), leaf(4))
