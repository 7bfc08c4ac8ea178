"""Constants in which parents differ: kept by each task, carried into weights, said, or refused with both lines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
import passes
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
Inner = Callable[["Net", Tensor, float], Tensor]


class Net(nn.Module):
    """A linear map, something with a constant, another linear map and a head."""

    def __init__(self, inner: Inner, constant: float) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.other, self.query = nn.Linear(5, 8), nn.Linear(8, 8)
        self.norm, self.inner, self.constant = nn.LayerNorm(8), inner, constant
        self.register_buffer("held", torch.tensor([0.5, 0.25, 1.0, 2.0, 3.0]) * constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self, x, self.constant)


def rest(net: Net, y: Tensor) -> Tensor:
    return net.head(F.gelu(net.second(y)))


FACTORS: dict[str, Inner] = {
    "behind a relu": lambda m, x, c: rest(m, F.relu(m.first(x)) * c),
    "division": lambda m, x, c: rest(m, F.gelu(m.first(x) / c)),
    "behind a sum": lambda m, x, c: rest(m, torch.tanh((m.first(x) + F.relu(m.other(x))) * c)),
    "in front of linear maps": lambda m, x, c: m.head(F.gelu(m.second(F.gelu(m.first(x)) * c))),
    "soft cap": lambda m, x, c: rest(m, torch.tanh(m.first(x) / c) * c),
    "attention": lambda m, x, c: rest(m, _attend(m, m.first(x), c)),
}
KEPT: dict[str, Inner] = {
    "in the head": lambda m, x, c: torch.tanh(rest(m, F.relu(m.first(x))) / c) * c,
    "before the weights": lambda m, x, c: rest(m, F.relu(m.first((x - 0.1 * c) * c))),
    "a tensor before the weights": lambda m, x, c: rest(m, F.relu(m.first(x / m.held))),
    "a tensor in the head": lambda m, x, c: rest(m, F.relu(m.first(x))) * m.held[:3],
}
REFUSED: dict[str, tuple[Inner, str]] = {
    "slope": (lambda m, x, c: rest(m, F.leaky_relu(m.first(x), c / 10)), r"negative_slope: 0.2 and 3.0"),
    "sharpness": (lambda m, x, c: rest(m, F.softplus(m.first(x), beta=c)), "beta of .* is 2 .* and 30"),
    "soft cap behind a norm": (lambda m, x, c: rest(m, torch.tanh(m.norm(m.first(x)) / c)), "is 2 .* and 30"),
    "a factor of what two read": (lambda m, x, c: _twice(m, m.first(x), c), "is 2 .* and 30"),
    "a factor behind a tied weight": (
        lambda m, x, c: rest(m, torch.tanh(m.second(F.gelu(m.first(x))) * c)),
        "is 2 .* and 30",
    ),
    "shift": (lambda m, x, c: rest(m, torch.tanh(m.first(x) + c)), "is 2 .* and 30"),
    "large guard": (lambda m, x, c: rest(m, F.layer_norm(m.first(x), (8,), eps=c)), "eps of .* is 2 .* and 30"),
}


def _twice(net: Net, y: Tensor, factor: float) -> Tensor:
    return rest(net, torch.tanh(y * factor) + y)


def _attend(net: Net, y: Tensor, scale: float) -> Tensor:
    q = net.query(y)[:, None]
    return y + F.scaled_dot_product_attention(q, y[:, None], y[:, None], scale=scale / 20)[:, 0]


def parents(inner: Inner, one: float = 2.0, two: float = 30.0) -> list[Program]:
    found = []
    for task, constant in (("a", one), ("b", two)):
        torch.manual_seed(len(found))
        found.append(fxmerge.capture(Net(inner, constant).eval().double(), (X.double(),), task=task))
    return found


def second_alone(programs: list[Program]) -> tuple[Tensor, tuple[str, ...]]:
    """The outputs of task b where the merged model is parent b, and the notes."""
    normal = [passes.cleanup(passes.normalize(p)) for p in programs]
    net = passes.insert_merge(normal, passes.BUILTIN.rules).start([0.0, 1.0])
    outputs = [f"{p.task}.{port.name}" for p in net.parents for port in p.outputs]
    folded = passes.fold_merge(passes.hoist(net.program.only(outputs)), net.tasks, 0)
    given = {name: X.double() for name in (port.name for port in folded.inputs)}
    return folded.run(given)["b.logits"], net.program.notes


@pytest.mark.parametrize("kind", FACTORS)
def test_a_factor_goes_into_the_weights(kind: str) -> None:
    programs = parents(FACTORS[kind])
    found, notes = second_alone(programs)
    torch.testing.assert_close(found, programs[1](X.double()), rtol=1e-10, atol=1e-10)
    assert any("the weights of b the rest" in note and "test_settle_constants.py" in note for note in notes)


@pytest.mark.parametrize("kind", KEPT)
def test_a_head_and_what_is_done_to_inputs_stay_each_task_s_own(kind: str) -> None:
    programs = parents(KEPT[kind])
    found, notes = second_alone(programs)
    torch.testing.assert_close(found, programs[1](X.double()), rtol=1e-10, atol=1e-10)
    assert any("each task keeps its own" in note and "in a and" in note for note in notes)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_one_graph_cannot_serve_is_refused_with_both_lines(kind: str) -> None:
    inner, message = REFUSED[kind]
    with pytest.raises(LineUpError, match=message) as error:
        second_alone(parents(inner))
    assert str(error.value).count("test_settle_constants.py") == 2


def test_guards_and_masks_are_harmless_and_said() -> None:
    def guarded(net: Net, x: Tensor, c: float) -> Tensor:
        y = F.layer_norm(net.first(x), (8,), eps=c * 1e-6)
        return rest(net, y.masked_fill(y > 1, -c * 1e6).softmax(-1))

    _, notes = second_alone(parents(guarded))
    assert sum("the merged model has the first" in note for note in notes) == 2


def test_a_number_that_follows_from_a_width_needs_no_note() -> None:
    class Wide(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.head, self.scale = nn.Linear(5, width), nn.Linear(width, 3), width**0.5

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.first(x) * self.scale))

    programs = [fxmerge.capture(Wide(w).eval(), (X,), task=str(w)) for w in (8, 12)]
    assert passes.insert_merge(programs, passes.BUILTIN.rules).program.notes == ()
