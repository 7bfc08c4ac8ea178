"""Rewrites: they fire where they fit, keep the function, and say why they did not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxmerge import Program, capture
from fxmerge.errors import ExtensionError
from fxmerge.ir.program import target_name
from fxmerge.rewrite import Match, Refusal, Rewrite, Trace, apply, either, op, rewrite, var

x, y, s = var("x"), var("y"), var("s")


@rewrite(op("aten.mul.Tensor", x, x))
def square(match: Match) -> Refusal | torch.fx.Node:
    """x · x  -->  x²"""
    return match.call("aten.square.default", match["x"])


@rewrite(op("aten.add.Tensor", op("aten.mul.Tensor", x, y), s).either_order())
def add_product(match: Match) -> Refusal | torch.fx.Node:
    """x · y + s  -->  addcmul(s, x, y)"""
    return match.call("aten.addcmul.default", match["s"], match["x"], match["y"])


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.function(a, b)


INPUTS = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double(), torch.rand(3, 4).double() + 1)


def program(function: Callable[..., Tensor]) -> Program:
    return capture(Function(function), INPUTS)


def called(program: Program) -> list[str]:
    return [target_name(node.target) for node in program.graph.nodes if node.op == "call_function"]


def same(a: Program, b: Program) -> bool:
    return torch.allclose(a(*INPUTS), b(*INPUTS), rtol=1e-12, atol=1e-12)


def test_it_fires_wherever_it_fits_and_keeps_the_function() -> None:
    before = program(lambda a, b: (a * a) + (b * b) * a)
    trace = Trace()
    after = apply(before, [square], trace)
    assert called(before).count("aten.mul.Tensor") == 3
    assert called(after).count("aten.mul.Tensor") == 1
    assert called(after).count("aten.square.default") == 2
    assert trace.fired == {"square": 2}
    assert same(before, after)


def test_made_nodes_remember_rule_and_source_line() -> None:
    before = program(lambda a, b: a * a + b)
    after = apply(before, [square])
    (made,) = (node for node in after.graph.nodes if node.meta.get("by") == "square")
    old = before.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)[0]
    assert made.meta["source"] == old.meta["source"]
    assert made.meta["source"].startswith("test_engine.py:")
    assert made.meta["val"].shape == old.meta["val"].shape


def test_nothing_to_do_gives_the_same_program() -> None:
    before = program(lambda a, b: a + b)
    assert apply(before, [square]) is before


def test_either_order_and_variables_that_bind_once() -> None:
    for function in (lambda a, b: a * b + a, lambda a, b: a + a * b):
        before = program(function)
        after = apply(before, [add_product])
        assert called(after) == ["aten.addcmul.default"]
        assert same(before, after)


def test_overloads_lists_constants_and_alternatives() -> None:
    any_mean = rewrite(op("aten.mean", x, [-1], True))(
        lambda match: match.call("aten.amax.default", match["x"], [-1], True)
    )
    after = apply(program(lambda a, b: a.mean(-1, keepdim=True) + b.mean(-1)[:, None]), [any_mean])
    assert "aten.amax.default" in called(after)
    assert called(after).count("aten.mean.dim") == 1, "the mean without keepdim stays"
    flipped = Rewrite(
        "flip", either(op("aten.sin", x), op("aten.cos", x)), lambda m: m.call("aten.tanh.default", m["x"])
    )
    assert called(apply(program(lambda a, b: a.sin() + b.cos()), [flipped])).count("aten.tanh.default") == 2


def test_a_default_that_was_changed_is_not_overlooked() -> None:
    trace = Trace()
    before = program(lambda a, b: torch.add(a * b, b, alpha=2))
    assert apply(before, [add_product], trace) is before
    assert "has alpha=2, which the pattern leaves out" in str(trace.refusals["add-product"])


def test_rewrites_build_on_each_other() -> None:
    before = program(lambda a, b: (a * a) * (a * a) + b)
    after = apply(before, [square, rewrite(op("aten.square", op("aten.square", x)))(
        lambda match: match.call("aten.pow.Tensor_Scalar", match["x"], 4)
    )])  # fmt: skip
    assert called(after)[0] in ("aten.pow.Tensor_Scalar", "aten.square.default")
    assert same(before, after)


def test_a_shared_inner_call_is_refused_unless_allowed() -> None:
    before = program(_shared)
    trace = Trace()
    assert apply(before, [add_product], trace) is before
    assert str(trace.refusals["add-product"]).startswith("aten.mul.Tensor is used elsewhere too, at %mul")
    allowed = Rewrite("add-product", add_product.pattern, add_product.replace, shared=True)
    after = apply(before, [allowed])
    assert "aten.addcmul.default" in called(after)
    assert "aten.mul.Tensor" in called(after)
    assert same(before, after)


def _shared(a: Tensor, b: Tensor) -> Tensor:
    product = a * b
    return (product + a) - product.sin()


# -- why did it not fire? ------------------------------------------------------------------------------


def only_square_shapes(match: Match) -> Refusal | None:
    rows, columns = match.shape("x")[-2:]
    return None if rows == columns else Refusal(f"{rows} rows and {columns} columns", match["x"])


def test_the_check_has_the_last_word() -> None:
    refusing = Rewrite("square", square.pattern, square.replace, only_square_shapes)
    trace = Trace()
    before = program(lambda a, b: a * a)
    assert apply(before, [refusing], trace) is before
    assert str(trace.refusals["square"]).endswith("rows and 4 columns, at %a")
    assert trace.text().startswith("square: did not fire; refused: ")


def test_the_attempt_that_got_furthest_is_kept() -> None:
    deep = rewrite(op("aten.exp", op("aten.sin", op("aten.cos", x))))(lambda match: match["x"])
    trace = Trace()
    before = program(lambda a, b: a.tan().exp() + b.tan().sin().exp() + a.exp())
    assert apply(before, [deep], trace) is before
    (refusal,) = trace.refusals.values()
    assert refusal.reason == "expected aten.cos, found aten.tan.default"
    assert refusal.node is not None
    assert refusal.node.meta["source"] in str(refusal)


def test_variables_constants_and_absent_operators_are_explained() -> None:
    scaled = rewrite(op("aten.mul.Tensor", x, 2.0))(lambda match: match["x"])
    absent = rewrite(op("aten.sin.default", x), check=None)(lambda match: match["x"])
    scaled, absent = (Rewrite(n, r.pattern, r.replace) for n, r in (("scaled", scaled), ("absent", absent)))
    trace = Trace()
    apply(program(lambda a, b: a * 3.0 + a * b), [scaled, absent, square], trace)
    assert trace.refusals["scaled"].reason == "expected other=2.0, found 3.0"
    assert trace.refusals["absent"].reason == "there is no aten.sin.default"
    assert trace.refusals["square"].reason == "two different values for x"
    assert len(trace.text().splitlines()) == 3


def test_traces_of_several_parents_add_up() -> None:
    one, two = Trace(), Trace()
    apply(program(lambda a, b: a * a), [square], one)
    apply(program(lambda a, b: a * b), [square], two)
    both = one + two
    assert both.text().startswith("square: fired 1 times; refused: two different values for x")


# -- mistakes in a rewrite -----------------------------------------------------------------------------


def test_a_replacement_of_another_shape_is_an_error() -> None:
    wrong = Rewrite("wrong", op("aten.mul.Tensor", x, y), lambda m: m.call("aten.sum.default", m["x"]))
    with pytest.raises(
        ExtensionError, match=r"rewrite wrong replaces float64\[\d+, 4\] by float64\[\] at test_engine.py:\d+"
    ):
        apply(program(lambda a, b: a * b), [wrong])


def test_a_rewrite_without_an_end_is_an_error() -> None:
    endless = Rewrite("endless", op("aten.mul.Tensor", x, y), lambda m: m.call("aten.mul.Tensor", m["y"], m["x"]))
    with pytest.raises(ExtensionError, match="rewrite endless does not come to an end"):
        apply(program(lambda a, b: a * b), [endless])


def test_an_unknown_operator_and_a_wrong_result_are_errors() -> None:
    unknown = Rewrite("unknown", op("aten.mul.Tensor", x, y), lambda m: m.call("mine.nothing.default", m["x"]))
    with pytest.raises(ExtensionError, match=r"torch knows no operator 'mine\.nothing\.default'"):
        apply(program(lambda a, b: a * b), [unknown])
    nothing = Rewrite("nothing", op("aten.mul.Tensor", x, y), lambda m: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ExtensionError, match="rewrite nothing returned NoneType, not a node"):
        apply(program(lambda a, b: a * b), [nothing])


def test_a_check_cannot_change_the_graph() -> None:
    def meddling(match: Match) -> Refusal | None:
        match.call("aten.sin.default", match["x"])
        return None

    with pytest.raises(AssertionError, match="a check must not change the graph"):
        apply(program(lambda a, b: a * a), [Rewrite("square", square.pattern, square.replace, meddling)])


def test_a_late_refusal_leaves_nothing_behind() -> None:
    def late(match: Match) -> Refusal | torch.fx.Node:
        made = match.call("aten.sin.default", match["x"])
        return Refusal("not after all", made)

    before = program(lambda a, b: a * a)
    trace = Trace()
    assert apply(before, [Rewrite("late", square.pattern, late)], trace) is before
    assert trace.refusals["late"].reason == "not after all"
