"""Every built-in rule is audited on calls of generic sizes, and wrong rules are caught."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx

from fxmerge.coupling import Rule, couples, moves
from fxmerge.coupling.law import names, parse
from fxmerge.rewrite import operator
from fxmerge.testing import AuditError, Example, audit
from passes.operators import Operators
from passes.rules import BUILTIN
from tests.passes.rules.rule_calls import examples, x, z

RULES = [rule for rule in BUILTIN if not rule.fills]
OPTIONAL = {"transformers.grouped_mm_fallback.default", "aten._grouped_mm.default"}
"""Operators that another package brings, or that run on no processor here in float64."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.ops[0])
def test_rule_holds_for_every_operator_it_names(rule: Rule) -> None:
    for op in rule.ops:
        calls = examples(op)
        if calls or op not in OPTIONAL:
            report = audit(replace(rule, ops=(op,)), *calls)
            assert report.error < 1e-9 and report.notes == ()


FILLED = {
    "arange": (5,), "eye": (3,), "linspace": (0.0, 1.0, 5), "tril_indices": (3, 3), "triu_indices": (3, 3),
    "scalar_tensor": (2.5,), "zeros": ([2, 3],), "ones": ([2, 3],), "full": ([2, 3], 2.5), "full_like": (x(2, 3), 2.5),
    "new_full": (x(2, 3), [4], 2.5), "zeros_like": (x(2, 3),), "ones_like": (x(2, 3),), "new_zeros": (x(2, 3), [4]),
    "new_ones": (x(2, 3), [4]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILLED)
def test_a_rule_says_with_what_number_an_operator_fills(name: str) -> None:
    """In both directions: what it says stands everywhere, and where one number stands everywhere it is said."""
    call = operator_call(name, *FILLED[name])
    value, number = call.target(*FILLED[name]), Operators().filling(call)  # type: ignore[operator]
    same = value.numel() > 0 and bool((value == value.reshape(-1)[0]).all())
    assert number == (float(value.reshape(-1)[0]) if same else None)


def test_every_rule_that_fills_is_looked_at() -> None:
    filled = {op.removeprefix("aten.") for rule in BUILTIN if rule.fills == "value" for op in rule.ops}
    assert filled == set(FILLED)


def operator_call(name: str, *args: object) -> fx.Node:
    """A call of one of torch's own operators, its tensors as inputs."""
    graph = fx.Graph()
    nodes = [graph.placeholder(f"x{i}") if isinstance(a, torch.Tensor) else a for i, a in enumerate(args)]
    packet = getattr(torch.ops.aten, name)
    return graph.call_function(packet.default, tuple(nodes))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", list(BUILTIN), ids=lambda rule: rule.ops[0])
def test_operators_exist_and_laws_speak_of_their_arguments(rule: Rule) -> None:
    for op in rule.ops:
        if op in OPTIONAL:
            continue
        namespace, name, *overload = op.split(".")
        packet = getattr(getattr(torch.ops, namespace), name)
        schemas = [getattr(packet, o)._schema for o in (overload or packet.overloads())]
        arguments = {argument.name for schema in schemas for argument in schema.arguments}
        law = rule.law or (rule.couples[1] if isinstance(rule.couples, tuple) else "")
        assert not law or names(parse(law)) <= arguments, f"{op}: {law} speaks of something else than {arguments}"


def test_grouped_products_of_experts() -> None:
    pytest.importorskip("transformers.integrations.moe")
    op = "transformers.grouped_mm_fallback.default"
    rule = BUILTIN.find_named(op)
    assert rule is not None and audit(rule, *examples(op)).calls == 1


WRONG = {
    "a layer norm that commutes with rotations": (
        couples("aten.layer_norm.default", "... d, d, d -> ... d", "isotropic(input, d) * weight + bias"),
        ("aten.layer_norm.default", (z(3, 5), (5,), z(5), z(5))),
    ),
    "a layer norm without affine part that commutes with rotations": (
        couples("aten.layer_norm.default", "... d -> ... d", "isotropic(input, d)"),
        ("aten.layer_norm.default", (z(3, 5), (5,))),
    ),
    "a norm whose scale is not coupled": (
        couples("aten.layer_norm.default", "... d, e, d -> ... d", "rigid(input) + bias"),
        ("aten.layer_norm.default", (z(3, 5), (5,), z(5), z(5))),
    ),
    "a linear map that forgets its bias": (
        couples("aten.linear.default", "... i, o i, p -> ... o", "input * weight"),
        ("aten.linear.default", (z(3, 5), z(4, 5), z(4))),
    ),
    "a linear map that reads the wrong axis": (
        couples("aten.linear.default", "... o, o i, i -> ... i", "input * weight + bias"),
        ("aten.linear.default", (z(3, 5), z(5, 5), z(5))),
    ),
    "a group norm that forgets its groups": (
        couples("aten.group_norm.default", "n c ..., c, c -> n c ...", "rigid(input) * weight + bias"),
        ("aten.group_norm.default", (z(5, 6, 7), 2, z(6), z(6))),
    ),
    "a grouped convolution that forgets its groups": (
        couples("aten.conv1d.default", "n (g i) _, o i _, o -> n o _", "input * weight + bias"),
        ("aten.conv1d.default", (z(2, 6, 9), z(4, 3, 3), z(4), [1], [0], [1], 2)),
    ),
    "a batch norm without its statistics": (
        couples("aten.batch_norm.default", "n c ..., c, c, m, v -> n c ...", "input * weight + bias"),
        ("aten.batch_norm.default", (z(3, 5, 4), x(5), z(5), z(5), x(5), False, 0.1, 1e-5, False)),
    ),
    "a cumulative sum that does not mind the order": (
        couples("aten.cumsum.default", "a b -> a b", "self"), ("aten.cumsum.default", (z(5, 3), 1)),
    ),
    "an activation that lets scales through": (
        couples("aten.gelu.default", "... -> ...", "positive(self)"), ("aten.gelu.default", (z(5, 3),)),
    ),
    "a rectifier that lets signs through": (
        couples("aten.relu.default", "... -> ...", "self"), ("aten.relu.default", (z(5, 3),)),
    ),
    "a softmax that mixes": (
        couples("aten.softmax.int", "... k -> ... k", "self"), ("aten.softmax.int", (z(5, 3), -1)),
    ),
    "a sum that couples nothing": (
        couples("aten.add.Tensor", "a b, c d -> a b", "self"), ("aten.add.Tensor", (z(5, 3), z(5, 3))),
    ),
    "a choice of the largest that keeps its axis free": (
        couples("aten.topk.default", "a b -> a c, a c", "rigid(self)"), ("aten.topk.default", (z(5, 7), 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_rule_that_claims_too_much_is_caught(what: str) -> None:
    rule, (op, args) = WRONG[what]
    with pytest.raises(AuditError, match=rf"the rule of {op} \(from .*test_rules\) claims too much"):
        audit(rule, Example(op, args))


A, B = z(5, 3), z(5, 3)
FACTS = {
    "a softmax that works entry by entry": (
        couples("aten.softmax.int", "... -> ...", "rigid(self)"), ("aten.softmax.int", (A, -1)), "works entry by entry",
    ),
    "a difference that commutes": (
        couples("aten.sub.Tensor", "..., ... -> ...", "self + other", commutes=True),
        ("aten.sub.Tensor", (A, B)),
        "commutes",
    ),
    "a gate that only moves numbers": (
        moves("aten.silu.default")(lambda move: [*map(move.rigid, move.held("self"))]),
        ("aten.silu.default", (A,)),
        "holds numbers of its operands alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FACTS)
def test_what_a_rule_says_besides_its_coupling_is_audited(what: str) -> None:
    rule, (op, args), said = FACTS[what]
    with pytest.raises(AuditError, match=f"the rule of {op} .* claims too much: that the operator {said}"):
        audit(rule, Example(op, args))


def test_what_a_rule_could_say_besides_its_coupling_is_noted() -> None:
    calls = Example("aten.maximum.default", (A, B))
    report = audit(couples("aten.maximum.default", "..., ... -> ...", "rigid(self + other)"), calls)
    assert report.notes == ("aten.maximum.default: it seems that the operator commutes",)


def test_a_rule_that_says_why_it_claims_less_is_left_alone() -> None:
    report = audit(couples("aten.relu.default", "a! b -> a! b", "positive(self)", modest="rows are times"))
    assert report.notes == ()


def test_a_rule_that_claims_too_little_is_noted() -> None:
    report = audit(couples("aten.relu.default", "a! b -> a! b", "positive(self)"))
    assert report.notes == ("aten.relu.default: an axis of 5 is frozen, but seems free to be permuted",)
    assert audit(couples("aten.relu.default", "a b -> a b", "positive(self)")).notes == ()


@pytest.fixture
def rope() -> str:
    """An operator that turns planes by angles: (x, cos, sin), half-split."""
    with torch.library._scoped_library("fxmerge_test_rope", "FRAGMENT") as library:
        library.define("turn(Tensor x, Tensor cos, Tensor sin) -> Tensor")

        def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        library.impl("turn", turn, "CompositeImplicitAutograd")
        yield "fxmerge_test_rope.turn.default"


def test_a_rotary_rule_that_lets_planes_permute_is_caught(rope: str) -> None:
    angle = torch.arange(4)[:, None] * 0.3 ** torch.arange(3, dtype=torch.float64)
    call = Example(rope, (z(2, 4, 6), angle.cos(), angle.sin()), constants=frozenset((1, 2)))
    right = couples(rope, "... t! d!, t! p!, t! p! -> ... t! d!", "x")
    assert audit(right, call).error < 1e-9
    with pytest.raises(AuditError, match="claims too much"):
        audit(couples(rope, "... t! d, t! p!, t! p! -> ... t! d", "rigid(x)"), call)


def test_an_operator_is_found_by_its_name() -> None:
    assert operator("aten.relu") is torch.ops.aten.relu.default
    with pytest.raises(ValueError, match="is a function of the call: give audit an Example"):
        audit(next(rule for rule in BUILTIN if "aten.matmul.default" in rule.ops))
