"""Merges that were interrupted go on where they stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.models import GPT
from fxmerge import stages
from fxmerge.cli.verbs import main
from fxmerge.sources.bundle import save
from fxmerge.training.resume import chosen

MERGE = ("merge", "a.pt", "b.pt", "--out", "m.onnx", "--batch-size", "16", "-q")
LANGUAGE = "language models"
"""The parents write the samples of these."""


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.fixture
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two bundles and their samples."""
    monkeypatch.chdir(tmp_path)
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        if getattr(request, "param", None) == LANGUAGE:
            save(
                GPT(20, width=12, heads=2, hidden=16, depth=1, positions=24),
                tmp_path / f"{task}.pt",
                inputs=(torch.randint(0, 20, (64, 9)),),
                task=task,
            )
        else:
            save(perceptron(), tmp_path / f"{task}.pt", inputs=(torch.randn(96, 8),), task=task)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(args)
    return code, capsys.readouterr().err


class Stop(stages.Stages):
    """Interrupts the run when training tells of its sixth step."""

    steps: tuple[int, ...] = (12,)
    """How many there may be in all."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def tell(self, done: int, total: int, message: str = "", **values: float) -> None:
        if total in self.steps and done == 6 and message.startswith("train,"):
            raise KeyboardInterrupt

    @contextmanager
    def show(self, name: str) -> Iterator[Any]:
        yield self.tell


def interrupted(here: Path, capsys: pytest.CaptureFixture[str], *args: str, steps: Sequence[int] = (12,)) -> None:
    """Run a merge that is interrupted, and keeps its state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stop, "steps", tuple(steps))
        patch.setattr("fxmerge.cli.bars.Bars", Stop)
        code, err = run(capsys, *args)
    assert code == 130, err
    assert (here / "m.onnx.state" / "training.pt").is_file()
    assert not (here / "m.onnx").exists()


@pytest.mark.parametrize("here", ["perceptrons", LANGUAGE], indirect=True)
def test_a_resumed_merge_goes_on_with_what_trials_chose(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a budget too, whose steps and trials would be others in every run."""
    args = (*MERGE, "--budget", "2", "--result", "r.json")
    interrupted(here, capsys, *args, steps=range(7, 10_000))
    wanted = {"start": str, "optimizer": str, "lr": float, "steps": int, "augmentation": str}
    known = chosen(here / "m.onnx.state" / "training.pt", wanted)
    code, err = run(capsys, *args, "--method", "distill", "--resume", "m.onnx.state")
    assert code == 2 and "was kept by a run of another method" in err
    monkeypatch.setattr("fxmerge.methods.search.Search.best", lambda self: pytest.fail("trials again"))
    code, err = run(capsys, *args, "--resume", "m.onnx.state")
    assert code == 0, err
    result = json.loads((here / "r.json").read_text())
    assert result["training"]["steps"] == known["steps"]
    assert {name: result["training"]["chosen"][name] for name in ("start", "optimizer", "lr")}.items() <= known.items()
    assert any(note.startswith("goes on with what trials chose: start ") for note in result["notes"])


def test_interrupted_for_real_and_resumed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C after some steps; going on gives the same weights as never having stopped."""
    args = (*MERGE, "--steps", "12", "--pool", "64")
    assert run(capsys, *args)[0] == 0
    whole = (here / "m.onnx").read_bytes()
    (here / "m.onnx").unlink()
    interrupted(here, capsys, *args)
    code, err = run(capsys, *args, "--resume", "m.onnx.state")
    assert code == 0, err
    assert (here / "m.onnx").read_bytes() == whole
    assert not (here / "m.onnx.state").exists()
