"""Which group holds a map, along every factor of its axis, and in the result of a merge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fxmerge
from fxmerge.ir.space import Leaf
from fxmerge.methods.groups import GROUPS, group_of, groups_of_factors
from tests.methods.test_condense import parent

EYE = torch.eye(4, dtype=torch.float64)
ORDER = EYE[[2, 0, 3, 1]]
SIGNS = torch.diag(torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64))
DRAWN = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TURN = torch.linalg.qr(DRAWN)[0].contiguous()


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (EYE, "identity"),
        (EYE[:, :3], "identity"),
        (ORDER, "permutation"),
        (ORDER[:3], "permutation"),
        (ORDER @ SIGNS, "signed"),
        (TURN, "orthogonal"),
        (TURN[:, :3], "orthogonal"),
        (2.0 * ORDER, "free"),
        (EYE + EYE.flip(0), "free"),
        (torch.zeros(4, 4, dtype=torch.float64), "free"),
    ],
)
def test_the_smallest_group_is_named(matrix: Tensor, expected: str) -> None:
    assert group_of(matrix) == expected


def test_heads_are_told_from_what_is_inside_them() -> None:
    factors = (Leaf("heads", 4), Leaf("inner", 4))
    assert groups_of_factors(torch.kron(ORDER, TURN), factors, factors) == ["permutation", "orthogonal"]
    assert groups_of_factors(torch.kron(EYE, SIGNS), factors, factors) == ["identity", "signed"]
    apart = torch.block_diag(TURN, ORDER, EYE, EYE)
    assert groups_of_factors(apart, factors, factors) == ["identity", "orthogonal"]
    assert groups_of_factors(torch.kron(TURN, EYE), factors, factors) == ["free", "free"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("average", {"identity"}),
        ("permute", {"identity", "permutation", "signed"}),
        ("condense", {"free", "orthogonal", "permutation", "identity"}),
        ("auto{polish=0}", set(GROUPS)),
    ],
)
def test_the_result_says_what_was_done_to_every_space(method: str, expected: set[str]) -> None:
    (first, x), (second, _) = parent("vit", 1, "a"), parent("vit", 2, "b")
    found = fxmerge.merge([first, second], data={"a": x, "b": x}, method=method, seed=0).result["merged"]["groups"]
    assert found
    assert set(found.values()) <= expected
    assert method == "average" or set(found.values()) != {"identity"}


@pytest.mark.parametrize(
    ("method", "of"),
    [("foldable{init=rotate,steps=2,augment=vector}", "result"), ("auto{init=rotate,steps=2}", "start")],
)
def test_of_what_is_trained_the_start_and_the_end_are_told_apart(method: str, of: str) -> None:
    (first, x), (second, _) = parent("vit-fused", 1, "a"), parent("vit-fused", 2, "b")
    result = fxmerge.merge([first, second], data={"a": x, "b": x}, method=method, lr=1e-3).result
    found = result["merged"]
    assert set(found["groups_at_start"].values()) == {"identity", "permutation", "orthogonal"}
    assert found["groups_of"] == of
    assert (found["groups"] == found["groups_at_start"]) == (of == "start")
    told = next(note for note in result["notes"] if note.startswith("spaces at the start rotate: 1 identity, 1 perm"))
    assert told.endswith("what training made of it: 5 free") == (of == "result")
    assert told.endswith("no group says what the result does") == (of == "start")
