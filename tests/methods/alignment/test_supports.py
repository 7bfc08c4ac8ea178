"""Maps of low rank hold orders and signs on their diagonals, and nothing else."""

from __future__ import annotations

import torch

from fxmerge.ir.maps import Map


def test_a_diagonal_stands_where_an_order_has_its_entries() -> None:
    places = torch.arange(3)
    held = Map("unmerge", 3, [3, 3], [(places, places)] * 2)
    orders = [torch.eye(3), torch.tensor([[0.0, 0, -1], [1, 0, 0], [0, 1, 0]])]
    assert held.support_on(orders)
    held.start(orders, 1)
    assert all(torch.equal(held.matrix(k), order) for k, order in enumerate(orders))
    held.average()
    assert torch.equal(held.matrix(1), torch.eye(3))
    assert not held.support_on([torch.eye(3), torch.ones(3, 3)])
