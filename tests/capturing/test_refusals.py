"""What no graph can hold is refused at capture, with the user's own line; the model is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxmerge import capture
from fxmerge.errors import CaptureError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros(()))


class Dropout(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.enter(x), 0.5))


class Sampling(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.head(h + torch.randn_like(h))


class Memory(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
        return self.head(h - self.mean)


class Branch(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        if h.sum() > 0:
            h = h * 2
        return self.head(h)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (Dropout(), "draws random numbers in eval mode: aten.native_dropout.default"),
        (Sampling(), "draws random numbers in eval mode: aten.randn_like.default"),
        (Memory(), "from call to call: the buffer mean keeps state"),
        (Branch(), "the model branches on data"),
    ],
)
def test_refused_with_its_line(model: nn.Module, what: str) -> None:
    with pytest.raises(CaptureError, match=what + r" \(at test_refusals.py:\d+\)"):
        capture(model, (torch.randn(4, 6),))


def test_a_counter_that_does_not_matter_is_said() -> None:
    class Counter(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.head(self.enter(x).relu())

    model = Counter()
    program = capture(model, (torch.randn(4, 6),))
    assert "forward changes the buffer calls (at test_refusals.py" in program.notes[0]
    assert float(model.calls) == 0


def test_capture_leaves_the_model_and_its_inputs_as_they_were() -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Tensor:
            x[:, 0] = 0
            self.last = x
            return self.head(self.enter(x).relu())

    model, x = Writes().train(), torch.ones(4, 6)
    capture(model, (x,))
    assert model.training
    assert torch.equal(x, torch.ones(4, 6))
    assert not hasattr(model, "last")


def test_dropout_that_is_off_in_eval_mode_is_no_matter() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    assert capture(model, (torch.randn(4, 6),)).notes == ()
