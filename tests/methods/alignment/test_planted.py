"""B = g·A: a method whose group holds g gives A back; one whose group does not says nothing of the kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fxmerge
from benchmarks.family_nets import Llama
from fxmerge.coupling.elements import Kind
from fxmerge.ir.program import Program
from tests.golden.nets import DepthwiseSqueezeExcite, TopKExperts
from tests.methods import test_condense
from tests.methods.alignment.planted import planted
from tests.methods.test_condense import parent

PERMUTATION: tuple[Kind, ...] = ("permutation",)
TURNS: tuple[Kind, ...] = ("permutation", "dense")


def miss(parents: list[Program], x: dict[str, Tensor], method: str) -> tuple[float, Any]:
    """How far the merge of parents that are one function is from it, relative; and the result."""
    merged = fxmerge.merge(parents, data={p.task: x for p in parents}, method=method, seed=0)
    given = next(iter(parents[0].run(x).values()))
    found = merged(*x.values()).values()
    return max(float((y - given).abs().max() / given.abs().max()) for y in found), merged.result


@pytest.mark.parametrize(
    ("family", "method", "kinds", "count"),
    [
        ("vit", "permute", PERMUTATION, 3),
        ("vit-fused", "permute", PERMUTATION, 2),
        ("gpt", "permute", PERMUTATION, 2),
        ("resnet", "permute", PERMUTATION, 2),
        ("vit", "permute{on=weights}", PERMUTATION, 2),
        ("mlp", "permute{on=weights}", PERMUTATION, 3),
        ("vit-fused", "rotate", TURNS, 2),
        ("resnet", "zipit", PERMUTATION, 2),
        ("vit", "transport{reg=0}", PERMUTATION, 2),
        ("mlp", "transport{reg=0}", PERMUTATION, 3),
        ("mlp", "transport{reg=0,on=weights}", PERMUTATION, 3),
        ("mlp", "zipit", PERMUTATION, 3),
        ("vit-fused", "align", TURNS, 2),
        ("mlp", "align", PERMUTATION, 3),
        ("llama", "permute", PERMUTATION, 2),
        ("llama", "permute{on=weights}", PERMUTATION, 2),
        ("depthwise", "permute{on=weights}", PERMUTATION, 3),
        ("depthwise", "zipit", PERMUTATION, 2),
        ("top-k-experts", "permute", PERMUTATION, 2),
    ],
)
def test_a_planted_symmetry_is_undone(family: str, method: str, kinds: tuple[Kind, ...], count: int) -> None:
    first, x = parent(family, 1, "a")
    others = [planted(first, kinds, seed=i, task="bcd"[i], stretched=False) for i in range(count - 1)]
    assert any(not torch.equal(first.tensors[n], others[0].tensors[n]) for n in first.parameters)
    found, result = miss([first, *others], x, method)
    assert found < 1e-5
    name = method.partition("{")[0]
    assert any(note.startswith(f"{name}: permutation") for note in result["notes"])
    assert any(note.startswith(f"{name}: orthogonal") for note in result["notes"]) == (kinds == TURNS)


@pytest.fixture(autouse=True)
def _llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys for groups of queries, rotary positions, gates; channels on their own; experts, of which a few are asked."""

    def llama() -> Any:
        net = Llama(20, vocabulary=20, width=16, heads=4, groups=2, hidden=16, depth=1)
        return net, {"input_ids": torch.randint(0, 20, (96, 9))}

    more = {
        "llama": llama,
        "depthwise": lambda: (DepthwiseSqueezeExcite(), {"x": torch.randn(32, 3, 9, 9)}),
        "top-k-experts": lambda: (TopKExperts(), {"x": torch.randn(32, 11, 5)}),
    }
    monkeypatch.setattr(test_condense, "FAMILIES", {**test_condense.FAMILIES, **more})


def test_planes_of_rotary_positions_keep_their_order() -> None:
    first, x = parent("llama", 1, "a")
    _, result = miss([first, planted(first)], x, "permute")
    left = [note for note in result["notes"] if note.startswith("permute: left as it is")]
    assert len(left) == 1 and "query_key" in left[0]


def test_what_is_in_no_order_is_not_claimed() -> None:
    first, x = parent("vit", 1, "a")
    found, result = miss([first, planted(first, ("permutation", "dense"))], x, "permute")
    assert found > 1e-2
    assert not any("orthogonal" in note or "free" in note for note in result["notes"])
