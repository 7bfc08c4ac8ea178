"""Attention as one operator, and softmax."""

from __future__ import annotations

from fxmerge.coupling import Call, couples
from passes.rules.names import aten


def scores(call: Call) -> tuple[str, str]:
    """Signature and law of attention: scores are contracted, made rigid by the softmax, and weigh the values."""
    q, k = ("q!", "k!") if call["is_causal"] else ("q", "k")
    law = "rigid(scale * query * key + attn_mask) * value"
    if call["enable_gqa"] and call.shape("query")[-3] != call.shape("key")[-3]:
        return f"... (g r) {q} d, ... g {k} d, ... g {k} e, ... (g r) {q} {k} -> ... (g r) {q} e", law
    return f"... {q} d, ... {k} d, ... {k} e, ... {q} {k} -> ... {q} e", law


attention = couples("aten.scaled_dot_product_attention.default")(scores)


@couples("aten._scaled_dot_product_flash_attention_for_cpu.default")
def flash_attention(call: Call) -> tuple[str, str]:
    """The second result, the logarithm of the sum of all scores' exponentials, has an axis less."""
    text, law = scores(call)
    heads = text.partition(" -> ")[2].rpartition(" ")[0]
    return f"{text}, {heads}", law


@couples(
    *aten(
        """
        softmax.int _softmax.default log_softmax.int _log_softmax.default _safe_softmax.default special_softmax
        special_log_softmax
        """
    ),
    increases=True,
)
def softmax(call: Call) -> tuple[str, str]:
    axes = " ".join(f"x{i}" for i in range(call.rank("self")))
    return f"{axes} -> {axes}", "rigid(self)"
