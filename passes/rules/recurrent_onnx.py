"""Recurrent layers at export: the sizes of their results, and the kinds that PyTorch's exporter cannot write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def empty(
    input: Tensor,
    hx: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Empty results of a stack of layers: the last layer's units at every time, and a state for each of `hx`."""
    states = [hx] if isinstance(hx, Tensor) else list(hx)
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    return input.new_empty([*input.shape[:-1], width]), *(state.new_empty(state.shape) for state in states)


def lstm(input: Any, hx: Sequence[Any], *given: Any) -> Any:
    """The exporter's own translation, which takes no notice of projected states: ONNX has no such layer."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_lstm

    hidden, cell = hx
    if hidden.shape[2] != cell.shape[2]:
        raise ValueError("ONNX has no LSTM that projects its states (proj_size)")
    return aten_lstm(input, hx, *given)


def rnn(activation: str) -> Callable[..., Any]:
    """The translation of layers without gates: one RNN of ONNX a layer, both directions in one."""

    def translate(
        input: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        from onnxscript import opset18

        op: Any = opset18

        directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
        below = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        ends = []
        for layer in range(num_layers):
            first = layer * directions
            w, v, *biases = ([params[(first + d) * each + i] for d in range(directions)] for i in range(each))
            both = [op.Concat(b, c, axis=0) for b, c in zip(*biases, strict=True)]
            hidden, end = op.RNN(
                below,
                _rows(op, w),
                _rows(op, v),
                _rows(op, both) if both else None,
                initial_h=op.Slice(hx, [first], [first + directions], [0]),
                activations=[activation] * directions,
                direction="bidirectional" if bidirectional else "forward",
                hidden_size=hx.shape[2],
            )
            below = op.Reshape(op.Transpose(hidden, perm=[0, 2, 1, 3]), [0, 0, -1])
            ends.append(end)
        result = op.Transpose(below, perm=[1, 0, 2]) if batch_first else below
        return result, op.Concat(*ends, axis=0) if len(ends) > 1 else ends[0]

    return translate


def _rows(op: Any, values: Sequence[Any]) -> Any:
    """One row a direction."""
    rows = [op.Unsqueeze(value, [0]) for value in values]
    return op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]
