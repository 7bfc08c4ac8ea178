"""Two parents are merged, then what they became with the third; all of it is one fold of the three."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from benchmarks.models import MLP
from fxmerge.errors import OptionError
from fxmerge.ir.maps import Form, Kind, Map
from fxmerge.methods import foldable
from fxmerge.methods.sequential import one_after_the_other


@pytest.mark.parametrize("kind", ["merge", "unmerge"])
@pytest.mark.parametrize("form", ["full", 2])
def test_a_joined_map_is_a_product_of_which_the_last_factor_trains(kind: Kind, form: Form) -> None:
    torch.manual_seed(0)
    same = [(torch.arange(4), torch.arange(4)) for _ in range(3)]
    block = Map(kind, 5, (4, 4, 4), same, torch.zeros((), dtype=torch.float64))
    block.start([torch.randn(block.shape(k)).double() for k in range(3)], form)
    own = [block.matrix(k).detach().clone() for k in range(3)]
    block.join([0, 1], 0.5)
    block.join([0, 1, 2], 0.5)
    factors = []
    for _, behind in block.joined:
        behind.start([torch.randn(5, 5).double()], "full")
        factors.append(behind.matrix(0).detach())
    a, b = factors
    for k in range(3):
        wanted = own[k]
        for each in [a, b] if k < 2 else [b]:
            wanted = each @ wanted if kind == "merge" else wanted @ each
        torch.testing.assert_close(block.matrix(k), wanted)
        for transposed in (False, True):
            x = torch.randn(3, wanted.shape[0 if transposed else 1], 2).double()
            found = block.apply_along(x, k, 1, transposed=transposed)
            torch.testing.assert_close(found, torch.einsum("ij,bjc->bic", wanted.T if transposed else wanted, x))
    block.average()
    assert not block.joined
    torch.testing.assert_close(block.matrix(0), block.eye(0) / (3 if kind == "merge" else 1))


def parents(x: Tensor, count: int = 3) -> list[fxmerge.Program]:
    found = []
    for k in range(count):
        torch.manual_seed(k)
        found.append(fxmerge.capture(MLP(6, (8, 7), 3).eval(), (x[:4],), task="abc"[k]))
    return found


def test_what_is_merged_moves_as_one_and_the_whole_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def spied(job: Any, form: Form) -> Any:
        kept.append(job.supernet)
        return one_after_the_other(job, form)

    monkeypatch.setattr(foldable, "one_after_the_other", spied)
    torch.manual_seed(0)
    x = torch.randn(100, 6)
    programs = parents(x)
    merged = fxmerge.merge(programs, data=x, method="foldable{sequential=true,steps=60,augment=vector}")
    assert merged.result["checks"]["fold_max_abs"] < 1e-5 and merged.result["checks"]["all_gradients"]
    assert merged.result["training"]["steps"] == 60
    maps = dict(kept[0].maps())
    m = next(b for b in maps.values() if b.kind == "merge" and b.size == 7)
    u = next(b for b in maps.values() if b.kind == "unmerge" and b.size == 8)
    w = [p.tensors["layers.1.weight"].detach().double() for p in programs]
    (_, a), (_, b) = m.joined[0], u.joined[0]
    own = [(m._own_matrix(k).double(), u._own_matrix(k).double()) for k in range(3)]
    pair = own[0][0] @ w[0] @ own[0][1] + own[1][0] @ w[1] @ own[1][1]
    wanted = a.matrix(0).double() @ pair @ b.matrix(0).double() + own[2][0] @ w[2] @ own[2][1]
    torch.testing.assert_close(merged.state_dict()["layers.1.weight"].double(), wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(a.matrix(0), 2 / 3 * torch.eye(7), atol=1e-3)
    assert all(not part.requires_grad for block in (m, u) for part in list(block.dense)[:2])


class Normed(nn.Module):
    """A norm between two layers, with a scale and a shift of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.head = (
            nn.Linear(6, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )
        nn.init.uniform_(self.norm.weight, 0.2, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.second(self.norm(self.first(x))).relu())
        return found


def test_polish_goes_on_from_the_norms_that_were_trained() -> None:
    torch.manual_seed(9)
    x = torch.randn(60, 6)
    programs = []
    for k in range(3):
        torch.manual_seed(k)
        programs.append(fxmerge.capture(Normed().eval(), (x[:4],), task="abc"[k]))
    how = "foldable{sequential=true,steps=20,augment=vector,lr=0.02%s}"
    plain, polished = (fxmerge.merge(programs, data=x, method=how % each).result for each in ("", ",polish=1"))
    for one, other in zip(plain["tasks"], polished["tasks"], strict=True):
        assert other["stages"]["foldable"] == pytest.approx(one["feature_r2"], abs=1e-5)


def test_starts_without_shares_are_refused() -> None:
    x = torch.randn(20, 6)
    with pytest.raises(OptionError, match="does not start from condense"):
        fxmerge.merge(parents(x), data=x, method="foldable{sequential=true,init=condense,steps=2}")
