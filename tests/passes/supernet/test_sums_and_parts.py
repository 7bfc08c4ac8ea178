"""Calls that sum over what several data share, that write no axis, or that read a part of a tensor, merge exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge


class Net(nn.Module):
    """Two hidden layers side by side, and one call of some kind that takes both."""

    def __init__(self, call: Call, *, head: bool) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8)
        self.call, self.head = call, nn.Linear(8, 3) if head else nn.Identity()
        self.weight, self.vector = nn.Parameter(torch.randn(8, 8) / 2), nn.Parameter(torch.randn(8))
        self.down, self.up = nn.Parameter(torch.randn(8, 5) / 2), nn.Parameter(torch.randn(5, 8) / 2)
        self.column = nn.Parameter(torch.randn(16, 1) / 2)
        self.long = nn.Parameter(torch.randn(9, 8) / 2)
        self.register_buffer("rows", torch.tensor([3, 1, 0, 2, 7, 5, 6, 3]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self, F.relu(self.left(x)), torch.sigmoid(self.right(x))))


Call = Callable[[Net, Tensor, Tensor], Tensor]

INNER: dict[str, tuple[Call, int]] = {
    "summed along with a product": (lambda n, h, g: torch.einsum("bi,bi,oi->bo", h, g, n.weight), 0),
    "two weights in a row": (lambda n, h, g: torch.einsum("dk,kh,bd->bh", n.down, n.up, h), 0),
    "between two data": (lambda n, h, g: torch.einsum("bi,ij,bj->b", h, n.weight, g)[:, None] * h, 0),
    "a vector that scores": (lambda n, h, g: h * torch.sigmoid(h @ n.vector)[:, None], 8),
    "two parts of a column": (lambda n, h, g: h * torch.sigmoid(h @ n.column[:8] + g @ n.column[8:]), 0),
    "rows picked": (lambda n, h, g: F.linear(h, n.long[n.rows]), 0),
    "rows cut": (lambda n, h, g: F.linear(h, n.long[:8]), 0),
    "columns cut": (lambda n, h, g: F.linear(F.relu(F.linear(h, n.long[:4])), n.weight[:, :4]), 0),
}
"""Calls in the trunk, and how many of their numbers are a plain average."""
HEADS: dict[str, tuple[Call, int]] = {
    "a vector as head": (lambda n, h, g: h @ n.vector, 0),
    "between two data as head": (lambda n, h, g: torch.einsum("bi,ij,bj->b", h, n.weight, g), 0),
    "a vector beside a head": (lambda n, h, g: F.linear(h, n.up) + (h @ n.vector)[:, None], 0),
}


@pytest.mark.parametrize("name", [*INNER, *HEADS])
def test_a_network_merged_with_itself_is_itself(name: str) -> None:
    call, averaged = (INNER | HEADS)[name]
    torch.manual_seed(3)
    x = torch.randn(10, 6)
    nets = [Net(call, head=name in INNER).eval() for _ in range(2)]
    first, other = (fxmerge.capture(net, (x,), task=task) for net, task in zip(nets, "ab", strict=True))
    merged = fxmerge.merge([first, other], method="average")
    assert merged.result["merged"]["averaged"] == averaged
    itself = fxmerge.merge([first, first.evolve(task="b")], method="average")
    torch.testing.assert_close(itself(x)["a"], first(x), atol=1e-5, rtol=1e-5)
    if name in HEADS:  # every task keeps its own
        own = "vector" if "vector" in name else "weight"
        assert merged.program.tensors.keys() >= {f"a.{own}", f"b.{own}"}


def test_layers_may_be_called_as_tasks_are() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,ij,bj->b", F.relu(self.a(x)), self.weight, torch.sigmoid(self.b(x)))

    x = torch.randn(10, 6)
    nets = [Called().eval() for _ in range(2)]
    nets[1].a = nets[0].a
    programs = [fxmerge.capture(net, (x,), task=task) for net, task in zip(nets, "ab", strict=True)]
    merged = fxmerge.merge(programs, method="average")
    assert {"a.weight", "a.weight_2", "b.weight_2", "a.b.weight", "b.b.weight"} <= merged.state_dict().keys()
    for net, found in zip(nets, merged(x).values(), strict=True):
        torch.testing.assert_close(found, net(x), atol=1e-5, rtol=1e-5)
