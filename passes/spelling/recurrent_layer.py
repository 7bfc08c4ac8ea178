"""One recurrent layer in one direction as an operator: the loop alone, without the map from its input to the gates.

    gates[t, b, g·u]  weight[g·u, u]  bias[g·u]?  state[b, u]?  cell[b, u]?      -->      hidden[t, b, u]

With `reverse` the loop runs from the last time to the first. Without a state it starts at zero. The gates stand in the
order of torch: input, forget, new, output (lstm); reset, update, new (gru). `lstm_cell_state` is the same loop as
`lstm`, and its result the cell at the end of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(what the input gives the gates, what the state gives them, the state) -> the next state, hidden units first."""

_library: Any = torch.library.Library("fxmerge", "FRAGMENT")  # type: ignore[no-untyped-call]


def _lstm_step(given: Tensor, fed: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    take, keep, new, show = (given + fed).chunk(4, -1)
    cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell


def _gru_step(given: Tensor, fed: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    reset, update, new = zip(given.chunk(3, -1), fed.chunk(3, -1), strict=True)
    fresh = torch.tanh(new[0] + torch.sigmoid(reset[0] + reset[1]) * new[1])
    share = torch.sigmoid(update[0] + update[1])
    return (fresh + share * (state[0] - fresh),)


def _tanh_step(given: Tensor, fed: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (torch.tanh(given + fed),)


def _relu_step(given: Tensor, fed: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (torch.relu(given + fed),)


def _loop(
    step: Step, gates: Tensor, weight: Tensor, bias: Tensor | None, start: list[Tensor | None], reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The hidden units at every time, and the state at the end."""
    zero = gates.new_zeros(gates.shape[1], weight.shape[1])
    state = tuple(zero if each is None else each for each in start)
    times = gates.unbind(0)
    hidden = []
    for given in times[::-1] if reverse else times:
        state = step(given, torch.nn.functional.linear(state[0], weight, bias), state)
        hidden.append(state[0])
    return torch.stack(hidden[::-1] if reverse else hidden), state


def _define(name: str, states: tuple[str, ...], of: Callable[..., Tensor], shape: Callable[..., list[int]]) -> None:
    """Register one operator: computed by `of`, its result as large as `shape` says."""
    more = "".join(f", Tensor? {each}" for each in states)
    _library.define(f"{name}(Tensor gates, Tensor weight, Tensor? bias{more}, bool reverse) -> Tensor")
    operator = getattr(torch.ops.fxmerge, name).default

    def differentiable(gates: Tensor, *rest: Tensor | bool | None) -> Tensor:
        """The steps, recorded by autograd; below it where nobody wants a gradient, so that fake tensors run none."""
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (gates, *rest)):
            return of(gates, *rest)
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = operator(gates, *rest)
        return result

    _library.impl(name, differentiable, "Autograd")
    _library.impl(name, of, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fxmerge::{name}", lambda gates, *rest: gates.new_empty(shape(gates, *rest)))


def _hidden(gates: Tensor, weight: Tensor, *_: object) -> list[int]:
    return [*gates.shape[:2], weight.shape[1]]


def _end(gates: Tensor, weight: Tensor, *_: object) -> list[int]:
    return [gates.shape[1], weight.shape[1]]


def _simple(step: Step) -> Callable[..., Tensor]:
    return lambda gates, weight, bias, state, reverse: _loop(step, gates, weight, bias, [state], reverse)[0]


_define("rnn_tanh", ("state",), _simple(_tanh_step), _hidden)
_define("rnn_relu", ("state",), _simple(_relu_step), _hidden)
_define("gru", ("state",), _simple(_gru_step), _hidden)
_define(
    "lstm",
    ("state", "cell"),
    lambda gates, weight, bias, state, cell, reverse: _loop(_lstm_step, gates, weight, bias, [state, cell], reverse)[0],
    _hidden,
)
_define(
    "lstm_cell_state",
    ("state", "cell"),
    lambda gates, weight, bias, state, cell, reverse: _loop(_lstm_step, gates, weight, bias, [state, cell], reverse)[1][
        1
    ],
    _end,
)
