"""A family of small networks from end to end: parents, merges, search, ceiling; and the parts that score detectors."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import bench_quality, parents, quality_search
from benchmarks.families import Family, Net
from benchmarks.family_detect import Canvases, average_precision, grid_loss, grids
from benchmarks.family_nets import Detector, GatedViT, Llama, ResNet
from benchmarks.family_tasks import Study, classify, divergence
from benchmarks.models import MLP
from benchmarks.tasks import Task

INPUTS, CLASSES = 6, 3


def net(classes: int, *, width: int) -> nn.Module:
    return MLP(INPUTS, (width, width), classes)


def study(name: str, seed: int) -> Study:
    """Which of three random directions an input is nearest to."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(300, INPUTS, generator=generator)
    labels = (x @ torch.randn(INPUTS, CLASSES, generator=generator)).argmax(1)
    return classify(Task(name, {"x": x[:200]}, labels[:200], {"x": x[200:]}, labels[200:], CLASSES))


def studies(folder: Path) -> list[Study]:
    return [study("one", 1), study("two", 2)]


def family() -> Family:
    shape, brief = {"width": 8}, {"epochs": 8, "lr": 1e-2}
    nets = tuple(Net(f"tiny{seed}", net, shape, brief, seed) for seed in (1, 2))
    joint = Net("tiny-ceiling", net, shape, {"steps": 20, "lr": 1e-2}, 3)
    return Family("tiny", studies, nets, joint, sizes=(12,), training={"steps": 20, "batch_size": 16})


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> dict[tuple[str, int | None], dict[str, object]]:
    out = folder / "quality.json"
    monkeypatch.setattr(
        sys, "argv", ["bench_quality", "--out", str(out), "--families", "tiny", "--seeds", "2", *options]
    )
    bench_quality.main()
    return {(row["method"], row.get("seed")): row for row in json.loads(out.read_text())["rows"]}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(parents, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(bench_quality, "FAMILIES", {"tiny": family()})
    monkeypatch.setattr(quality_search, "STARTS", {"adamw": 1e-2})
    monkeypatch.setattr(quality_search, "inits", lambda count: ("average", "nowhere"))
    monkeypatch.setattr(quality_search, "STEPS", 20)
    monkeypatch.setattr(quality_search, "LOWEST", 5e-3)
    monkeypatch.setattr(quality_search, "HIGHEST", 2e-2)
    return tmp_path


def test_a_family_from_end_to_end(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(tiny, monkeypatch, "--methods", "average", "distill-tuned")
    assert {name for name, _ in rows} == {"parents", "ceiling", "average", "distill-tuned"}
    assert rows["parents", None]["share"] == 1 and rows["parents", None]["cpu_seconds"] is not None
    best = rows["distill-tuned", 1]["settings"]["merge"]  # type: ignore[index]
    assert best["init"] == "average" and best["steps"] == 20
    said = capsys.readouterr().out
    assert "skipped: distill from nowhere" in said and "share of parents" in said

    marked = json.loads((tiny / "quality.json").read_text())
    for row in marked["rows"]:
        row["mark"] = True
    (tiny / "quality.json").write_text(json.dumps(marked))
    rows = run(tiny, monkeypatch, "--methods", "average", "condense", "distill-tuned")
    assert [key for key, row in rows.items() if "mark" not in row] == [("condense", 0), ("condense", 1)]
    rows = run(tiny, monkeypatch, "--methods", "average", "--again", "--no-ceiling")
    assert "mark" not in rows["average", 0] and "mark" in rows["ceiling", None]


@pytest.mark.parametrize(
    ("build", "inputs", "shape"),
    [
        (partial(ResNet, 3, width=4), torch.rand(2, 1, 28, 28), (2, 3)),
        (partial(Detector, 8, width=4), torch.rand(2, 1, 64, 64), (2, 8, 8, 8)),
        (
            partial(Llama, 9, vocabulary=9, width=8, heads=4, groups=2, hidden=8, depth=1),
            torch.randint(0, 9, (2, 5)),
            (2, 5, 9),
        ),
        (
            partial(GatedViT, 3, image=28, patch=14, width=8, heads=2, hidden=8, depth=1),
            torch.rand(2, 1, 28, 28),
            (2, 3),
        ),
    ],
)
def test_networks_answer_in_their_shape(build: partial[nn.Module], inputs: torch.Tensor, shape: Sequence[int]) -> None:
    assert build().eval()(inputs).shape == shape


def drawn() -> Canvases:
    boxes = [torch.tensor([[4.0, 4, 20, 20], [30, 34, 46, 58]]), torch.tensor([[40.0, 0, 60, 20]])]
    return Canvases(torch.zeros(2, 1, 64, 64), boxes, [torch.tensor([0, 1]), torch.tensor([0])])


def perfect(grid: torch.Tensor, classes: int) -> torch.Tensor:
    """What a detector says that is right and sure everywhere."""
    kinds = nn.functional.one_hot(grid[:, 5].long(), classes).movedim(-1, 1) * 20.0
    return torch.cat([grid[:, :1] * 40 - 20, grid[:, 1:5], kinds], 1)


def test_average_precision_counts_every_object_once() -> None:
    given = perfect(grids(drawn()), 2)
    assert average_precision(given, drawn()) == pytest.approx(1)
    assert float(grid_loss(given, grids(drawn()))) < 1e-3
    given[0, 0] = -20  # the first canvas is left empty: half of class 0, and all of class 1
    assert average_precision(given, drawn()) == pytest.approx(0.25)
    given[0, 0, 7, 0] = 30  # and a box where there is none, surer than the right one
    given[0, 5, 7, 0] = 20
    assert average_precision(given, drawn()) == pytest.approx(0.125)


def test_divergence_is_of_the_next_token() -> None:
    logits = torch.randn(2, 3, 5)
    assert divergence(logits + 7, logits) == pytest.approx(0, abs=1e-6)
    assert divergence(torch.zeros(1, 1, 2), torch.tensor([[[20.0, -20.0]]])) == pytest.approx(0.6931, abs=1e-3)
