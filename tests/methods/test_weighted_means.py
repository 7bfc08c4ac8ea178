"""Fisher merging and RegMean against what their papers' equations give, layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from benchmarks.models import BERT, MLP
from fxmerge.errors import OptionError
from fxmerge.methods.fisher import weighted
from tests.methods.test_condense import Residual, sentences, settled
from tests.methods.test_task_vectors import tuned


class Conv(nn.Module):
    """A kernel on raw inputs and one behind it, both with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2), nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(F.relu(self.first(x))).relu().mean((2, 3)))
        return logits


def of_one_base(base: nn.Module, head: str, *inputs: dict[str, Tensor]) -> tuple[list[nn.Module], list[Any], Any]:
    models = tuned(base, head, 3, 4, by=0.3)
    tasks = ["a", "b"]
    programs = [
        fxmerge.capture(model, tuple(v[:4] for v in given.values()), task=task)
        for model, given, task in zip(models, inputs, tasks, strict=True)
    ]
    return models, programs, dict(zip(tasks, inputs, strict=True))


def regressed(weights: list[Tensor], rows: list[Tensor], shrink: float = 0.9) -> Tensor:
    grams = [x.T @ x for x in (x.double() for x in rows)]
    grams = [shrink * g + (1 - shrink) * g.diagonal().diag() for g in grams]
    normal: Tensor = sum(w.double().flatten(1) @ g for w, g in zip(weights, grams, strict=True))  # type: ignore[assignment]
    return torch.linalg.solve(sum(grams), normal.T).T.reshape(weights[0].shape).float()  # type: ignore[arg-type]


def test_regmean_solves_its_normal_equations_through_the_merged_prefix() -> None:
    torch.manual_seed(0)
    xs = [torch.randn(40, 8), torch.randn(40, 8) @ torch.randn(8, 8)]
    models, programs, data = of_one_base(MLP(8, (12, 10), 4), "head", *({"x": x} for x in xs))
    found = fxmerge.merge(programs, data=data, method="regmean").state_dict()
    for i in range(2):
        weight = regressed([m.layers[i].weight.detach() for m in models], xs)
        bias = torch.stack([m.layers[i].bias.detach() for m in models]).mean(0)
        torch.testing.assert_close(found[f"layers.{i}.weight"], weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[f"layers.{i}.bias"], bias)
        xs = [F.relu(F.linear(x, weight, bias)) for x in xs]


def test_regmean_behind_an_alignment_is_regmean_of_the_aligned_parents() -> None:
    torch.manual_seed(0)
    xs = [torch.randn(40, 8), torch.randn(40, 8) @ torch.randn(8, 8)]
    models = tuned(MLP(8, (12, 10), 4), "head", 3, 4, by=0.03)
    weights, biases = (
        [getattr(m.layers[i], n).detach().clone() for i in (0, 1) for m in models] for n in ("weight", "bias")
    )
    order, other = torch.randperm(12), models[1].layers
    with torch.no_grad():
        other[0].weight.copy_(other[0].weight[order])
        other[0].bias.copy_(other[0].bias[order])
        other[1].weight.copy_(other[1].weight[:, order])
    programs = [fxmerge.capture(m, (x[:4],), task=t) for m, x, t in zip(models, xs, "ab", strict=True)]
    data = {"a": {"x": xs[0]}, "b": {"x": xs[1]}}
    merged = fxmerge.merge(programs, data=data, method="regmean{align=permute}")
    found = merged.state_dict()
    torch.testing.assert_close(found["layers.0.weight"], (weights[0] + weights[1]) / 2)
    rows = [F.relu(F.linear(x, found["layers.0.weight"], (biases[0] + biases[1]) / 2)) for x in xs]
    torch.testing.assert_close(found["layers.1.weight"], regressed(weights[2:], rows), atol=1e-5, rtol=1e-4)
    assert not any("for parents of one base" in note for note in merged.result["notes"])


def test_regmean_solves_kernels_from_patches() -> None:
    torch.manual_seed(0)
    xs = [torch.randn(24, 1, 9, 9), torch.randn(24, 1, 9, 9).cumsum(2)]
    models, programs, data = of_one_base(Conv(), "head", *({"x": x} for x in xs))
    found = fxmerge.merge(programs, data=data, method="regmean{shrink=1}").state_dict()
    for name, stride in (("first", 2), ("second", 1)):
        rows = [F.unfold(x, 3, stride=stride).movedim(1, -1).flatten(0, 1) for x in xs]
        weight = regressed([getattr(m, name).weight.detach() for m in models], rows, 1.0)
        bias = torch.stack([getattr(m, name).bias.detach() for m in models]).mean(0)
        torch.testing.assert_close(found[f"{name}.weight"], weight, atol=1e-4, rtol=1e-3)
        xs = [F.relu(F.conv2d(x, weight, bias, stride)) for x in xs]


