"""Recurrent layers, as torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxmerge.from_onnx.call import Call, from_onnx

ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Which of ONNX's gates each of torch's is: i o f c --> i f g o, and z r h --> r z n."""

USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@from_onnx("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> tuple[Any, ...]:
    """torch's lstm, gru, rnn_tanh or rnn_relu, its gates in torch's order"""
    kind, x = call.operator, call.tensor(0)
    ways = {"forward": 1, "reverse": 1, "bidirectional": 2}[call.get("direction", "forward")]
    size, usual = call.get("hidden_size"), USUAL[kind]
    activations = [a.capitalize() for a in call.get("activations", usual * ways)]
    relu = kind == "RNN" and activations == ["Relu"] * ways
    if not relu and activations != usual * ways:
        raise call.refuse(f"it has the activations {', '.join(activations)}")
    if call.has(4) or call.has(7) or call.get("clip") or call.get("layout", 0) or call.get("input_forget", 0):
        raise call.refuse("it has lengths, peepholes, a clip or another layout", "export the layer without them")
    if kind == "GRU" and not call.get("linear_before_reset", 0):
        raise call.refuse("it resets before the product, as torch does not", "export it with linear_before_reset=1")
    x = x.flip(0) if call.get("direction") == "reverse" else x
    weights: list[Tensor] = []
    for way in range(ways):
        weights += [_gates(call.tensor(i)[way], kind, size) for i in (1, 2)]
        if call.has(3):
            weights += [_gates(half, kind, size) for half in call.tensor(3)[way].chunk(2)]
    states = [call.given(i) for i in ((5, 6) if kind == "LSTM" else (5,))]
    empty = torch.zeros(ways, x.shape[1], size, dtype=x.dtype)
    start = [empty if state is None else state for state in states]
    settings = (call.has(3), 1, 0.0, False, ways == 2, False)
    if kind == "LSTM":
        y, *last = torch.lstm(x, start, weights, *settings)
    else:
        run: Any = {"GRU": torch.gru, "RNN": torch.rnn_relu if relu else torch.rnn_tanh}[kind]
        y, *last = run(x, start[0], weights, *settings)
    y = y.flip(0) if call.get("direction") == "reverse" else y
    return y.reshape(*y.shape[:2], ways, size).movedim(2, 1), *last


def _gates(weight: Tensor, kind: str, size: int) -> Tensor:
    parts = torch.split(weight, size)
    return torch.cat([parts[i] for i in ORDER[kind]])


OPERATORS = [recurrent]
