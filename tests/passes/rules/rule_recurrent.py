"""Calls of recurrent layers: stacks as torch has them, and one layer in one direction."""

from __future__ import annotations

from torch import Tensor

from tests.passes.rules.rule_values import Call, z

T, B, C, U = 5, 2, 3, 7
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _parameters(gates: int, layers: int, directions: int, biased: bool) -> list[Tensor]:
    found: list[Tensor] = []
    for layer in range(layers):
        for _ in range(directions):
            found += [z(gates * U, U * directions if layer else C), z(gates * U, U)]
            found += [z(gates * U), z(gates * U)] if biased else []
    return found


def _stack(kind: str, layers: int, directions: int, biased: bool, batch_first: bool, start: bool) -> Call:
    states = [z(layers * directions, B, U) * start for _ in range(2 if kind == "lstm" else 1)]
    x = z(B, T, C) if batch_first else z(T, B, C)
    weights = _parameters(GATES[kind], layers, directions, biased)
    hx = states if kind == "lstm" else states[0]
    return x, hx, weights, biased, layers, 0.0, False, directions == 2, batch_first


def _layer(kind: str, biased: bool, start: bool, reverse: bool) -> Call:
    gates = GATES[kind] * U
    states = [z(B, U) if start else None for _ in range(2 if kind == "lstm" else 1)]
    return z(T, B, gates), z(gates, U), z(gates) if biased else None, *states, reverse


def _cell(kind: str, biased: bool) -> Call:
    gates, states = GATES[kind] * U, [z(B, U) for _ in range(2 if kind == "lstm" else 1)]
    biases = (z(gates), z(gates)) if biased else (None, None)
    return z(B, C), states if kind == "lstm" else states[0], z(gates, C), z(gates, U), *biases


RECURRENT: dict[str, list[Call]] = (
    {
        f"{kind}.input": [
            _stack(kind, 1, 1, biased=True, batch_first=False, start=True),
            _stack(kind, 2, 2, biased=False, batch_first=True, start=True),
        ]
        for kind in GATES
    }
    | {f"{kind}_cell.default": [_cell(kind, biased=True), _cell(kind, biased=False)] for kind in GATES}
    | {
        f"fxmerge.{name}.default": [
            _layer(kind, biased=True, start=False, reverse=False),
            _layer(kind, biased=False, start=True, reverse=True),
        ]
        for name, kind in (*((k, k) for k in GATES), ("lstm_cell_state", "lstm"))
    }
)
