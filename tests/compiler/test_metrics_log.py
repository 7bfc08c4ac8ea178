"""`--log`: every step, score and stage as a line while the run goes on, and the same model as without."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxmerge
from fxmerge.capturing import capture
from fxmerge.compiler.comparison import compare
from fxmerge.compiler.metrics_log import MetricsLog, metrics_log
from fxmerge.config import MergeConfig
from fxmerge.errors import OptionError, OutputError
from fxmerge.ir.program import Program
from fxmerge.stages import Stages, Tell

STEPS = 24
FAST: dict[str, Any] = {"method": "foldable", "init": "average", "steps": STEPS, "augment": "none", "batch_size": 16}


@pytest.fixture(scope="module")
def parents() -> list[Program]:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))

    return [capture(net(k), (torch.randn(96, 6),), task=task) for k, task in enumerate("ab")]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Reading(Stages):
    """Looks into the log while the run goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.seen = path, 0

    @contextmanager
    def show(self, name: str) -> Iterator[Tell]:
        def tell(done: int, total: int, message: str = "", **values: float) -> None:
            if "loss" in values and done == 9:
                self.seen = max(line["step"] for line in lines(self.path) if line["event"] == "step")

        yield tell


def test_every_step_score_and_stage_is_a_line_at_once(parents: list[Program], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    stages = Reading(path)
    merged = fxmerge.merge(parents, log=path, stages=stages, **FAST)
    found = lines(path)
    steps = [line for line in found if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert stages.seen == 8
    assert {line["of"] for line in steps} == {STEPS}
    assert all(line["loss"] > 0 and line["lr"] > 0 and line["rate"] > 0 for line in steps)
    assert [line["seconds"] for line in found if line["event"] != "stage"] == sorted(
        line["seconds"] for line in found if line["event"] != "stage"
    )
    training = merged.result["training"]
    judged = [(line["step"], line["held_back"]) for line in found if line["event"] == "eval"]
    assert judged == [(step, pytest.approx(1 - loss, abs=1e-6)) for step, loss in training["held_back"]]
    assert judged[-1][0] == STEPS
    # The same held-back rows, judged by the driver: all that differs is that each task is scored for itself.
    mean = sum(task["feature_r2"] for task in merged.result["tasks"]) / 2
    assert judged[-1][1] == pytest.approx(mean, abs=0.2)
    over = {line["stage"]: line["seconds"] for line in found if line["event"] == "stage"}
    assert over.keys() == merged.result["seconds"].keys()


def test_the_model_is_the_same_bit_for_bit(parents: list[Program], tmp_path: Path) -> None:
    plain, logged = fxmerge.merge(parents, **FAST), fxmerge.merge(parents, log=tmp_path / "run.jsonl", **FAST)
    assert plain.result["training"]["held_back"] == ()
    assert all(torch.equal(value, logged.state_dict()[name]) for name, value in plain.state_dict().items())


def test_a_comparison_says_the_method_in_every_line(parents: list[Program], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    compare(parents, "average,condense", log=path)
    assert {line["method"] for line in lines(path)} == {"average", "condense"}


def test_a_file_is_kept_unless_it_may_be_replaced_or_is_gone_on_with(tmp_path: Path) -> None:
    path, state = tmp_path / "run.jsonl", tmp_path / "state"
    path.write_text('{"event": "step"}\n')
    config = MergeConfig.of(log=path, resume=state)
    with pytest.raises(OutputError, match=r"run.jsonl exists already"), metrics_log(config):
        pass
    state.mkdir()
    (state / "training.pt").touch()
    with metrics_log(config) as log:
        log("stage")
    assert [line["event"] for line in lines(path)] == ["step", "stage"]
    with metrics_log(MergeConfig.of(log=path, overwrite=True)) as log:
        log("stage")
    assert [line["event"] for line in lines(path)] == ["stage"]


def test_a_full_disk_ends_the_log_and_not_the_merge() -> None:
    def full(values: Any) -> None:
        raise OSError(28, "No space left on device")

    log = MetricsLog(full)
    log("step", step=1)
    log("step", step=2)
    assert log.notes == ("--log ends early: [Errno 28] No space left on device",)


def test_other_suffixes_are_refused(parents: list[Program]) -> None:
    with pytest.raises(OptionError, match=r"--log run.txt: '.txt' cannot be written") as caught:
        fxmerge.merge(parents, log="run.txt")
    assert ".jsonl" in caught.value.todo


def test_tensorboard_that_is_not_installed_is_said(
    parents: list[Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OptionError, match="TensorBoard, which is not installed") as caught:
        fxmerge.merge(parents, log=tmp_path / "runs", **FAST)
    assert caught.value.todo == "pip install tensorboard, or --log run.jsonl"
    assert not (tmp_path / "runs").exists()


def test_tensorboard_reads_the_folder(parents: list[Program], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fxmerge.merge(parents, log=tmp_path / "runs", **FAST)
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))
    assert {"train/held_back", "train/lr", "train/rate", "fold/seconds"} <= set(events.Tags()["scalars"])
