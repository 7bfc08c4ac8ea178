"""Assignments against brute force and scipy's own answers on cases made by hand."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fxmerge.methods.alignment import matches
from fxmerge.methods.alignment.evidence import Sums


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_an_order_is_the_best_of_all(shape: tuple[int, int]) -> None:
    given = drawn(*shape)
    found = matches.permutation(given)
    rows, columns = linear_sum_assignment(given.numpy(), maximize=True)
    assert found.nonzero().tolist() == [[int(a), int(b)] for a, b in zip(rows, columns, strict=True)]
    wide = given if shape[0] <= shape[1] else given.T
    every = (sum(float(wide[i, j]) for i, j in enumerate(p)) for p in permutations(range(wide.shape[1]), len(wide)))
    assert float((found * given).sum()) == pytest.approx(max(every))


@pytest.mark.parametrize("signed", [False, True])
def test_given_features_the_order_is_the_best_of_all_by_their_correlation(signed: bool) -> None:
    """Features of 40 rows in two batches, those of the second parent in another order, with signs and noise."""
    first = drawn(40, 4)
    second = first[:, [2, 0, 3, 1]] * torch.tensor([1.0, -1.0, 1.0, -1.0] if signed else [1.0] * 4).double()
    second = 3.0 * second + drawn(40, 4, seed=1) + 5.0
    sums = Sums.empty(8)
    for rows in torch.cat([first, second], 1).split(25):
        sums.add(rows)
    common = sums.correlation[:4, 4:]
    np.testing.assert_allclose(common, np.corrcoef(first.T, second.T)[:4, 4:], atol=1e-12)
    fit = matches.signed_permutation if signed else matches.permutation
    score = common.abs() if signed else common
    best = max(permutations(range(4)), key=lambda order: sum(float(score[i, j]) for i, j in enumerate(order)))
    assert fit(common).abs().argmax(1).tolist() == list(best) == [1, 3, 0, 2]
    assert float((fit(common) * common).sum()) == pytest.approx(sum(float(score[i, j]) for i, j in enumerate(best)))


def test_signs_are_found_where_signed_similarity_misses_them() -> None:
    given = torch.tensor([[-0.9, 0.1], [0.1, -0.9]], dtype=torch.float64)
    assert matches.permutation(given).tolist() == [[0, 1], [1, 0]]
    assert matches.signed_permutation(given).tolist() == [[-1, 0], [0, -1]]


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 4)])
def test_a_rotation_is_that_of_procrustes(shape: tuple[int, int]) -> None:
    given = drawn(*shape)
    if shape[0] == shape[1]:
        expected, _ = orthogonal_procrustes(torch.eye(5).double().numpy(), given.numpy())
        assert torch.allclose(matches.rotation(given), torch.from_numpy(expected))
    found = matches.rotation(given)
    assert float((found * given).sum()) == pytest.approx(float(torch.linalg.svdvals(given).sum()))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_of_parents_does_not_matter(order: tuple[int, ...]) -> None:
    """Three parents of four units: the best common universe of all, found by trying every pair of orders."""
    pairs = {(a, b): drawn(4, 4, seed=10 * a + b) for a in range(3) for b in range(a + 1, 3)}

    def between(a: int, b: int) -> Tensor:
        return pairs[a, b] if a < b else pairs[b, a].T if b < a else torch.eye(4).double()

    given = [[between(a, b) for b in order] for a in order]
    found = matches.universe(given, 4, 0, matches.permutation)
    assert torch.equal(found[0], torch.eye(4).double())
    eyes = [torch.eye(4).double()[list(p)] for p in permutations(range(4))]
    every = [matches.total(given, [torch.eye(4).double(), p, q]) for p, q in product(eyes, eyes)]
    assert matches.total(given, found) > max(every) - 0.15 * (max(every) - sum(every) / len(every))


def test_units_that_a_wider_parent_has_too_many_of_are_left_out() -> None:
    truth = torch.eye(4).double()[[2, 0, 3]]
    found = matches.universe(
        [[torch.eye(3).double(), truth], [truth.T, torch.eye(4).double()]], 3, 0, matches.permutation
    )
    assert torch.equal(found[1], truth)
