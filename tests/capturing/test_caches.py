"""What a model keeps from one call for the next is no part of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxmerge


class Cached(nn.Module):
    """Rows of a learnt table, picked once and kept, as attention biases of LeViT are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.table = nn.Parameter(torch.randn(5, 6))
        self.register_buffer("rows", torch.tensor([3, 1, 3]))
        self.known: dict[str, Tensor] = {}
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.ndim)
        if "rows" not in self.known:
            self.known["rows"] = self.table[self.rows]
        logits: Tensor = self.head((self.first(x) + self.known["rows"].sum(0)).relu())
        return logits


def test_what_is_computed_once_is_read_from_its_parameters() -> None:
    model, x = Cached().eval(), torch.randn(5, 4)
    program = fxmerge.capture(model, (x,))
    assert not model.known and not model.seen
    assert "table" in program.parameters
    torch.testing.assert_close(program(x), model(x))
    moved = program.evolve(tensors={**program.tensors, "table": program.tensors["table"] + 1})
    with torch.no_grad():
        model.table += 1
        model.known.clear()
    torch.testing.assert_close(moved(x), model(x))
