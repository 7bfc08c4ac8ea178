"""Softmax and boolean masks written out, in one spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxmerge.rewrite import Trace
from passes import cleanup, normalize
from tests.passes.attention_nets import Mix, called, kept, program, same, softmaxed

SOFTMAX: dict[str, Mix] = {
    "largest entry": lambda m, q, k, v, mask: softmaxed(q),
    "without": lambda m, q, k, v, mask: q.exp() / q.exp().sum(-1, keepdim=True),
    "max": lambda m, q, k, v, mask: (
        (q - q.max(-1, keepdim=True)[0]).exp() / (q - q.max(-1, keepdim=True)[0]).exp().sum(-1, True)
    ),
    "operator": lambda m, q, k, v, mask: torch.ops.aten._softmax.default(q, -1, False),
    "over heads": lambda m, q, k, v, mask: q.exp() / q.exp().sum(1, keepdim=True),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_spellings(name: str) -> None:
    before = program(SOFTMAX, name)
    after = normalize(before)
    assert called(cleanup(after))[-1] == "aten.softmax.int"
    assert "aten.exp.default" not in called(after)
    same(before, after)


NO_SOFTMAX: dict[str, tuple[Mix, str]] = {
    "two axes": (
        lambda m, q, k, v, mask: q.exp() / q.exp().sum((-1, -2), keepdim=True),
        "the largest entry and the sum are over different axes",
    ),
    "another sum": (
        lambda m, q, k, v, mask: q.exp() / k.exp().sum(-1, keepdim=True),
        "expected aten.sub.Tensor, found aten.permute.default",
    ),
}


@pytest.mark.parametrize("name", NO_SOFTMAX)
def test_what_is_no_softmax(name: str) -> None:
    before, trace = program(NO_SOFTMAX, name), Trace()
    assert "aten.exp.default" in called(normalize(before, trace=trace))
    assert NO_SOFTMAX[name][1] in str(trace.refusals["softmax"])


def _filled(condition: Callable[[Tensor], Tensor]) -> Mix:
    return lambda m, q, k, v, mask: q.masked_fill(condition(kept(mask).mT), 0)


BOOLEANS: dict[str, Mix] = {
    "not a cast": _filled(lambda mask: ~mask.bool()),
    "zero": _filled(lambda mask: mask == 0),
    "not unequal": _filled(lambda mask: ~(mask != 0)),
    "twice": _filled(lambda mask: torch.logical_not(torch.logical_not(mask == 0))),
    "a cast is zero": _filled(lambda mask: mask.bool() == 0),
    "not zero": _filled(lambda mask: (mask == 0) != 0),
}


@pytest.mark.parametrize("name", BOOLEANS)
def test_boolean_masks_in_one_spelling(name: str) -> None:
    before = program(BOOLEANS, name)
    after = normalize(before)
    assert [n for n in called(after) if n.rpartition(".")[0] in NEGATIONS] == ["aten.eq.Scalar"]
    same(before, after)


NEGATIONS = ("aten.eq", "aten.ne", "aten.logical_not", "aten.bitwise_not", "aten._to_copy")
