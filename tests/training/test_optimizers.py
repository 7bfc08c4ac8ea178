"""Muon: its step on a matrix has singular values near one; vectors and tables get AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxmerge.training.optimizers import BETAS, SIZE, Muon, adamw, orthogonalized
from fxmerge.training.settings import Group


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 20), (2, 20, 5)])
def test_orthogonalized_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    given = torch.randn(shape)
    found = orthogonalized(given)
    assert found.shape == given.shape
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    inner = u.mT @ found @ v.mT
    assert torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), atol=1e-3)


def test_a_step_on_a_matrix_has_the_size_that_the_rate_says() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(6, 4, 2, 2))
    optimizer = Muon([{"params": [weight], "lr": 0.5, "weight_decay": 0.0, "matrices": True}])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach().reshape(6, 16)) / (0.5 * SIZE * 4)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3


def test_what_is_no_matrix_steps_as_adamw_does() -> None:
    torch.manual_seed(0)
    pair = [nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))]
    groups = [[{"params": [p], "lr": 0.1, "weight_decay": 0.01, "matrices": False}] for p in pair]
    optimizers = [Muon(groups[0]), adamw(groups[1])]
    for _ in range(7):
        gradient = torch.randn(5)
        for p, optimizer in zip(pair, optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    assert optimizers[1].defaults["betas"] == BETAS
    torch.testing.assert_close(pair[0], pair[1])


def test_it_goes_on_from_its_state() -> None:
    def run(parts: int) -> torch.Tensor:
        torch.manual_seed(0)
        weight, bias = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))
        gradients = [(torch.randn(4, 3), torch.randn(3)) for _ in range(6)]
        state = None
        for part in range(parts):
            optimizer = Muon(
                [{"params": [p], "lr": 0.1, "weight_decay": 0.0, "matrices": p.ndim == 2} for p in (weight, bias)]
            )
            if state is not None:
                optimizer.load_state_dict(state)
            for one, two in gradients[part * 6 // parts : (part + 1) * 6 // parts]:
                weight.grad, bias.grad = one, two
                optimizer.step()
            state = optimizer.state_dict()
        return torch.cat([weight.detach().flatten(), bias.detach()])

    torch.testing.assert_close(run(1), run(2), rtol=0, atol=0)


def test_groups_say_what_is_a_matrix() -> None:
    assert Group((), matrices=True).matrices and not Group(()).matrices
