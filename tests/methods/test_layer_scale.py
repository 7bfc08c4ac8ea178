"""Streams into which every write is scaled by learnt factors, and streams that something reads without a norm."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from fxmerge.ir.program import Program
from fxmerge.methods.alignment.matches import centred_rotation

Style = Literal["channels last", "channels first", "behind a curve", "read twice"]
WIDTH = 12


class Scaled(nn.Module):
    """Two blocks, each of which scales what it adds; `raw` heads read the stream without a norm."""

    def __init__(self, style: Style, raw: bool = False, width: int = WIDTH) -> None:
        super().__init__()
        self.style, self.raw = style, raw
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 4)
        self.ups = nn.ModuleList(nn.Linear(width, 18) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(18, width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.factors = nn.ParameterList(torch.rand(width) + 0.3 for _ in range(2))

    def scaled(self, x: Tensor, number: int) -> Tensor:
        factors: Tensor = self.factors[number]
        if self.style == "channels first":
            return (x.mT * factors.reshape(1, -1, 1)).mT
        x = x.tanh() if self.style == "behind a curve" else x
        return factors * (factors * x) if self.style == "read twice" else factors * x

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.reshape(-1, 3, 4))
        for i, (norm, up, down) in enumerate(zip(self.norms, self.ups, self.downs, strict=False)):
            x = x + self.scaled(down(F.gelu(up(norm(x)))), i)
        logits: Tensor = self.head((x if self.raw else self.norms[2](x)).mean(1))
        return logits


def scaled(seed: int, task: str, style: Style = "channels last", *, raw: bool = False, width: int = WIDTH) -> Program:
    torch.manual_seed(seed)
    return fxmerge.capture(Scaled(style, raw, width).eval(), (torch.randn(4, 12),), task=task)


def turned(program: Program) -> Program:
    """The same function in another basis of its stream, with other factors of what is written and read there."""
    generator = torch.Generator().manual_seed(5)
    turn = centred_rotation(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))
    ours = {name: value.detach().double() for name, value in program.tensors.items()}
    found = dict(ours)
    for name in ("stem.weight", "stem.bias"):
        found[name] = turn @ ours[name]
    for i in range(2):
        factors = found[f"factors.{i}"] = other_factors(generator)
        matrix = turn * ours[f"factors.{i}"] / factors[:, None]
        for name in (f"downs.{i}.weight", f"downs.{i}.bias"):
            found[name] = matrix @ ours[name]
    for i, name in enumerate(("ups.0.weight", "ups.1.weight", "head.weight")):
        scales = found[f"norms.{i}.weight"] = other_factors(generator)
        found[name] = ours[name] * ours[f"norms.{i}.weight"] @ turn.T / scales
    tensors = {name: value.to(program.tensors[name].dtype) for name, value in found.items()}
    return dataclasses.replace(program.evolve(tensors=tensors), task="b")


def other_factors(generator: torch.Generator) -> Tensor:
    return torch.rand(WIDTH, generator=generator, dtype=torch.float64) + 0.3


@pytest.mark.parametrize("method", ["rotate", "rotate{on=weights}", "condense{rows=200,balance=[1 1]}"])
@pytest.mark.parametrize("style", ["channels last", "channels first"])
def test_a_turned_stream_with_other_factors_is_the_same_network(method: str, style: Style) -> None:
    first, x = scaled(1, "a", style), torch.randn(192, 12, generator=torch.Generator().manual_seed(0))
    second = turned(first)
    torch.testing.assert_close(second(x), first(x), rtol=1e-5, atol=1e-5)
    merged = fxmerge.merge([first, second], data=x, method=method)
    close = 2e-2 if method.startswith("condense") else 1e-5
    for value in merged(x).values():
        torch.testing.assert_close(value, first(x), rtol=close, atol=close)
    state = {name.removeprefix("a."): value for name, value in merged.state_dict().items()}
    model = Scaled(style)
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith("b.")})
    torch.testing.assert_close(model(x), next(iter(merged(x).values())), rtol=1e-5, atol=1e-5)
    assert all(bool((factors == 1).all()) for factors in model.factors)


@pytest.mark.parametrize("style", ["behind a curve", "read twice"])
def test_what_no_weights_can_take_in_turns_nothing(style: Style) -> None:
    first, second, x = scaled(1, "a", style), scaled(2, "b", style), torch.randn(96, 12)
    merged = fxmerge.merge([first, second], data=x, method="rotate")
    assert "orthogonal" not in merged.result["merged"]["groups"].values()
    assert fxmerge.merge([first, second], data=x, method="condense").result["checks"]["fold_max_abs"] < 1e-5


@pytest.mark.parametrize("width", [WIDTH, 16])
def test_networks_of_their_own_bases_meet(width: int) -> None:
    first, second, x = scaled(1, "a"), scaled(2, "b", width=width), torch.randn(192, 12)
    found = fxmerge.merge([first, second], data=x, method="condense{rows=200,balance=[1 1]}").result
    assert min(task["feature_r2"] for task in found["tasks"]) > 0.95
    assert found["checks"]["fold_max_abs"] < 1e-5


def test_a_reader_without_a_norm_sees_the_mean_of_the_channels() -> None:
    first, x = scaled(1, "a", raw=True), torch.randn(192, 12)
    tensors = dict(first.tensors) | {"stem.bias": first.tensors["stem.bias"] + 2 * torch.rand(())}
    first = first.evolve(tensors=tensors)
    both = [first, dataclasses.replace(first, task="b")]
    for value in fxmerge.merge(both, data=x, method="condense{rows=200,balance=[1 1]}")(x).values():
        assert float((value - first(x)).square().mean().sqrt() / first(x).std()) < 5e-3
