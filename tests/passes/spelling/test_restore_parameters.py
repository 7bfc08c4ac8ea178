"""A class that computes its weights from parameters can hold weights that a merge made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxmerge
import passes
from tests.passes.spelling.test_compute_weights import KINDS, ByHead, Joined, X

RESTORED = {"weight norm", "weight norm, old", "adapter", "scale"}
OTHERS = KINDS.keys() - RESTORED - {"standardized"}  # whose filters are called what they are computed from


def network(kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if kind in KINDS:
        return KINDS[kind][0]().eval()
    return (Joined() if kind == "parts" else ByHead(kind)).eval()


def merged(kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What the class lacks, what the merged model holds by the names of its class, and what that gives for its task."""
    programs = [fxmerge.capture(network(kind, seed), (X,), task=task) for seed, task in enumerate("ab")]
    both = fxmerge.merge(programs, method="average")
    state = {name.removeprefix("a."): value for name, value in both.state_dict().items()}
    return passes.KNOWLEDGE.restore(programs[0], state, passes.BUILTIN), state, both(X)["a"]


@pytest.mark.parametrize("kind", [*sorted(RESTORED), "w", "o", "wo", "", "parts"])
def test_the_class_computes_what_was_merged(kind: str) -> None:
    told, state, expected = merged(kind)
    model = network(kind, 2)
    names = model.state_dict().keys()
    assert told and told.keys() <= names - state.keys()
    held = {**model.state_dict(), **state, **told}  # what nothing reads is in no merged model
    model.load_state_dict({name: held[name] for name in names})
    torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(OTHERS))
def test_what_no_parameters_give_is_not_told(kind: str) -> None:
    told, _, _ = merged(kind)
    assert not told
