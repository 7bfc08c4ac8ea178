"""What a kind of network is: one that people write in a way of its own, put through the whole of fxmerge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, INNER, CLASSES = 6, 8, 3

Inputs = Callable[[int], Any]
"""Inputs of a network for a number of rows, as the network takes them."""


@dataclass(frozen=True)
class Kind:
    """A kind of network: what builds one, and its inputs."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    group: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `fxmerge.save`."""
    fixed: int | None = None
    """The only number of rows that the network takes."""
    turned: tuple[int, ...] = ()
    """The batch axis of each input, and then of each output, where it is not the first."""


def kinds(known: list[Kind]) -> Callable[..., Callable[[type], type]]:
    """A decorator that adds the class of networks below it to a list, as a kind."""

    def kind(name: str, group: str, inputs: Inputs | None = None, **more: Any) -> Callable[[type], type]:
        def add(cls: type) -> type:
            known.append(Kind(name, cls, inputs or rows_of_floats, group, **more))
            return cls

        return add

    return kind


def rows_of_floats(rows: int) -> Any:
    return (torch.randn(rows, WIDTH),)


class Base(nn.Module):
    """A hidden layer, another one, and a head."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.enter, self.middle, self.head = nn.Linear(width, INNER), nn.Linear(INNER, INNER), nn.Linear(INNER, CLASSES)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.middle(torch.relu(self.enter(x))))
