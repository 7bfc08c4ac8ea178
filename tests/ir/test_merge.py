"""Merge, unmerge and fold are one product in three orders."""

import pytest
import torch

from fxmerge.ir.maps import AxisMap, Map, along
from fxmerge.ir.merge import fold, merge, unmerge

SIZES = (5, 7)
WIDTH = 6


def support(size: int, own: int) -> tuple[torch.Tensor, torch.Tensor]:
    n = torch.arange(min(size, own))
    return n, n


def a_map(kind: str, form: object, size: int = WIDTH, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Map:
    generator = torch.Generator().manual_seed(seed)
    block = Map(kind, size, sizes, [support(size, n) for n in sizes])
    block.start([torch.randn(block.shape(k), generator=generator) for k in range(len(sizes))], form, generator)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return block.double()


def whole(block: Map) -> AxisMap:
    axis_map = AxisMap(block.kind, block.size, block.sizes)
    axis_map.add(block, torch.arange(block.size), [torch.arange(n) for n in block.sizes])
    return axis_map


@pytest.mark.parametrize("form", ["full", "fixed", 0, 2])
@pytest.mark.parametrize("kind", ["merge", "unmerge"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_form_is_applied_as_its_dense_matrix(form: object, kind: str, axis: int) -> None:
    block = a_map(kind, form)
    for k in range(len(SIZES)):
        for transposed in (False, True):
            matrix = block.matrix(k).T if transposed else block.matrix(k)
            shape = [2, 3, 4]
            shape[axis] = matrix.shape[1]
            x = torch.randn(shape, dtype=torch.float64)
            expected = torch.einsum("...i,oi->...o", x.movedim(axis, -1), matrix).movedim(-1, axis)
            torch.testing.assert_close(block.apply_along(x, k, axis, transposed=transposed), expected)
            torch.testing.assert_close(along(x, matrix, axis), expected)


@pytest.mark.parametrize("form", ["full", 0, 3])
def test_weight_order_is_activation_order_with_the_same_gradients(form: object) -> None:
    written, read = whole(a_map("merge", form, seed=1)), whole(a_map("unmerge", form, size=4, sizes=(3, 6), seed=2))
    weights = [torch.randn(o, i, dtype=torch.float64) for o, i in zip(SIZES, (3, 6), strict=True)]
    x = torch.randn(11, 4, dtype=torch.float64)
    trained = [*written.parameters(), *read.parameters()]

    def activations() -> torch.Tensor:
        return merge([unmerge(x, read, 1, k) @ w.T for k, w in enumerate(weights)], written, 1, [0, 1])

    def on_weights() -> torch.Tensor:
        return x @ fold(weights, [written, read], [0, 1], [0, 1]).T

    results = [activations(), on_weights()]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(r.square().sum(), trained) for r in results]
    for one, two in zip(*gradients, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-10)


def test_blocks_carry_their_own_positions_only() -> None:
    """A fused axis of two interleaved blocks, one of them shared by all parents as it is."""
    block = Map("unmerge", 2, (3, 2), [support(2, 3), support(2, 2)])
    block.start([torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.tensor([[1.0, 0], [0, -1]])], "full")
    axis_map = AxisMap("unmerge", 4, (5, 4))
    axis_map.add(block, torch.tensor([0, 2]), [torch.tensor([0, 2, 4]), torch.tensor([0, 2])])
    axis_map.add(None, torch.tensor([1, 3]), [torch.tensor([1, 3]), torch.tensor([1, 3])])
    x = torch.tensor([[10.0, 7, 1, 9]])
    torch.testing.assert_close(axis_map.to_parent(x, 0, 1), torch.tensor([[12.0, 7, 34, 9, 56]]))
    torch.testing.assert_close(axis_map.to_parent(x, 1, 1), torch.tensor([[10.0, 7, -1, 9]]))
    weight = torch.randn(2, 5)
    assert torch.allclose(axis_map.to_merged(weight, 0, 1) @ x[0], weight @ axis_map.to_parent(x, 0, 1)[0])


def test_the_average_counts_each_coordinate_over_the_parents_that_have_it() -> None:
    block = Map("merge", 4, (4, 2), [support(4, 4), support(4, 2)])
    torch.testing.assert_close(block.matrix(0).diagonal(), torch.tensor([0.5, 0.5, 1, 1]))
    torch.testing.assert_close(block.matrix(1).diagonal(), torch.tensor([0.5, 0.5]))
    block.average((0.0, 1.0))
    torch.testing.assert_close(block.matrix(0).diagonal(), torch.tensor([0.0, 0, 1, 1]))
    torch.testing.assert_close(block.matrix(1).diagonal(), torch.tensor([1.0, 1]))


def test_a_low_rank_starts_as_its_diagonal() -> None:
    block = Map("merge", 3, (3, 3), [support(3, 3)] * 2)
    matrices = [torch.eye(3), torch.eye(3) * 0.5]
    block.start(matrices, 2, torch.Generator().manual_seed(0))
    for k, matrix in enumerate(matrices):
        torch.testing.assert_close(block.matrix(k), matrix)
    assert all(right.abs().max() > 0 for right in block.rights), "both factors zero would never train"
