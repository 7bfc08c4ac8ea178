"""Factors go into the weights that write what they multiply, exactly, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from fxmerge.ir.program import Program
from fxmerge.pipeline import Pipeline
from passes.line_up.fold_factors import fold_factors
from passes.line_up.further import Respell, unwatched

Branch = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A branch beside a stream (batch, 8), by linear maps or by convolutions of one place, and factors of all kinds."""

    def __init__(self, sum_of: Branch, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.head, self.norm = nn.Linear(6, 8), nn.Linear(8, 3), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 8)
        self.conv, self.still = nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)
        self.number, self.numbers = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.randn(8))
        self.register_buffer("fixed", torch.randn(8))
        nn.init.uniform_(self.still.weight, 0.5, 1.5)
        self.sum_of = sum_of

    def branch(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))  # type: ignore[no-any-return]

    def rows(self, x: Tensor) -> Tensor:
        return self.still(self.conv(x[:, :, None]))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.sum_of(self, x))  # type: ignore[no-any-return]


FOLDED: dict[str, Branch] = {
    "a number": lambda net, x: x + 0.5 * net.branch(x),
    "division": lambda net, x: x + net.branch(x) / -4.0,
    "weight": lambda net, x: torch.add(x, net.branch(x), alpha=3),
    "learnt": lambda net, x: x + net.number * net.branch(x),
    "learnt apart": lambda net, x: x + net.branch(x) * net.numbers,
    "fixed": lambda net, x: net.fixed * net.branch(x) + x,
    "moved": lambda net, x: x + (net.branch(x)[:, None] * net.numbers).flatten(1),
    "channels": lambda net, x: x + (net.rows(x) * net.numbers[:, None]).flatten(1),
    "behind a sign": lambda net, x: x + 2.0 * F.relu(net.branch(x)),
    "of a sum": lambda net, x: x + 0.5 * (net.branch(x) + net.rows(x)[:, :, 0]),
}
LEFT: dict[str, Branch] = {
    "read twice": lambda net, x: (y := net.branch(x)) + 0.5 * y,
    "by data": lambda net, x: x + net.branch(x) * x,
    "behind a curve": lambda net, x: x + 0.5 * torch.tanh(net.branch(x)),
    "a negative sign": lambda net, x: x + -2.0 * F.relu(net.branch(x)),
    "of a tied weight": lambda net, x: x + 0.5 * F.linear(F.linear(x, net.up.weight), net.up.weight.T),
    "of the stream": lambda net, x: 0.5 * x + net.norm(x),
    "along two axes": lambda net, x: x + (net.branch(x).unflatten(1, (2, 4)) * net.numbers.view(2, 4)).flatten(1),
    "turned round": lambda net, x: x + net.branch(x).flip(1) * net.numbers,
    "beside zeros": lambda net, x: x + 2.0 * F.pad(net.branch(x)[:, 1:], (1, 0), value=1.0),
    "of places": lambda net, x: x + (net.branch(x)[:, None] * net.number.expand(1, 3, 1).cumsum(1)).sum(1),
}


def program(branch: Branch, task: str = "a", seed: int = 0) -> tuple[Program, Tensor]:
    x = torch.randn(12, 6)
    return fxmerge.capture(Net(branch, seed).eval(), (x[:4],), task=task), x


def multiplied(found: Program) -> int:
    """How many calls are left that multiply or divide, or weigh a term."""
    return sum(
        any(word in str(node.target) for word in ("mul", "div")) or "alpha" in node.kwargs
        for node in found.graph.nodes
        if node.op == "call_function"
    )


@pytest.mark.parametrize("name", FOLDED)
def test_a_factor_is_part_of_the_weights(name: str, double: Callable[[Program], Program]) -> None:
    before, x = program(FOLDED[name])
    found = fold_factors(unwatched(Pipeline((Respell(),)), double(before)))
    assert multiplied(found) == 0, found.text()
    assert any(note.startswith("a: factors are part of") for note in found.notes)
    torch.testing.assert_close(found(x.double()), double(before)(x.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LEFT)
def test_what_weights_cannot_take_is_left(name: str) -> None:
    before, _ = program(LEFT[name])
    found = fold_factors(before)
    assert not found.notes, found.text()


def test_parents_with_and_without_factors_line_up() -> None:
    (first, x), (second, _) = program(lambda net, x: x + net.branch(x)), program(FOLDED["learnt apart"], "b", 1)
    merged = fxmerge.merge([first, second], data=x, method="average")
    assert any(note.startswith("b: factors are part of down.weight") for note in merged.result["notes"])
    alone = fxmerge.merge([first, second], data=x, method="foldable{init=parent1,steps=1,lr=1e-9}")
    torch.testing.assert_close(alone(x)["b"], second(x), rtol=1e-5, atol=1e-5)
