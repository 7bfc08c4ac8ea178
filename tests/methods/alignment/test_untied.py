"""Plans of single writers: what meets is the mean of what comes, weighed or not, and one order stays one order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fxmerge
from fxmerge.errors import DataError
from fxmerge.methods import transport
from fxmerge.methods.alignment import untied
from fxmerge.methods.alignment.evidence import axis_blocks
from fxmerge.methods.alignment.solve import Alignment, Carriers
from fxmerge.methods.alignment.untied import mixed
from tests.methods.alignment.planted import planted
from tests.methods.alignment.test_planted import PERMUTATION, miss
from tests.methods.test_condense import parent

SWAP = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)


def merged(method: str, family: str = "vit") -> Any:
    (first, x), (second, _) = parent(family, 1, "a"), parent(family, 2, "b")
    return fxmerge.merge([first, second], data={"a": x, "b": x}, method=method, seed=0)


def of_role(result: Any, role: str, family: str = "vit") -> set[str]:
    spaces = fxmerge.inspect(parent(family, 1, "a")[0])["spaces"]
    return {group for name, group in result["merged"]["groups"].items() if spaces[name]["role"] == role}


@pytest.mark.parametrize(("family", "streams"), [("vit-fused", "matrix"), ("resnet", "scalar")])
def test_one_order_of_all_writers_is_undone_by_every_policy(family: str, streams: str) -> None:
    first, x = parent(family, 1, "a")
    method = f"transport{{reg=0,streams={streams},queries=separate}}"
    found, result = miss([first, *(planted(first, PERMUTATION, i, "bc"[i]) for i in range(2))], x, method)
    assert found < 1e-5
    assert not any("which no group has" in note for note in result["notes"])


def test_weights_of_branches_that_meet() -> None:
    """Γ T_1 + (1 - Γ) T_2 of a parent's units, rows of both ways summing to one (Imfeld et al. 2024, §4.2)."""
    plans = [Carriers((EYE, EYE), (EYE, EYE)), Carriers((EYE, SWAP), (EYE, SWAP))]
    plain = mixed(plans, [[1.0, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(plain.back[1], torch.full((2, 2), 0.5, dtype=torch.float64))
    scalar = mixed(plans, [[torch.tensor([3.0]), torch.tensor([3.0])], [torch.tensor([1.0]), torch.tensor([1.0])]])
    torch.testing.assert_close(scalar.back[1], 0.75 * EYE + 0.25 * SWAP)
    gates = [torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0])]
    matrix = mixed(plans, [[gate, gate] for gate in gates])
    torch.testing.assert_close(matrix.back[1], torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64))
    for each in (*matrix.to, *matrix.back):
        torch.testing.assert_close(each.sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(matrix.back[0], EYE)


def test_writers_keep_their_own_plan_and_readers_have_the_mean_of_what_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    """x = patches + class token + positions, read; x + attention, read; x + the other branch, read by the heads."""
    kept: list[Alignment] = []
    told = transport.told_of_untied
    monkeypatch.setattr(transport, "told_of_untied", lambda name, found: kept.append(found) or told(name, found))
    result = merged("transport{streams=mean}", "vit-fused").result
    assert of_role(result, "residual", "vit-fused") == {"free"}
    assert any("which no group has" in note for note in result["notes"])
    net, apart = kept[0].layout.supernet, kept[0].apart
    (space,) = (name for name, site in kept[0].layout.sites.items() if site.role == "residual")
    blocks = {name: block.map for name, found in axis_blocks(net).items() for block in found if block.space == space}
    own = {name: apart[held][space, ()] for name, held in blocks.items()}
    patches, token, positions, attention, other = (each for name, each in own.items() if ".m" in name)
    first, second, last = (each for name, each in own.items() if ".u" in name)
    for same in (token, positions, first):  # what is the same for all samples has no plan, and takes what it meets
        torch.testing.assert_close(same.to, patches.to)
    assert not torch.allclose(patches.to[1], attention.to[1])
    torch.testing.assert_close(second.back[1], (patches.back[1] + attention.back[1]) / 2)
    torch.testing.assert_close(last.back[1], (second.back[1] + other.back[1]) / 2)
    torch.testing.assert_close(apart["blocks.0.norm2.weight"][space, ()].to[1], second.to[1])


def test_branches_count_by_what_they_amount_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[Sequence[Tensor]]] = []
    real = untied.mixed
    monkeypatch.setattr(untied, "mixed", lambda plans, weights: seen.append(weights) or real(plans, weights))
    first, x = parent("vit-fused", 1, "a")
    other = planted(first, PERMUTATION)
    louder = {n: 100 * v if n.endswith(("down.weight", "down.bias")) else v for n, v in other.tensors.items()}
    parents = [first, other.evolve(tensors=louder)]
    fxmerge.merge(parents, data={"a": x, "b": x}, method="transport{streams=matrix,residual=matched}")
    residual, branch = next(w for w in reversed(seen) if all(torch.is_tensor(each) for part in w for each in part))
    assert {len(weight) for weight in (*residual, *branch)} == {12}
    torch.testing.assert_close(branch[1].sort().values, 100 * branch[0].sort().values, rtol=1e-4, atol=0)
    torch.testing.assert_close(residual[1].sort().values, residual[0].sort().values, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("queries", "group"), [("equal", "permutation"), ("separate", "free")])
def test_queries_and_keys_in_two_orders_are_no_symmetry(queries: str, group: str) -> None:
    result = merged(f"transport{{reg=0,queries={queries}}}", "vit-fused").result
    assert of_role(result, "query_key", "vit-fused") == {group}
    assert any("which no group has" in note for note in result["notes"]) == (group == "free")


def test_plans_of_single_writers_need_samples() -> None:
    with pytest.raises(DataError, match="plans of single writers"):
        merged("transport{on=weights,streams=mean}", "mlp")


def test_a_stream_wider_than_the_templates_keeps_one_plan() -> None:
    (first, x), (second, _) = parent("vit-fused", 1, "a"), parent("vit-fused", 2, "b")
    result = fxmerge.merge([first, second], data=x, method="transport{streams=mean}", width_scale=1.5).result
    assert any("keep one plan each, being wider than the template's" in note for note in result["notes"])
    assert not any("which no group has" in note for note in result["notes"])
