"""Attention and masks written out become one operator; what is not the same function stays as it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fxmerge.rewrite import Trace
from passes import normalize
from tests.passes.attention_nets import (
    MIN,
    SDPA,
    WIDTH,
    Attention,
    Mix,
    attend,
    attention_of,
    called,
    inputs,
    kept,
    program,
    same,
    softmaxed,
)

# -- where the scale and the mask stand --------------------------------------------------------------------

SCALED: dict[str, Mix] = {
    "after": lambda m, q, k, v, mask: ((q @ k.transpose(-2, -1)) * WIDTH**-0.5).softmax(-1) @ v,
    "by division": lambda m, q, k, v, mask: ((q @ k.mT) / math.sqrt(WIDTH)).softmax(-1) @ v,
    "queries before": lambda m, q, k, v, mask: ((q * WIDTH**-0.5) @ k.mT).softmax(-1) @ v,
    "both before": lambda m, q, k, v, mask: ((q * WIDTH**-0.25) @ (k * WIDTH**-0.25).mT).softmax(-1) @ v,
    "queries divided": lambda m, q, k, v, mask: ((q / 2) @ k.mT).softmax(-1) @ v,
    "by a constant tensor": lambda m, q, k, v, mask: (
        ((q @ k.mT) / torch.full([], WIDTH**0.5, dtype=q.dtype)).softmax(-1) @ v
    ),
    "by the root of one": lambda m, q, k, v, mask: (
        ((q @ k.mT) / torch.sqrt(torch.full([], float(WIDTH), dtype=q.dtype))).softmax(-1) @ v
    ),
    "einsum": lambda m, q, k, v, mask: torch.einsum(
        "bhij,bhjd->bhid", (torch.einsum("bhid,bhjd->bhij", q, k) * 0.5).softmax(-1), v
    ),
    "softmax written out": lambda m, q, k, v, mask: softmaxed(q @ k.mT / 2) @ v,
    "dropout": lambda m, q, k, v, mask: nn.functional.dropout((q @ k.mT / 2).softmax(-1), 0.1, m.training) @ v,
    "cast": lambda m, q, k, v, mask: ((q @ k.mT / 2).softmax(-1, dtype=torch.float64)).to(q.dtype) @ v,
}


@pytest.mark.parametrize("name", SCALED)
def test_the_default_scale_in_every_place(name: str) -> None:
    before = program(SCALED, name)
    after = normalize(before)
    node = attention_of(after)
    assert "scale" not in node.kwargs
    assert node.args[3:] in ((), (None, 0.0, False))
    assert "aten.softmax.int" not in called(after) and "aten.matmul.default" not in called(after)
    same(before, after)


OTHER: dict[str, tuple[Mix, float]] = {
    "written out": (lambda m, q, k, v, mask: ((q * 0.7) @ k.mT * 3).softmax(-1) @ v, 2.1),
    "given": (lambda m, q, k, v, mask: nn.functional.scaled_dot_product_attention(q * 4, k, v, scale=0.5), 2.0),
    "default": (lambda m, q, k, v, mask: nn.functional.scaled_dot_product_attention(q, k * 4, v), 2.0),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_scale_is_an_argument(name: str) -> None:
    before = program(OTHER, name)
    after = normalize(before)
    assert attention_of(after).kwargs["scale"] == pytest.approx(OTHER[name][1])
    same(before, after)


MASKED: dict[str, tuple[Mix, str]] = {
    "added": (lambda m, q, k, v, mask: attend(q, k, v, lambda s: s + (1 - kept(mask)) * -1e4), "float"),
    "added before the scale": (
        lambda m, q, k, v, mask: ((q @ k.mT + (1 - kept(mask)) * -1e4) * 0.5).softmax(-1) @ v,
        "float",
    ),
    "subtracted": (lambda m, q, k, v, mask: attend(q, k, v, lambda s: s - (1 - kept(mask)) * 1e4), "float"),
    "added twice": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: m.bias + s + (1 - kept(mask)) * -1e4),
        "float",
    ),
    "filled": (lambda m, q, k, v, mask: attend(q, k, v, lambda s: s.masked_fill(kept(mask) == 0, -math.inf)), "bool"),
    "filled with the lowest number": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: s.masked_fill(kept(mask) == 0, MIN)),
        "float",
    ),
    "where": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: torch.where(kept(mask) > 0, s, -math.inf)),
        "bool",
    ),
    "where not": (
        lambda m, q, k, v, mask: attend(
            q, k, v, lambda s: torch.where(kept(mask) == 0, torch.full([], MIN, dtype=s.dtype), s)
        ),
        "float",
    ),
    "filled twice": (
        lambda m, q, k, v, mask: attend(
            q,
            k,
            v,
            lambda s: s.masked_fill(kept(mask) == 0, -math.inf).masked_fill(
                m.tril[..., : s.shape[-1], : s.shape[-1]] == 0, -math.inf
            ),
        ),
        "bool",
    ),
    "biased, then filled": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: (s + m.bias).masked_fill(kept(mask) == 0, -math.inf)),
        "float",
    ),
    "biased, then filled with the lowest number": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: (s + m.bias).masked_fill(kept(mask) == 0, MIN)),
        "float",
    ),
    "filled, then biased": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: s.masked_fill(kept(mask) == 0, -math.inf) + m.bias),
        "float",
    ),
    "boolean": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: s.masked_fill(~kept(mask).bool(), -math.inf)),
        "bool",
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_masks_of_every_kind(name: str) -> None:
    kind, before = MASKED[name][1], program(MASKED, name)
    after = normalize(before)
    node = attention_of(after)
    assert isinstance(node.args[3], torch.fx.Node)
    assert ("bool" if node.args[3].meta["val"].dtype is torch.bool else "float") == kind
    assert "aten.softmax.int" not in called(after)
    same(before, after)


def test_a_row_that_is_masked_whole_keeps_its_mean() -> None:
    before = program(MASKED, "filled with the lowest number")
    x, mask = inputs(3)
    mask[1] = 0
    torch.testing.assert_close(normalize(before)(x, mask), before(x, mask), rtol=1e-12, atol=1e-12)


# -- causal --------------------------------------------------------------------------------------------------


def _causal(function: Mix) -> Mix:
    """Attention with scores masked by a function of the module, the scores and their length."""
    return lambda m, q, k, v, mask: attend(q, k, v, lambda s: function(m, s, s.shape[-1]))


CAUSAL: dict[str, Mix] = {
    "buffer": _causal(lambda m, s, t: s.masked_fill(m.tril[:, :, :t, :t] == 0, -math.inf)),
    "buffer, not so low": _causal(lambda m, s, t: s.masked_fill(m.tril[:, :, :t, :t] == 0, -1e9)),
    "buffer, where": _causal(lambda m, s, t: torch.where(m.tril[:, :, :t, :t].bool(), s, -1e4)),
    "buffer, added": _causal(lambda m, s, t: s + (1 - m.tril[:, :, :t, :t]) * -1e4),
    "tril of ones": _causal(lambda m, s, t: s.masked_fill(torch.tril(torch.ones(t, t)) == 0, -math.inf)),
    "triu of true": _causal(
        lambda m, s, t: s.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), torch.finfo(s.dtype).min)
    ),
    "triu of minus infinity": _causal(
        lambda m, s, t: s + torch.full((t, t), -math.inf, dtype=s.dtype).triu(1),
    ),
    "positions": _causal(lambda m, s, t: s.masked_fill(torch.arange(t)[:, None] < torch.arange(t)[None, :], -math.inf)),
    "positions, other order": _causal(
        lambda m, s, t: torch.where(torch.arange(t)[None, :] <= torch.arange(t)[:, None], s, -math.inf)
    ),
    "given": lambda m, q, k, v, mask: nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    ),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_masks_are_recognised(name: str) -> None:
    before = program(CAUSAL, name)
    after = normalize(before)
    assert attention_of(after).args[3:] == (None, 0.0, True)
    assert "aten.masked_fill.Scalar" not in called(after)
    same(before, after)


NOT_CAUSAL: dict[str, Mix] = {
    "another diagonal": _causal(lambda m, s, t: s.masked_fill(torch.ones(t, t).tril(1) == 0, -math.inf)),
    "the past": _causal(lambda m, s, t: s.masked_fill(torch.ones(t, t).triu() == 0, -math.inf)),
    "a window": _causal(
        lambda m, s, t: s.masked_fill(
            (torch.arange(t)[:, None] < torch.arange(t)[None, :])
            | (torch.arange(t)[:, None] > torch.arange(t)[None, :] + 2),
            -math.inf,
        )
    ),
    "an end of the buffer": _causal(lambda m, s, t: s.masked_fill(m.tril[:, :, -t:, :t] == 0, -math.inf)),
    "positions from one": _causal(
        lambda m, s, t: s.masked_fill(torch.arange(1, t + 1)[:, None] < torch.arange(t)[None, :], -math.inf)
    ),
    "weak": _causal(lambda m, s, t: s + (1 - m.tril[:, :, :t, :t]) * -3.0),
    "positive": _causal(lambda m, s, t: s + m.tril[:, :, :t, :t]),
}


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_other_masks_are_not_causal(name: str) -> None:
    before = program(NOT_CAUSAL, name)
    after = normalize(before)
    assert attention_of(after).args[5:] in ((), (False,))
    same(before, after)


# -- refusals ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Mix, str]] = {
    "a query that sees no key": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: s.masked_fill(kept(mask) == 0, -1e9)),
        "a query that sees no key would differ: hidden scores become -1e+09, not −∞",
    ),
    "a buffer with an empty row": (
        _causal(lambda m, s, t: s.masked_fill(m.ragged[:, :, :t, :t] == 0, -1e9)),
        "a query that sees no key would differ: hidden scores become -1e+09, not −∞",
    ),
    "a mask that is none": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: s.masked_fill(kept(mask) == 0, -5.0)),
        "hidden scores become -5.0, which is no mask",
    ),
    "a mask that multiplies": (
        lambda m, q, k, v, mask: attend(q, k, v, lambda s: s * kept(mask)),
        "aten.mul.Tensor stands between the scores and their softmax",
    ),
    "something between": (
        lambda m, q, k, v, mask: attend(q, k, v, torch.tanh),
        "aten.tanh.default stands between the scores and their softmax",
    ),
    "softmax over the queries": (
        lambda m, q, k, v, mask: (q @ k.mT).softmax(-2) @ v,
        "softmax is not over the keys",
    ),
    "keys of one head": (
        lambda m, q, k, v, mask: (q @ k[:, :1].mT).softmax(-1) @ v,
        "broadcast",
    ),
    "a negative scale": (
        lambda m, q, k, v, mask: (q @ k.mT * -1.0).softmax(-1) @ v,
        "the scores are not multiplied by a positive number",
    ),
    "a learnt scale": (
        lambda m, q, k, v, mask: (q @ k.mT * m.bias.sum()).softmax(-1) @ v,
        "the scores are not multiplied by a positive number",
    ),
    "no product": (
        lambda m, q, k, v, mask: (q.sum(-1, keepdim=True) + k.sum(-1)[:, :, None]).softmax(-1) @ v,
        "stands between the scores and their softmax",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    message, before, trace = REFUSED[name][1], program(REFUSED, name), Trace()
    after = normalize(before, trace=trace)
    assert SDPA not in called(after)
    assert message in str(trace.refusals["attention"])
    assert "attention_nets.py:" in str(trace.refusals["attention"])
    same(before, after)


def _with_weights(m: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    return weights @ v + weights.mean((-1, -2), keepdim=True)


REFUSED["weights used elsewhere"] = (_with_weights, "aten.softmax.int is used elsewhere too")


# -- weights that are no number ------------------------------------------------------------------------------


def guarded(scores: Tensor, value: float) -> Tensor:
    weights = scores.softmax(-1)
    return torch.where(torch.isnan(weights), value, weights)


def hidden(mask: Tensor) -> Tensor:
    return torch.zeros_like(kept(mask)).masked_fill(kept(mask) == 0, -torch.inf)


GUARDED: dict[str, Mix] = {
    "0": lambda m, q, k, v, mask: guarded(q @ k.mT / 2, 0.0) @ v,
    "0, masked": lambda m, q, k, v, mask: guarded(q @ k.mT / 2 + hidden(mask), 0.0) @ v,
    "1": lambda m, q, k, v, mask: guarded(q @ k.mT / 2, 1.0) @ v,
}


@pytest.mark.parametrize("name", GUARDED)
def test_weights_that_are_no_number_may_become_0(name: str) -> None:
    """As exporters write it: a query that sees no key takes nothing."""
    before = program(GUARDED, name)
    after = normalize(before)
    assert (SDPA in called(after)) is (name != "1")
    same(before, after)
