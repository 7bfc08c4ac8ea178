"""A rule that does not know a call, or raises, costs that one call and is heard; nothing stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge import couples
from fxmerge.coupling import Rule, RuleRefusal, moves
from passes import check, describe
from passes.rules import BUILTIN

X = torch.randn(6, 6)


@pytest.fixture
def twist() -> Iterator[str]:
    """An operator that nobody knows but an extension: x ↦ x · tanh(scale)."""
    with torch.library._scoped_library("fxmerge_test_refusals", "FRAGMENT") as library:
        library.define("twist(Tensor x, Tensor scale) -> Tensor")
        library.impl("twist", lambda x, scale: x * scale.tanh(), "CompositeExplicitAutograd")
        library.impl("twist", lambda x, scale: torch.empty_like(x), "Meta")
        yield "fxmerge_test_refusals.twist.default"


class Twisted(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        twisted = torch.ops.fxmerge_test_refusals.twist(self.first(x), self.scale)
        return self.head(self.inner(twisted).relu())


class Products(nn.Module):
    """Products along the first axis, which the rule of `linalg_vecdot` does not know."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)
        self.scale = nn.Parameter(torch.rand(8, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        product = torch.linalg.vecdot(self.first(x).T, self.scale, dim=0)
        return self.head(self.inner(self.first(x)).relu()) * product[:, None].tanh()


def raises() -> Rule:
    @couples("fxmerge_test_refusals.twist.default")
    def broken(call: object) -> str:
        raise KeyError("parts")

    return broken


def misfits() -> Rule:
    return couples("fxmerge_test_refusals.twist.default", "b t d, d -> b t d")


def unlawful() -> Rule:
    return couples("fxmerge_test_refusals.twist.default", "... d, d -> ... d", "x * wave(scale)")


def loses_an_axis() -> Rule:
    return moves("fxmerge_test_refusals.twist.default")(lambda move: move.held("x")[1:])


def refuses() -> Rule:
    @couples("fxmerge_test_refusals.twist.default")
    def careful(call: object) -> str:
        raise RuleRefusal("a scale of two axes is not known")

    return careful


SAID = {
    raises: "it raised KeyError: 'parts'",
    misfits: "its signature expects 'b t d', the shape is",
    unlawful: "it raised ValueError: a law is made of",
    loses_an_axis: "it gives axes of sizes [8], the result is",
    refuses: "a scale of two axes is not known",
}


@pytest.mark.parametrize("rule", SAID, ids=lambda rule: rule.__name__)
def test_a_rule_that_fails_makes_one_call_opaque_and_is_heard(rule: Callable[[], Rule], twist: str) -> None:
    program, rules = fxmerge.capture(Twisted(0), (X,)), BUILTIN + rule()
    found = describe(program, rules)
    assert {entry["parameter"] for entry in found["opaque"]} == {"first.weight", "first.bias", "scale"}
    assert all("does not know this call" in entry["reason"] for entry in found["opaque"])
    assert all(SAID[rule] in entry["reason"] for entry in found["opaque"])
    assert found["spaces"][found["parameters"]["head.weight"]["axes"][1]]["tolerates"] != "identity"
    assert check(program, rules).ok


def test_merge_says_what_a_rule_of_an_extension_raised(twist: str, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("from fxmerge import Extension\nfrom tests.coupling.test_refusals import raises\n\n"
                   "extension = Extension(rules=raises())\n")  # fmt: skip
    parents = [fxmerge.capture(Twisted(seed), (X,), task=f"t{seed}") for seed in (0, 1)]
    notes = fxmerge.merge(parents, method="average", extension=[f"{own}:extension"]).result["notes"]
    assert [note for note in notes if "KeyError: 'parts': the axes that it touches stay as they are" in note]


def test_a_built_in_rule_refuses_what_it_does_not_know() -> None:
    parents = [fxmerge.capture(Products(seed), (X,), task=f"t{seed}") for seed in (0, 1)]
    found = describe(parents[0])
    assert {entry["operator"] for entry in found["opaque"]} == {"aten.linalg_vecdot.default"}
    assert all("another axis than the last are not known" in entry["reason"] for entry in found["opaque"])
    assert check(parents[0]).ok
    notes = fxmerge.merge(parents, method="average").result["notes"]
    assert any("another axis than the last are not known" in note for note in notes)