@pytest.mark.parametrize("family", ["bert", "resnet"])
def test_equal_parents_are_given_back(family: str) -> None:
    torch.manual_seed(0)
    if family == "bert":
        model: nn.Module = BERT(20, 4, width=12, heads=2, hidden=16, depth=1, positions=16, drop=0.0).eval()
        x = sentences(24, 9)
    else:
        x = {"x": torch.randn(24, 1, 12, 12)}
        model = settled(Residual(), x["x"])
    one = fxmerge.capture(model, tuple(v[:4] for v in x.values()), task="a")
    both = [one, one.evolve(task="b")]
    for method in ("regmean", "fisher{rows=8,draws=1}"):
        merged = fxmerge.merge(both, data={"a": x, "b": x}, method=method)
        assert float((merged(*x.values())["b"] - one(*x.values())).detach().abs().max()) < 1e-4, method


class Fixed(nn.Module):
    """Takes four rows at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(F.relu(self.first(x.reshape(4, 8)))).relu())
        return logits


@pytest.mark.parametrize("rows", [3, 9])
def test_a_batch_that_is_written_into_the_model_is_kept(rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, 8)
    one = fxmerge.capture(Fixed().eval(), (torch.randn(4, 8),), task="a")
    merged = fxmerge.merge([one, one.evolve(task="b")], data={"a": x, "b": x}, method="regmean")
    assert one.rows == 4
    assert float((merged(x[:4].repeat(2, 1)[:4])["b"] - one(x[:4].repeat(2, 1)[:4])).detach().abs().max()) < 1e-4


def test_regmean_starts_trained_maps_as_well() -> None:
    torch.manual_seed(0)
    xs = [torch.randn(24, 8), torch.randn(24, 8)]
    _, programs, data = of_one_base(MLP(8, (12, 10), 4), "head", *({"x": x} for x in xs))
    how: dict[str, Any] = {"batch_size": 8, "pool": 16, "augment": "none", "steps": 1, "lr": 1e-9, "weight_decay": 0.0}
    maps = fxmerge.merge(programs, data=data, method="foldable", init="regmean", **how)
    alone = fxmerge.merge(programs, data=data, method="regmean").state_dict()["layers.1.weight"]
    assert maps.result["init"] == "regmean"
    # its first layer is the average there, so the second sees other inputs, but it is far from the average too
    second = maps.state_dict()["layers.1.weight"]
    mean = fxmerge.merge(programs, data=data, method="average").state_dict()["layers.1.weight"]
    assert float((second - alone).norm()) < 0.5 * float((second - mean).norm())


def test_fisher_is_what_the_predicted_distribution_says() -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 8)
    models, programs, data = of_one_base(MLP(8, (6,), 4), "head", {"x": x}, {"x": x})
    exact = []
    for model in models:
        total = torch.zeros(6, 8)
        for row in x:
            logs = model(row[None]).log_softmax(-1)[0]
            for log in logs:
                slope = torch.autograd.grad(log, model.layers[0].weight, retain_graph=True)[0]
                total += float(log.detach().exp()) * slope.square()
        exact.append({"w": total / total.mean()})
    own = tuple({"w": model.layers[0].weight.detach()} for model in models)
    method = "fisher{draws=100}"
    found = fxmerge.merge(programs, data=data, method=method, metric="classes").state_dict()["layers.0.weight"]
    wanted, mean = weighted(own, exact)["w"], (own[0]["w"] + own[1]["w"]) / 2
    assert float((found - wanted).norm()) < 0.35 * float((mean - wanted).norm())


def test_what_matters_to_one_parent_alone_is_its_own() -> None:
    parents = ({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])})
    matter = [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([3.0, 0.0])}]
    assert weighted(parents, matter)["w"].tolist() == [2.5, 2.0]


def test_other_shapes_and_shares_are_refused() -> None:
    wide, narrow = (fxmerge.capture(MLP(8, (w,), 3).eval(), (torch.randn(4, 8),), task=f"t{w}") for w in (12, 16))
    data = {"t12": torch.randn(8, 8), "t16": torch.randn(8, 8)}
    for method in ("regmean", "fisher"):
        with pytest.raises(OptionError, match=f"{method} takes parents of one shape"):
            fxmerge.merge([wide, narrow], data=data, method=method)
    with pytest.raises(OptionError, match=r"regmean: shrink cannot be '1\.5'"):
        fxmerge.merge([wide, wide.evolve(task="t16")], data=data, method="regmean{shrink=1.5}")
