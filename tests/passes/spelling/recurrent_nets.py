"""Recurrent networks as people write them: what the head reads of the layers differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

INPUTS, TIMES = 5, 6


class Net(nn.Module):
    """(batch, time, features) to three logits through recurrent layers; `read` takes what the head sees."""

    def __init__(self, layers: nn.Module, width: int, read: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.layers, self.head, self.read = layers, nn.Linear(width, 3), read

    def forward(self, x: Tensor) -> Tensor:
        first: bool = self.layers.batch_first  # type: ignore[assignment]
        out, state = self.layers(x if first else x.transpose(0, 1))
        return self.head(self.read(out if first else out.transpose(0, 1), state))


class Encoder(nn.Module):
    """A speaker encoder: three layers, the last state, a projection of length one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(INPUTS, width, 3, batch_first=True), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        states = torch.zeros(3, x.shape[0], self.lstm.hidden_size)
        _, (hidden, _) = self.lstm(x, (states, states))
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


class Between(nn.Module):
    """Layers with gates between linear ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.gru = nn.Linear(INPUTS, width + 2), nn.GRU(width + 2, width, batch_first=True)
        self.after, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(torch.relu(self.before(x)))
        return self.head(torch.relu(self.after(out)).mean(1))


class Classifier(nn.Module):
    """Tokens of any number to two logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.gru, self.head = nn.GRU(6, width, bidirectional=True, batch_first=True), nn.Linear(2 * width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        _, hidden = self.gru(self.embedding(ids))
        return self.head(hidden.transpose(0, 1).reshape(ids.shape[0], -1))


class Cells(nn.Module):
    """A cell, once for every time, and a head on what it is at the end."""

    def __init__(self, cell: Callable[[int], nn.Module], width: int) -> None:
        super().__init__()
        self.cell, self.head = cell(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for given in x.unbind(1):
            state = self.cell(given, state)
        return self.head(sum(state) if isinstance(state, tuple) else state)


def last(_: Tensor, state: Any) -> Tensor:
    return (state[0] if isinstance(state, tuple) else state)[-1]


def both(_: Tensor, state: Any) -> Tensor:
    hidden = state[0] if isinstance(state, tuple) else state
    return torch.cat([hidden[-2], hidden[-1]], 1)


def grid(out: Tensor, state: Any) -> Tensor:
    return torch.cat(list(state[0].view(-1, 2, out.shape[0], out.shape[2] // 2)[-1]), 1)


def cells(_: Tensor, state: Any) -> Tensor:
    return torch.cat([state[0][-1], state[1][-1]], 1)


def rows(_: Tensor, state: Any) -> Tensor:
    return state.sum(0)


NETS: Mapping[str, Callable[[int], nn.Module]] = {
    "lstm-all": lambda u: Net(nn.LSTM(INPUTS, u, batch_first=True), u, lambda out, _: out.mean(1)),
    "lstm-2-last": lambda u: Net(nn.LSTM(INPUTS, u, 2, bias=False, batch_first=True), u, last),
    "lstm-2-both-grid": lambda u: Net(nn.LSTM(INPUTS, u, 2, bidirectional=True, batch_first=True), 2 * u, grid),
    "lstm-cells": lambda u: Net(nn.LSTM(INPUTS, u, batch_first=True), 2 * u, cells),
    "gru-time-first": lambda u: Net(nn.GRU(INPUTS, u, 2), u, lambda out, _: out[:, -1]),
    "gru-both": lambda u: Net(nn.GRU(INPUTS, u, bidirectional=True, batch_first=True), 2 * u, both),
    "gru-2-sum": lambda u: Net(nn.GRU(INPUTS, u, 2, batch_first=True), u, rows),
    "tanh-3-both": lambda u: Net(nn.RNN(INPUTS, u, 3, bidirectional=True, batch_first=True), 2 * u, both),
    "relu-last": lambda u: Net(nn.RNN(INPUTS, u, nonlinearity="relu", batch_first=True), u, last),
    "lstm-cell": lambda u: Cells(lambda u: nn.LSTMCell(INPUTS, u), u),
    "gru-cell": lambda u: Cells(lambda u: nn.GRUCell(INPUTS, u, bias=False), u),
    "relu-cell": lambda u: Cells(lambda u: nn.RNNCell(INPUTS, u, nonlinearity="relu"), u),
    "encoder": Encoder,
    "between": Between,
}


def net(name: str, width: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETS[name](width).eval()


def inputs(rows: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, TIMES, INPUTS, generator=torch.Generator().manual_seed(seed))
