"""A temperature is the one that comes nearest to the parent, and no output but its own moves."""

from __future__ import annotations

import sys

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import fxmerge
from fxmerge.methods.post.scaling import scaling
from fxmerge.methods.post.temperature import best_factor, divergence


def test_the_factor_is_the_minimum_of_the_divergence() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.log_softmax(torch.randn(50, 7).double() * size, 1) for size in (1.0, 3.0))
    theirs = torch.log_softmax(theirs + 4 * ours, 1)

    def kl(factor: float) -> float:
        return float((theirs.exp() * (theirs - torch.log_softmax(factor * ours, 1))).sum(1).mean())

    wanted = minimize_scalar(kl, bounds=(1e-2, 1e2), method="bounded", options={"xatol": 1e-9})
    factor = best_factor(ours, theirs)
    assert factor == pytest.approx(wanted.x, rel=1e-5)
    assert divergence(ours, theirs, wanted.x) == pytest.approx(wanted.fun, rel=1e-12)


def test_answers_that_point_the_other_way_have_no_factor() -> None:
    ours = torch.log_softmax(torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double(), 1)
    assert best_factor(ours, torch.log_softmax(-3 * ours, 1)) is None


class Head(nn.Module):
    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(torch.tanh(self.first(x)))
        if self.answer == "matmul":
            return torch.tanh(self.first(x)) @ self.head.weight.T
        if self.answer == "scaled":
            return z * self.scale
        if self.answer == "bounded":
            return torch.tanh(z)
        return {"logits": z, "log": torch.log_softmax(z, 1), "softmax": torch.softmax(z, 1)}[self.answer]


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("logits", {"head.weight", "head.bias"}),
        ("log", {"head.weight", "head.bias"}),
        ("softmax", {"head.weight", "head.bias"}),
        ("matmul", {"head.weight"}),
        ("scaled", {"scale"}),
        ("bounded", set()),
    ],
)
def test_what_scales_scores_is_found(answer: str, names: set[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    program = fxmerge.capture(Head(answer).eval(), (x,))
    assert scaling(program, {program.inputs[0].name: x}, 1) == names


class Heads(nn.Module):
    """More answers side by side than all choices of them could be tried."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(24))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([head(x) for head in self.heads]).mean(0)


def test_many_heads_side_by_side_behind_more_calls_than_python_can_recurse_along() -> None:
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(5, 4)
    program = fxmerge.capture(model, (x,))
    graph, _ = program.copy_graph()
    given = next(node for node in graph.nodes if node.op == "placeholder")
    users, last = list(given.users), given
    for _ in range(sys.getrecursionlimit()):
        with graph.inserting_after(last):
            last = graph.call_function(torch.ops.aten.tanh.default, (last,))
        last.meta = dict(given.meta)
    for user in users:
        user.replace_input_with(given, last)
    program = program.evolve(graph=graph)
    assert scaling(program, {program.inputs[0].name: x}, 1) == dict(model.named_parameters()).keys()


def _parents(answer: str, rows: int = 96) -> tuple[list[fxmerge.Program], dict[str, Tensor]]:
    data, programs = {}, []
    for k in range(2):
        torch.manual_seed(k)
        model, x = Head(answer).eval(), torch.randn(rows, 6)
        with torch.no_grad():
            model.head.weight.mul_(6)
        programs.append(fxmerge.capture(model, (x[:4],), task="ab"[k], labels=["u", "v", "w"]))
        data["ab"[k]] = x
    return programs, data


@pytest.mark.parametrize("answer", ["logits", "softmax"])
def test_a_merge_is_as_sure_as_its_parents(answer: str) -> None:
    programs, data = _parents(answer)
    plain = fxmerge.merge(programs, data=data, method="permute")
    warm = fxmerge.merge(programs, data=data, method="permute", post="temperature")
    (did,) = warm.result["post"]
    assert did["name"] == "temperature" and not did["left"]
    for (name, found), before, after in zip(did["changed"].items(), _said(plain, data), _said(warm, data), strict=True):
        assert found["kl_after"] < found["kl_before"]
        close = torch.log_softmax(before / found["temperature"], 1)
        torch.testing.assert_close(after, close, atol=1e-4, rtol=1e-4)
        assert any(note.startswith("temperature: ") and f"{name} temperature" in note for note in warm.result["notes"])
    assert warm.result["checks"]["fold_max_abs"] < 1e-5


def _said(merged: fxmerge.Merged, data: dict[str, Tensor]) -> list[Tensor]:
    """Log probabilities of every task on its own samples."""
    outputs = [merged(data[task])[task] for task in merged.tasks]
    return [value.log() if bool((value >= 0).all()) else torch.log_softmax(value, 1) for value in outputs]


def test_what_no_weight_scales_and_what_is_no_class_is_left_and_said() -> None:
    programs, data = _parents("bounded")
    merged = fxmerge.merge(programs, data=data, method="average", post="temperature", metric={"b": "regression"})
    (did,) = merged.result["post"]
    assert not did["changed"]
    assert set(did["left"].values()) == {"no weights of its own scale it", "its values are no scores of classes"}
