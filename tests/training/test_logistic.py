"""Logistic regression: the solution of its equations, in the units of the features as they are given."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fxmerge.training.logistic import DECAYS, logistic, tried


def test_the_gradient_vanishes_at_the_fit() -> None:
    torch.manual_seed(0)
    classes = torch.arange(60) % 3
    x = torch.randn(60, 5, dtype=torch.float64) * torch.tensor([1, 10, 0.1, 3, 0]) + classes[:, None] + 5
    x[:, 4] = 2.0  # a feature that never varies
    found = logistic(x, classes, 0.01)
    spread, mean = x.std(0, correction=0), x.mean(0)
    weight = (found.weight * spread).requires_grad_()
    bias = (found.bias + found.weight @ mean).requires_grad_()
    z = (x - mean) / spread.clamp_min(1e-9)
    loss = F.cross_entropy(z @ weight.T + bias, classes) + 0.01 * weight.square().sum() / 2
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert max(float(g.abs().max()) for g in gradients) < 1e-6
    torch.testing.assert_close((z @ weight.T + bias).softmax(1).detach(), found(x))
    assert bool((found.weight[:, 4] == 0).all())


def test_a_class_weighs_the_same_however_many_rows_it_has() -> None:
    torch.manual_seed(0)
    few, many = torch.randn(10, 1) - 0.5, torch.randn(1000, 1) + 0.5
    x, classes = torch.cat([few, many]), (torch.arange(1010) >= 10).long()
    balanced = torch.cat([few.repeat(100, 1), many])
    found, same = logistic(x, classes, 0.0), logistic(balanced, (torch.arange(2000) >= 1000).long(), 0.0)
    torch.testing.assert_close(found(x), same(x), rtol=1e-4, atol=1e-5)


def test_rows_are_judged_by_a_fit_without_them() -> None:
    torch.manual_seed(0)
    x, classes = torch.randn(24, 40), torch.arange(24) // 4 % 2  # more features than rows: any labels can be learnt
    found = tried(x, classes)
    assert found.decay in DECAYS and found.right.double().mean() < 0.8
    assert logistic(x, classes, DECAYS[-1]).right(x, classes).all()
