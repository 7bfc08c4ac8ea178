"""Attention and positions as one operator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxmerge.from_onnx.call import Call, from_onnx

ATTRIBUTES = frozenset(
    ["is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"]
)


@from_onnx("Attention")
def attention(call: Call) -> Tensor:
    """torch's scaled_dot_product_attention"""
    q, k, v, mask = call.tensor(0), call.tensor(1), call.tensor(2), call.given(3)
    if call.has(4) or call.has(5) or call.has(6) or any(call.outputs[1:]):
        raise call.refuse("it has a cache or gives its scores", "export the model without a cache")
    if unknown := set(call.attributes) - ATTRIBUTES:
        raise call.refuse(f"it has {', '.join(sorted(unknown))}", "export attention as single operators")
    if call.get("softcap", 0.0):
        raise call.refuse("it caps its scores", "export attention as single operators: a smaller operator set")
    packed = q.ndim == 3
    if packed:
        heads, groups = call.get("q_num_heads"), call.get("kv_num_heads")
        q, k, v = (_heads(x, n) for x, n in ((q, heads), (k, groups), (v, groups)))
    causal = bool(call.get("is_causal", 0))
    if causal and mask is not None:
        keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        mask = mask & keep if mask.dtype is torch.bool else mask.masked_fill(~keep, -float("inf"))
        causal = False
    shared = q.shape[1] != k.shape[1]
    made = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=call.get("scale"), enable_gqa=shared)
    return made.transpose(1, 2).flatten(2) if packed else made


def _heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


@from_onnx("com.microsoft.MultiHeadAttention")
def multi_head_attention(call: Call) -> Tensor:
    """torch's scaled_dot_product_attention on a query, a key and a value of their own"""
    if any(call.has(i) for i in range(3, len(call.inputs))) or any(call.outputs[1:]) or call.get("unidirectional", 0):
        raise call.refuse("it has a bias, a mask or a cache")
    q, k, v = (_heads(call.tensor(i), call.get("num_heads")) for i in range(3))
    return F.scaled_dot_product_attention(q, k, v, scale=call.get("scale") or None).transpose(1, 2).flatten(2)


@from_onnx("RotaryEmbedding")
def rotary(call: Call) -> Tensor:
    """x · cos + turned(x) · sin"""
    x, cos, sin, places = call.tensor(0), call.tensor(1), call.tensor(2), call.given(3)
    packed = x.ndim == 3
    x = _heads(x, call.get("num_heads")) if packed else x
    if places is not None:
        cos, sin = cos[places], sin[places]
    size = call.get("rotary_embedding_dim", 0) or x.shape[-1]
    turning, rest = x[..., :size], x[..., size:]
    cos, sin = cos[:, None, :, : size // 2], sin[:, None, :, : size // 2]
    made = _turned(turning, cos, sin, bool(call.get("interleaved", 0)))
    made = torch.cat([made, rest], -1) if size != x.shape[-1] else made
    return made.transpose(1, 2).flatten(2) if packed else made


def _turned(x: Tensor, cos: Tensor, sin: Tensor, pairs: bool) -> Tensor:
    one, other = (x[..., 0::2], x[..., 1::2]) if pairs else x.chunk(2, -1)
    real, imaginary = one * cos - other * sin, one * sin + other * cos
    return torch.stack([real, imaginary], -1).flatten(-2) if pairs else torch.cat([real, imaginary], -1)


OPERATORS: list[Any] = [attention, multi_head_attention, rotary]
