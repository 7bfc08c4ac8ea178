"""Weights that a model computes from parameters are merged as the weights that they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import fxmerge
import passes
from benchmarks.planted import plant
from fxmerge.ir.program import Program
from passes.spelling.compute_weights import compute_weights

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def weight(self) -> Tensor:
        return self.mid.weight

    def bias(self) -> Tensor:
        return self.mid.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(F.relu(self.stem(x)), self.weight(), self.bias())))


class Adapted(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(6, 2))

    def weight(self) -> Tensor:
        return self.mid.weight + 0.5 * self.b @ self.a


class LowRank(Adapted):
    def weight(self) -> Tensor:
        return self.b @ self.a


class Scaled(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1) + 0.5)

    def weight(self) -> Tensor:
        return self.mid.weight * self.scale

    def bias(self) -> Tensor:
        return self.mid.bias * self.scale


class Half(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.c = nn.Parameter(torch.randn(6, 8).half()), nn.Parameter(torch.randn(6).half())

    def weight(self) -> Tensor:
        return self.w.float()

    def bias(self) -> Tensor:
        return self.c.float()


class Standardized(nn.Module):
    """Convolutions, one of them depthwise, whose filters have mean zero and spread one; rows of a scaled table."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.own = nn.Conv1d(1, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.table, self.head = nn.Parameter(torch.randn(1, 8, 5)), nn.Linear(8, 3)
        self.size = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        own = [(w - w.mean((1, 2), True)) / (w.std((1, 2), keepdim=True) + 1e-5) for w in self.weights()]
        x = F.conv1d(x[:, None], own[0], self.stem.bias, padding=1) + self.table * self.size
        return self.head(F.relu(F.conv1d(F.relu(x), own[1], self.own.bias, padding=1, groups=8)).mean(-1))

    def weights(self) -> list[Tensor]:
        return [self.stem.weight, self.own.weight]


def old(hook: Callable[[nn.Module], nn.Module]) -> Plain:
    model = Hooked()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hook(model.mid)
    return model


