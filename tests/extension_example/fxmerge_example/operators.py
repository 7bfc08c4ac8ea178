"""Two operators: a gate with a scale for every feature, and one that swaps the halves of its last axis."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("example::gate", mutates_args=())
def gate(x: Tensor, scale: Tensor) -> Tensor:
    """x · sigmoid(scale · x)."""
    return x * torch.sigmoid(scale * x)


@gate.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)  # type: ignore[attr-defined]


def _backward(ctx: object, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, scale = ctx.saved_tensors  # type: ignore[attr-defined]
    share = torch.sigmoid(scale * x)
    slope = gradient * x * share * (1 - share)
    to_scale = (slope * x).flatten(0, -2).sum(0)
    return gradient * share + slope * scale, to_scale


gate.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("example::swap", mutates_args=())
def swap(x: Tensor, parts: int) -> Tensor:
    """The last axis cut into equal parts, in reverse order."""
    return torch.cat(x.chunk(parts, -1)[::-1], -1)


@swap.register_fake
def _(x: Tensor, parts: int) -> Tensor:
    return torch.empty_like(x)


swap.register_autograd(lambda ctx, gradient: (swap(gradient, ctx.parts), None),
                       setup_context=lambda ctx, inputs, output: setattr(ctx, "parts", inputs[1]))  # fmt: skip
