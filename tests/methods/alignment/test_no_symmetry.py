"""What looks like a symmetry and is none: no method undoes it, and none says that it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fxmerge
from fxmerge.ir.program import Program
from tests.methods.test_condense import parent

SIGNS = torch.tensor([1.0, -1.0] * 6)
HEADS = torch.cat([torch.arange(6, 12), torch.arange(6)])
"""The two heads of 6 coordinates, the other way round."""


def flipped(name: str, value: Tensor) -> Tensor:
    """The residual stream with the sign of every second channel turned; what scales it stays."""
    if name in ("token", "position", "patch.bias") or name.endswith(("output.bias", "down.bias")):
        return value * SIGNS
    if name.endswith(("patch.weight", "output.weight", "down.weight")):
        return value * SIGNS.reshape(-1, *[1] * (value.dim() - 1))
    reads = name.endswith(("query.weight", "key.weight", "value.weight", "up.weight", "head.weight"))
    return value * SIGNS if reads or ("norm" in name and name.endswith("bias")) else value


def crossed(name: str, value: Tensor) -> Tensor:
    """Queries and keys in another order of heads than values and outputs."""
    return value[HEADS] if ".query." in name or ".key." in name else value


@pytest.mark.parametrize("method", ["permute{on=weights}", "rotate", "zipit", "transport{reg=0}"])
@pytest.mark.parametrize("change", [flipped, crossed])
def test_it_is_not_undone_and_not_claimed(change: Callable[[str, Tensor], Tensor], method: str) -> None:
    first, x = parent("vit", 1, "a")
    moved = {name: change(name, value) for name, value in first.tensors.items()}
    second: Program = dataclasses.replace(first.evolve(tensors=moved), task="b")
    (mine,), (other,) = first.run(x).values(), second.run(x).values()
    assert float((mine - other).abs().max() / mine.abs().max()) > 1e-2, "it is no symmetry"
    merged = fxmerge.merge([first, second], data={"a": x, "b": x}, method=method, seed=0)
    found = merged(*x.values())
    pairs = zip(found.values(), (mine, other), strict=True)
    assert max(float((y - own).abs().max() / own.abs().max()) for y, own in pairs) > 1e-2
    spaces = fxmerge.inspect(first)["spaces"]
    streams = [name for name, space in spaces.items() if space["role"] == "residual"]
    assert streams
    turned = ("orthogonal",) if method == "rotate" else ()  # pre-norm streams do turn, scales and all
    done = [merged.result["merged"]["groups"][name] for name in streams]
    assert all(group in ("identity", "permutation", "free", *turned) for group in done)