class Hooked(Plain):
    """Calls its layer as a module, so that hooks on it run."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mid(F.relu(self.stem(x)))))


def normed(hook: Callable[[nn.Module], nn.Module]) -> Plain:
    model = Plain()
    for layer in (model.stem, model.mid, model.head):
        hook(layer)
    return model


def pruned() -> Plain:
    model = Hooked()
    prune.random_unstructured(model.mid, "weight", 0.3)
    prune.random_unstructured(model.mid, "bias", 0.3)
    return model


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.exp() - weight.flip(0)


def parametrized() -> Plain:
    model = Plain()
    parametrize.register_parametrization(model.mid, "weight", Doubled())
    return model


KINDS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "weight norm": (lambda: normed(parametrizations.weight_norm), {"stem.weight", "mid.weight", "head.weight"}),
    "weight norm, old": (lambda: old(nn.utils.weight_norm), {"mid.weight"}),
    "spectral norm": (lambda: normed(parametrizations.spectral_norm), {"stem.weight", "mid.weight", "head.weight"}),
    "spectral norm, old": (lambda: old(nn.utils.spectral_norm), {"mid.weight"}),
    "another parametrization": (parametrized, {"mid.weight"}),
    "pruning": (pruned, {"mid.weight", "mid.bias"}),
    "adapter": (Adapted, {"mid.weight"}),
    "low rank": (LowRank, {"a_computed"}),
    "scale": (Scaled, {"mid.weight", "mid.bias"}),
    "half precision": (Half, {"w", "c"}),
    "standardized": (Standardized, {"stem.weight", "own.weight", "table"}),
}
"""Models, and the names of the weights that are computed in them."""


def capture(kind: str, task: str = "a", seed: int = 0) -> Program:
    torch.manual_seed(seed)
    return fxmerge.capture(KINDS[kind][0]().eval(), (X,), task=task)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_plain_weights(kind: str) -> None:
    program = capture(kind)
    found = compute_weights(program, passes.BUILTIN.rules)
    assert KINDS[kind][1] <= found.parameters
    said, _, names = found.notes[-1].partition(": ")
    assert said == "computed once and merged as plain weights" and set(names.split(", ")) == KINDS[kind][1]
    left = found.parameters - KINDS[kind][1]
    assert left <= program.parameters and not any(program.tensors[name].dtype == torch.float16 for name in left)
    torch.testing.assert_close(found(X), program(X))
    assert compute_weights(found, passes.BUILTIN.rules) is found
    undone = plant(found)
    assert max(undone.twin, undone.undone, undone.weights, undone.outputs) < 1e-10, undone
    assert undone.plain > 1e-3 and undone.moved > 0.5


@pytest.mark.parametrize("kind", ["weight norm", "adapter"])
def test_merged_as_the_weight_that_is_multiplied(kind: str) -> None:
    one, two = capture(kind), capture(kind, "b", 1)
    twin = fxmerge.merge([one, one.evolve(task="twin")], method="average")
    torch.testing.assert_close(twin(X)["twin"], one(X))
    settings = {"method": "foldable", "steps": 4, "batch_size": 8, "pool": 24, "init": "average", "augment": "none"}
    merged = fxmerge.merge([one, two], data=X, **settings)
    trunk = {name for name in merged.state_dict() if "head" not in name}
    assert trunk == {"stem.weight", "stem.bias", "mid.weight", "mid.bias"}
    assert merged.result["checks"]["all_gradients"]
    assert any("computed once" in note for note in merged.result["notes"])


def test_a_parent_with_computed_weights_lines_up_with_one_without() -> None:
    torch.manual_seed(3)
    plain = fxmerge.capture(Plain().eval(), (X,), task="b")
    merged = fxmerge.merge([capture("weight norm"), plain], method="average")
    assert merged.result["checks"]["fold_max_abs"] < 1e-5


def test_what_is_only_moved_or_no_weight_stays() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)
            self.table, self.gain = nn.Parameter(torch.randn(9, 8)), nn.Parameter(torch.rand(8))
            self.w = nn.Parameter(torch.randn(4, 2, 8))
            self.register_buffer("index", torch.randint(0, 9, (30,)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x)) * (1 + self.gain) + self.table[self.index].unflatten(0, (6, 5)).sum((0, 1))
            return self.head(F.linear(x, self.w.permute(1, 0, 2).reshape(8, 8)))

    program = fxmerge.capture(Moved().eval(), (X,), task="a")
    assert compute_weights(program, passes.BUILTIN.rules) is program


class ByHead(nn.Module):
    """Weights of three heads, with a head's units apart; `joined` says how a linear map takes them."""

    def __init__(self, joined: str) -> None:
        super().__init__()
        self.joined, self.first, self.last = joined, nn.Linear(5, 10), nn.Linear(10, 3)
        self.w, self.o = nn.Parameter(torch.randn(3, 10, 4) / 3), nn.Parameter(torch.randn(3, 4, 10) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        if "w" in self.joined:
            h = F.linear(x, self.w.permute(0, 2, 1).reshape(12, 10)).unflatten(-1, (3, 4))
        else:
            h = torch.einsum("bd,hde->bhe", x, self.w)
        if "o" in self.joined:
            return self.last(F.linear(F.relu(h).flatten(1), self.o.reshape(12, 10).t()) + x)
        return self.last(torch.einsum("bhe,hed->bd", F.relu(h), self.o) + x)


@pytest.mark.parametrize("joined", ["w", "o", "wo"])
def test_axes_that_moves_join_are_merged_as_one(joined: str) -> None:
    models = [ByHead(joined).eval(), ByHead(joined).eval()]
    programs = [fxmerge.capture(model, (X,), task=task) for model, task in zip(models, "ab", strict=True)]
    merged = fxmerge.merge(programs, method="average")
    assert merged.result["checks"]["fold_max_abs"] < 1e-5
    assert {f"{name}_computed" for name in joined} <= merged.state_dict().keys()
    again = fxmerge.merge([programs[0], programs[0].evolve(task="again")], method="average")
    torch.testing.assert_close(again(X)["a"], models[0](X), atol=1e-5, rtol=1e-5)
    assert {"w", "o"} <= fxmerge.inspect(programs[0])["parameters"].keys()


class Joined(nn.Module):
    """Weights of three parts side by side, and of three experts on top of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.parts, self.experts = (nn.ModuleList(nn.Linear(8, 8) for _ in range(3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (torch.cat([getattr(part, name) for part in self.parts]) for name in ("weight", "bias"))
        q, k, v = F.linear(torch.relu(self.first(x)), weight, bias).chunk(3, -1)
        given = torch.einsum("bi,eoi->beo", torch.tanh(q) * k, torch.stack([each.weight for each in self.experts]))
        return self.head(torch.relu(given).sum(1) + v)


def test_weights_of_several_parts_are_merged_as_one() -> None:
    models = [Joined().eval(), Joined().eval()]
    programs = [fxmerge.capture(model, (X,), task=task) for model, task in zip(models, "ab", strict=True)]
    merged = fxmerge.merge(programs, method="average").result
    assert merged["merged"]["averaged"] == 0, merged["notes"]
    again = fxmerge.merge([programs[0], programs[0].evolve(task="again")], method="average")
    torch.testing.assert_close(again(X)["a"], models[0](X), atol=1e-5, rtol=1e-5)


class Masked(Plain):
    def weight(self) -> Tensor:
        return self.mid.weight * torch.ones(6, 8).triu()


class Triangle(Plain):
    def weight(self) -> Tensor:
        return self.mid.weight.triu()


def hooked(kind: str) -> nn.Module:
    if kind in ("masked", "triangle"):
        return Masked() if kind == "masked" else Triangle()
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    if kind == "orthogonal":
        parametrizations.orthogonal(model[2])
    elif kind == "pruned":
        prune.l1_unstructured(model[2], "weight", amount=0.3)
    else:
        parametrizations.spectral_norm(model[2])
    return model


@pytest.mark.parametrize("kind", ["orthogonal", "pruned", "spectral norm", "masked", "triangle"])
def test_inspect_and_check_see_the_computed_weight(kind: str) -> None:
    program = fxmerge.capture(hooked(kind).eval(), (X,), task="a")
    found = fxmerge.inspect(program)
    assert (found["coverage"], found["free_axes"]) == (1.0, 1.0)
    assert found["parameters"].keys() == {f"{n}.{p}" for n in ("stem", "mid", "head") for p in ("weight", "bias")} or (
        found["parameters"].keys() == {f"{n}.{p}" for n in "024" for p in ("weight", "bias")}
    )
    report = fxmerge.check(program)
    assert report.ok and report.moved > 0.9


def test_inspect_describes_an_adapted_weight_as_one() -> None:
    found = fxmerge.inspect(capture("adapter"))
    assert found["coverage"] == 1.0
    assert "mid.weight" in found["parameters"] and not {"a", "b"} & set(found["parameters"])
