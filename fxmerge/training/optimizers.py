"""What steps the weights: AdamW, or Muon, whose step on a matrix has all its singular values alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Makes an optimizer of param groups that each have "params", "lr", "weight_decay" and "matrices"."""
Choice = Literal["auto", "adamw", "muon"]
"""With "auto" short trials choose."""

BETAS = (0.9, 0.99)
"""Of AdamW: it forgets in a hundred steps. With the usual thousand, the start of a short run weighs on all of it."""
MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton–Schulz step that moves all singular values near one in five rounds (Jordan 2024)."""
ROUNDS = 5
SIZE = 0.2
"""Size of an entry of Muon's step beside the rate: that of a step of Adam (Liu et al. 2025, arXiv 2502.16982)."""


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW on every group."""
    kept = [{k: v for k, v in group.items() if k != "matrices"} for group in groups]
    return torch.optim.AdamW(kept, betas=BETAS, fused=True)


def orthogonalized(matrices: Tensor) -> Tensor:
    """(n, rows, columns), each with its singular values near one: five quintic Newton–Schulz rounds, in float32."""
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    found: Tensor = x.mT if matrices.shape[-2] > matrices.shape[-1] else x
    return found


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised on groups of matrices (kernels as out × rest), AdamW on the others; one rate for both.

    Jordan et al. 2024, with the step scaled as in Liu et al. 2025. Unlike `torch.optim.Muon` it takes kernels, works in
    float32, and takes all matrices of one shape at once.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of everything that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            for p in given:
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
            if group["matrices"]:
                self._matrices(given, group["lr"])
            else:
                self._others(given, group["lr"])

    def _matrices(self, given: list[Tensor], rate: float) -> None:
        alike: dict[tuple[int, ...], list[Tensor]] = {}
        for p in given:
            alike.setdefault((len(p), p.numel() // max(len(p), 1)), []).append(p)
        for (rows, columns), parameters in alike.items():
            steps = []
            for p in parameters:
                assert p.grad is not None
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                steps.append(p.grad.lerp(momentum, MOMENTUM).reshape(rows, columns))
            scale = rate * SIZE * max(rows, columns) ** 0.5
            for p, step in zip(parameters, orthogonalized(torch.stack(steps)), strict=True):
                p.sub_(step.reshape(p.shape), alpha=scale)

    def _others(self, given: list[Tensor], rate: float) -> None:
        for p in given:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
            state["mean"].lerp_(p.grad, 1 - BETAS[0])
            state["square"].mul_(BETAS[1]).addcmul_(p.grad, p.grad, value=1 - BETAS[1])
            count = float(state["step"])
            mean, square = state["mean"] / (1 - BETAS[0] ** count), state["square"] / (1 - BETAS[1] ** count)
            p.addcdiv_(mean, square.sqrt_().add_(1e-8), value=-rate)


OPTIMIZERS: dict[str, OptimizerFactory] = {"adamw": adamw, "muon": Muon}
