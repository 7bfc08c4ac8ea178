"""Views stay promises until someone needs them; cutting a promise cuts the undivided axis."""

from __future__ import annotations

import pytest

from fxmerge.coupling.axes import Coupler, factors, leaf, segments
from fxmerge.coupling.views import Promise, narrow, redeem, reshape


@pytest.fixture
def coupler() -> Coupler:
    return Coupler(equate=lambda a, b: None, pin=lambda axis, reason: None)


def test_a_view_that_is_undone_splits_nothing(coupler: Coupler) -> None:
    axis = leaf(24)
    apart = reshape([leaf(5), axis], (5, 2, 3, 4), coupler)
    back = reshape(apart, (5, 24), coupler)
    assert back[1] is axis and axis.kind == "leaf"


def test_three_parts_of_a_fused_weight_have_inner_spaces_of_their_own(coupler: Coupler) -> None:
    """`view(b, t, 3, h, d)`, then each third viewed again: q and v must not share their inner space."""
    axis = leaf(36)
    held = reshape([leaf(5), axis], (5, 3, 4, 3), coupler)
    thirds = [narrow(held, 1, i, i + 1, coupler) for i in range(3)]
    inner = [redeem(third[3], coupler) for third in thirds]
    assert len({each.cls for each in inner}) == 3
    assert [part.size for part in segments(axis)] == [12, 12, 12]


def test_parts_inside_every_head_leave_the_heads_together(coupler: Coupler) -> None:
    """`view(b, t, h, 3, d)[..., i, :]`: one space of heads, three inner ones."""
    axis = leaf(36)
    held = reshape([axis], (4, 3, 3), coupler)
    parts = [narrow(held, 1, i, i + 1, coupler) for i in range(3)]
    heads = {redeem(part[0], coupler).cls for part in parts}
    inner = {redeem(part[2], coupler).cls for part in parts}
    assert len(heads) == 1 and len(inner) == 3
    assert [f.size for f in factors(axis)] == [4, 9]


def test_heads_that_only_share_a_tail_are_cut_off(coupler: Coupler) -> None:
    """Falcon: `view(b, t, h + 2, d)`, all but the last two heads are queries."""
    axis = leaf(18)
    held = reshape([axis], (6, 3), coupler)
    queries, keys = narrow(held, 0, 0, 4, coupler), narrow(held, 0, 4, 5, coupler)
    assert redeem(queries[1], coupler).cls is not redeem(keys[1], coupler).cls


def test_a_transposed_view_is_redeemed_when_it_is_joined(coupler: Coupler) -> None:
    axis = leaf(12)
    major, minor = reshape([axis], (3, 4), coupler)
    assert isinstance(major, Promise)
    joined = reshape([minor, major], (12,), coupler)
    assert [f.size for f in factors(redeem(joined[0], coupler))] == [4, 3]
    assert [f.size for f in factors(axis)] == [3, 4]


def test_sizes_of_one_come_and_go(coupler: Coupler) -> None:
    axis = leaf(12)
    assert [a.size for a in reshape([axis], (1, 3, 1, 4), coupler)] == [1, 3, 1, 4]
    assert [a.size for a in reshape([leaf(2), axis, leaf(1)], (24,), coupler)] == [24]
    assert [a.size for a in reshape([leaf(2), axis], (0, 7), coupler)] == [0, 7]
