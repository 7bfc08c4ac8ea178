"""Figures mean what they say: agreement for class scores alone, by their own axis, and errors for all other numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.capturing import capture
from fxmerge.errors import OptionError
from fxmerge.output.readings import Reading, reading
from fxmerge.output.scores import Score


class Net(nn.Module):
    def __init__(self, size: int, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(size)
        self.body, self.head, self.end = nn.Linear(6, 16), nn.Linear(16, size), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.head(torch.tanh(3 * self.body(x))))


def read(
    size: int,
    end: Callable[[Tensor], Any],
    metric: str = "auto",
    labels: tuple[str, ...] | None = None,
    output: int = 0,
) -> Reading:
    x = torch.randn(64, 6)
    program = capture(Net(size, end), (x,), labels=labels)
    port = program.outputs[0]
    with torch.no_grad():
        return reading(program, port, program.run({"x": x})[port.name], metric)


@pytest.mark.parametrize(
    ("size", "end", "labels", "kind"),
    [
        (5, lambda y: y, None, "classes"),
        (5, lambda y: y.softmax(1), None, "classes"),
        (5, lambda y: y.log_softmax(1), None, "classes"),
        (5, lambda y: y.argmax(1), None, "chosen"),
        (5, lambda y: {"boxes": y}, None, "values"),
        (4, lambda y: torch.cat([y[:, :2], y[:, :2] + y[:, 2:].exp()], 1), None, "values"),
        (5, lambda y: y.sigmoid(), None, "values"),
        (5, lambda y: 3 * torch.tanh(y / 3), None, "classes"),
        (5, lambda y: (y / 0.7).double(), None, "classes"),
        (5, lambda y: -3 * torch.tanh(y / 3), None, "values"),
        (5, lambda y: y.relu(), None, "values"),
        (5, lambda y: y.log_softmax(0), None, "values"),
        (5, lambda y: torch.nn.functional.normalize(y, dim=1), None, "values"),
        (5, lambda y: y.sigmoid(), ("a", "b", "c", "d", "e"), "classes"),
        (5, lambda y: y, ("a", "b", "c"), "values"),
        (1, lambda y: y, None, "values"),
        (1, lambda y: y.squeeze(1), None, "values"),
        (1, lambda y: y, ("no", "yes"), "sign"),
        (1, lambda y: {"logit": y.squeeze(1)}, None, "sign"),
        (12, lambda y: y.reshape(-1, 3, 4), None, "values"),
        (12, lambda y: y.reshape(-1, 3, 2, 2), ("a", "b", "c"), "classes"),
    ],
)
def test_what_an_output_is(size: int, end: Callable[[Tensor], Any], labels: tuple[str, ...] | None, kind: str) -> None:
    assert read(size, end, labels=labels).kind == kind


def test_the_user_has_the_last_word_and_the_axis_is_the_labels() -> None:
    assert read(5, lambda y: y, "regression").kind == "values"
    assert read(5, lambda y: y, "none").kind == "none"
    assert read(1, lambda y: y.sigmoid(), "classes") == Reading("sign", level=0.5, said_by="--metric")
    assert read(12, lambda y: y.reshape(-1, 3, 2, 2), labels=("a", "b", "c")).axis == 1


def test_an_inner_feature_beside_its_decoding_is_no_score() -> None:
    back = nn.Linear(5, 7)
    assert read(5, lambda y: (y, back(y.relu()))).kind == "values"


def test_an_output_of_every_token() -> None:
    net = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
    ids = torch.randint(0, 11, (16, 9))
    program = capture(net, (ids,))
    assert reading(program, program.outputs[0], net(ids).detach()).kind == "classes"


def test_padding_counts_in_no_figure() -> None:
    real = torch.tensor([[True, True, False], [True, False, False]])
    theirs = torch.randn(2, 3, 4)
    ours = torch.where(real[..., None], theirs, theirs + 100 * torch.randn(2, 3, 4))
    score = Score("logits", Reading("classes"))
    score.add(ours, theirs, real)
    found = score.figures()
    assert (score.places, found["agreement"], found["r2"], found["error"]) == (3, 1.0, 1.0, 0.0)


def test_errors_are_shares_of_the_spread_of_the_parents_own_output() -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.randn(4000, 2, generator=generator) * 50 + 1000
    score = Score("y", Reading("values"))
    for part in (slice(0, 1000), slice(1000, 4000)):
        score.add(theirs[part] + 10 * torch.randn(theirs[part].shape, generator=generator), theirs[part])
    found = score.figures()
    assert found["agreement"] is None
    assert found["error"] == pytest.approx(0.2, rel=0.05)
    assert found["r2"] == pytest.approx(1 - found["error"] ** 2)


def test_constant_predictions_are_said() -> None:
    score = Score("logits", Reading("classes"))
    score.add(torch.randn(50, 3), torch.randn(50, 3) + torch.tensor([0.0, 99.0, 0.0]))
    assert score.figures()["constant"] is True
    assert score.notes("t") == [
        "t.logits: the parent chooses one class for all of these samples, so its figures say little"
    ]
    score = Score("y", Reading("values"))
    score.add(torch.randn(50), torch.full((50,), 7.0))
    assert (score.figures()["r2"], score.constant) == (None, True)
    score = Score("logits", Reading("classes"))
    score.add(torch.tensor([[0.0, 1.0]] * 9), torch.randn(9, 2, generator=torch.Generator().manual_seed(0)))
    assert score.notes("t") == ["t.logits: the merged model chooses one class for all of these samples"]


def merged(end: Callable[[Tensor], Any], size: int, **options: Any) -> dict[str, Any]:
    x = torch.randn(40, 6)
    nets = [Net(size, end), Net(size, end)]
    nn.init.normal_(nets[1].body.weight)
    parents = [capture(net, (x,), task=f"t{k}") for k, net in enumerate(nets)]
    return dict(fxmerge.merge(parents, data=x, method="average", **options).result)


def test_a_regressor_and_a_detector_have_no_agreement() -> None:
    (first, _) = merged(lambda y: y.squeeze(1), 1)["tasks"]
    assert first["agreement"] is None
    assert first["outputs"][0]["r2"] < 1
    (first, _) = merged(lambda y: {"boxes": y[:, :4], "scores": y[:, 4:]}, 7, metric={"t0.scores": "classes"})["tasks"]
    assert [(o["output"], o["kind"], o["agreement"] is None) for o in first["outputs"]] == [
        ("boxes", "values", True), ("scores", "classes", False)
    ]  # fmt: skip
    assert first["agreement"] == first["outputs"][1]["agreement"]


def test_metric_of_a_name_that_nobody_has() -> None:
    with pytest.raises(OptionError, match=r"no task or output 't3'.*\nknown are: t0, t1, t0\.logits"):
        merged(lambda y: y, 3, metric={"t3": "classes"})
    with pytest.raises(OptionError, match=r"--metric .*classes"):
        merged(lambda y: y, 3, metric="clases")
