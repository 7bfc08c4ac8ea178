"""What a law demands of a label: the exponents that must vanish, and the most general group."""

from __future__ import annotations

from fractions import Fraction

import pytest

from fxmerge.coupling.law import RESULT, Cap, Equations, equations, linear_in, linear_together, parse

NONE: frozenset[str] = frozenset()


def demands(law: str, carriers: str, kept: bool, absent: str = "", zero: str = "", label: str = "d") -> Equations:
    return equations(law, label, frozenset(carriers.split()), frozenset(absent.split()), frozenset(zero.split()), kept)


def test_a_contraction_cancels_and_allows_everything() -> None:
    found = demands("input * weight + bias", "input weight", kept=False)
    assert found.scale == ({"input": 1, "weight": 1},)
    assert found.cap is Cap.INVERTIBLE


def test_a_bias_scales_with_the_result() -> None:
    found = demands("input * weight + bias", "weight bias", kept=True)
    assert {frozenset(e.items()) for e in found.scale} == {
        frozenset({("bias", 1), ("weight", -1)}),
        frozenset({(RESULT, 1), ("weight", -1)}),
    }
    assert found.cap is Cap.INVERTIBLE


def test_a_bias_that_is_absent_or_zero_demands_nothing() -> None:
    for given in ({"absent": "bias"}, {"zero": "bias"}):
        assert len(demands("input * weight + bias", "weight", kept=True, **given).scale) == 1


def test_an_addend_without_the_label_forbids_scales() -> None:
    found = demands("self + other", "self", kept=True)
    assert {"self": 1} in found.scale and found.cap is Cap.MONOMIAL


def test_attention_cancels_inside_and_is_rigid_outside() -> None:
    law = "rigid(query * key + attn_mask) * value"
    inner = demands(law, "query key", kept=False)
    assert inner.scale == ({"query": 1, "key": 1},) and inner.cap is Cap.INVERTIBLE
    heads = demands(law, "query key value", kept=True)
    assert {"query": 1, "key": 1} in heads.scale and {RESULT: 1, "value": -1} in heads.scale
    tokens = demands(law, "key value", kept=False)
    assert {"key": 1} in tokens.scale and {"value": 1} in tokens.scale


def test_a_product_adds_exponents_and_mixes_nothing() -> None:
    found = demands("self * other", "self other", kept=True)
    assert found.scale == ({RESULT: 1, "self": -1, "other": -1},) and found.cap is Cap.MONOMIAL


def test_powers_multiply_exponents() -> None:
    assert demands("power(self, 0.5)", "self", kept=True).scale == ({RESULT: 1, "self": Fraction(-1, 2)},)
    assert demands("power(self, 2)", "self", kept=True).sign == ({RESULT: 1},)
    assert {"self": 1} in demands("power(self, 0.5)", "self", kept=True).sign


def test_odd_and_even_functions_know_signs() -> None:
    assert demands("odd(self)", "self", kept=True).sign == ({RESULT: 1, "self": 1},)
    assert demands("even(self)", "self", kept=True).sign == ({RESULT: 1},)
    assert {"self": 1} in demands("rigid(self)", "self", kept=True).sign
    assert demands("positive(self)", "self", kept=True).scale == ({RESULT: 1, "self": -1},)


def test_lengths_commute_with_rotations() -> None:
    along = demands("isotropic(input, d)", "input", kept=True)
    assert along.cap is Cap.ORTHOGONAL and {RESULT: 1, "input": 1} in along.sign
    assert demands("isotropic(input, e)", "input", kept=True).cap is Cap.MONOMIAL
    assert demands("length(input, d)", "input", kept=False).sign == ()
    assert demands("isotropic(input, d) * weight", "input weight", kept=True).cap is Cap.MONOMIAL


def test_a_sum_over_a_label_forbids_everything_but_order() -> None:
    found = demands("self", "self", kept=False)
    assert found.scale == ({"self": 1},) and found.cap is Cap.MONOMIAL


def test_operands_the_law_does_not_mention_are_rigid() -> None:
    found = demands("weight", "indices", kept=True)
    assert {"indices": 1} in found.scale and {RESULT: 1} in found.scale


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("input * weight + bias", {"input", "weight", "bias"}),
        ("rigid(query * key) * value", {"value"}),
        ("self * self", set()),
        ("self / other", {"self"}),
        ("self + rigid(self)", set()),
    ],
)
def test_where_a_law_is_linear(law: str, expected: set[str]) -> None:
    assert linear_in(parse(law)) == expected


@pytest.mark.parametrize(
    ("law", "operands", "together"),
    [
        ("input * weight + bias", {"weight", "bias"}, True),
        ("a * b * c", {"b"}, True),
        ("a * b * c", {"b", "c"}, False),
        ("rigid(query) * value", {"query"}, False),
    ],
)
def test_where_a_law_is_linear_in_several_operands_at_once(law: str, operands: set[str], together: bool) -> None:
    assert linear_together(parse(law), operands) is together


def test_a_law_is_a_formula_and_nothing_else() -> None:
    with pytest.raises(ValueError, match=r"not .*__import__"):
        parse("__import__('os').system('true')")
    with pytest.raises(ValueError, match="functions rigid, odd"):
        parse("relu(self)")
