"""A map that no gradient can reach is a fault; one that the samples never choose is noted and stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from fxmerge.errors import VerificationError
from fxmerge.ir.chosen import connected
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods import foldable
from fxmerge.methods.base import Init, Job

X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
FAST = {"steps": 6, "batch_size": 8, "init": "average", "augment": "none"}


class Routed(nn.Module):
    """Every row goes through the one expert with the best score, and the last expert's is never the best."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.router, self.head = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        with torch.no_grad():
            self.router.bias[2] = -100

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        scores = self.router(x).softmax(-1)
        best = scores.argmax(-1)
        total = x
        for number, expert in enumerate(self.experts):
            total = total + torch.where(best == number, scores[:, number], 0.0)[:, None] * F.relu(expert(x))
        return self.head(total)


class Plain(nn.Module):
    """Without biases, a pair of maps that both are zero gets no gradient."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 7, bias=False), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.inner(F.relu(self.stem(x)))))


def pair(kind: type[nn.Module]) -> list[Program]:
    return [fxmerge.capture(kind(seed), (X,), task="ab"[seed]) for seed in range(2)]


FOLDABLE = {"method": "foldable"}


@pytest.mark.parametrize("options", [FOLDABLE, FOLDABLE | {"rank": 2}, {"method": "distill"}, {}])
def test_an_expert_that_no_sample_chooses_is_noted_and_stays(options: dict[str, object]) -> None:
    merged = fxmerge.merge(pair(Routed), data={"a": X, "b": X}, **(FAST | options))
    assert any("they stay where they started" in note for note in merged.result["notes"])
    assert merged.result["checks"]["all_gradients"]
    assert merged.result["checks"]["fold_max_abs"] < 1e-5


class Twice(nn.Module):
    """The bias of the first layer is on both sides of a difference."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.stem(x) - self.stem(x.flip(1))))


def test_a_bias_that_no_output_depends_on_is_noted_and_stays() -> None:
    merged = fxmerge.merge(pair(Twice), data={"a": X, "b": X}, **FAST)
    assert any(note.startswith("no sample needs stem.bias") for note in merged.result["notes"])


def test_maps_that_hide_each_other_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = foldable.Foldable.start

    def trapped(self: foldable.Foldable, job: Job, init: Init) -> tuple[SuperNet, Program]:
        supernet, program = begin(self, job, init)
        for _, block in supernet.maps():
            if block.sizes == (7, 7):
                for matrix in block.dense:
                    matrix.data.zero_()
        return supernet, program

    monkeypatch.setattr(foldable.Foldable, "start", trapped)
    with pytest.raises(VerificationError, match="no gradient reached maps"):
        fxmerge.merge(pair(Plain), data={"a": X, "b": X}, method="foldable", **FAST)


@pytest.mark.parametrize(
    ("cut", "reached"),
    [(lambda x: x.detach(), False), (lambda x: torch.where(x > 1e6, x, 0.0), True), (lambda x: x, True)],
    ids=["cut off", "above a threshold that no value has", "plain"],
)
def test_what_is_cut_off_is_told_from_what_is_never_chosen(cut: object, reached: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + cut(self.b(x))  # type: ignore[operator]

    program = fxmerge.capture(Net(), (X,), task="a")
    for parameter in program.module.parameters():
        parameter.requires_grad_(True)
    assert connected(program, {"a.weight", "b.weight"}) == {"a.weight"} | ({"b.weight"} if reached else set())
