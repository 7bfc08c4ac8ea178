"""Multinomial logistic regression: which of K classes a row of features is of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DECAYS = (1e-1, 1e-2, 1e-3)
"""Weights of the squared norm that are tried, on standardised features."""
FOLDS = 4
STEPS = 200
SMALL = 1e-6
"""A feature whose spread is a smaller share of the largest one's is taken to be constant."""


@dataclass(frozen=True)
class Linear:
    """probabilities = softmax(W x + b), for features (rows, D): weight (K, D), bias (K,), in float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() @ self.weight.T + self.bias).softmax(-1)

    def right(self, features: Tensor, classes: Tensor) -> Tensor:
        """Per row: whether the likeliest class is its own."""
        return self(features).argmax(-1) == classes


@dataclass(frozen=True)
class Tried:
    """What cross-validation says of features: how strongly to hold weights down, and which rows came out right."""

    decay: float
    right: Tensor


def logistic(features: Tensor, classes: Tensor, decay: float, count: int | None = None) -> Linear:
    """The fit of least cross entropy + decay · |W|² / 2, every class weighing the same; features are standardised.

    The standardisation is folded into what is returned. Deterministic; a convex problem with one solution.
    """
    x, count = features.double(), count or int(classes.max()) + 1
    mean, spread = x.mean(0), x.std(0, correction=0)
    scale = torch.where(spread > SMALL * spread.max(), 1 / spread.clamp_min(1e-300), 0.0)
    x = (x - mean) * scale
    share = 1 / torch.bincount(classes, minlength=count).clamp_min(1).double()
    weight = torch.zeros(count, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, classes, share) + decay * weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    folded = weight.detach() * scale
    return Linear(folded, bias.detach() - folded @ mean)


def tried(features: Tensor, classes: Tensor) -> Tried:
    """Cross-validation over `DECAYS`: the strength of least cross entropy, and the rows that came out right with it."""
    count, fold = int(classes.max()) + 1, torch.arange(len(classes)) % FOLDS
    best: tuple[float, Tried] | None = None
    for decay in DECAYS:
        found = torch.zeros(len(classes), count, dtype=torch.float64)
        for number in range(FOLDS):
            out = fold == number
            if out.any() and not out.all():
                found[out] = logistic(features[~out], classes[~out], decay, count)(features[out])
        loss = float(-found.gather(1, classes[:, None]).clamp_min(1e-12).log().mean())
        if best is None or loss < best[0]:
            best = loss, Tried(decay, found.argmax(-1) == classes)
    assert best is not None
    return best[1]
