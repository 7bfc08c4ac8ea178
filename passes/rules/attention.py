"""Attention as one operator, and softmax."""

from __future__ import annotations

from fxmerge.coupling import Call, couples


@couples("aten.scaled_dot_product_attention.default")
def attention(call: Call) -> tuple[str, str]:
    q, k = ("q!", "k!") if call["is_causal"] else ("q", "k")
    law = "rigid(query * key + attn_mask) * value"
    if call["enable_gqa"] and call.shape("query")[-3] != call.shape("key")[-3]:
        return f"... (g r) {q} d, ... g {k} d, ... g {k} e, ... (g r) {q} {k} -> ... (g r) {q} e", law
    return f"... {q} d, ... {k} d, ... {k} e, ... {q} {k} -> ... {q} e", law


softmax = couples(
    "aten.softmax.int", "aten._softmax.default", "aten.log_softmax.int", "aten._log_softmax.default", "aten._safe_softmax.default",
    "... -> ...", "rigid(self)",
)  # fmt: skip
