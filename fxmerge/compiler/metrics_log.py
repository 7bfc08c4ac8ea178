"""`--log`: what a merge measures while it runs, as lines of JSON or for TensorBoard.

    {"event": "step", "stage": "train", "step": 7, "of": 600, "loss": 0.42, "lr": 0.0021, "rate": 31.2, "seconds": 0.9}
    {"event": "eval", "stage": "train", "step": 30, "of": 600, "held_back": 0.71, "seconds": 1.6}
    {"event": "stage", "stage": "train", "seconds": 19.3}

Every line is there as soon as it is measured. The docstring of `MetricsLog` says what the keys mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxmerge.config import MergeConfig
from fxmerge.errors import OptionError
from fxmerge.io.files import check_output
from fxmerge.messages import reason
from fxmerge.stages import Stages, Tell

Write = Callable[[Mapping[str, Any]], None]


class MetricsLog:
    """Events of a run, written one by one.

    `event` is "step" (a step of training), "eval" (held-back samples), "trial" (other work that says how far it is) or
    "stage" (one is over). `stage` is a key of `seconds` in the result; `method` is there where several are compared.
    `step` of `of`; `loss` of the step, `lr` its largest learning rate, `rate` steps a second; `held_back` is the
    score on samples that nothing trains on, as `stages` in the result: 1 is the parents, 0 the best constant answer.
    `seconds`: since the run began, and of a stage how long it took. `message` says in words what a trial is.
    """

    def __init__(self, write: Write | None = None) -> None:
        """Without `write`, nothing is kept."""
        self._write = write
        self.begun = time.perf_counter()
        self.failed: str | None = None
        """Why the log ends before the run does: a full disk stops the log, not the merge."""

    def __call__(self, event: str, **values: Any) -> None:
        if self._write is None or self.failed is not None:
            return
        try:
            self._write({"event": event, **values})
        except OSError as error:
            self.failed = reason(error)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the log at the end."""
        return (f"--log ends early: {self.failed}",) if self.failed else ()

    def watching(self, stages: Stages | None, **always: Any) -> Stages:
        """The same stages, written down as they pass; `always` stands in every line."""
        stages = stages or Stages()
        return stages if self._write is None else _Watched(stages, self, always)


@contextmanager
def metrics_log(config: MergeConfig) -> Iterator[MetricsLog]:
    """The log of a run: lines of JSON in a `.jsonl`, files of TensorBoard in a folder, nowhere if none is asked for.

    A run that goes on from its state goes on with its file. Raises `OptionError` where TensorBoard is not installed,
    `OutputError` for a file that is there already.
    """
    path, going_on = config.log, config.resume is not None and Path(config.resume, "training.pt").is_file()
    if path is None or config.dry_run:
        yield MetricsLog()
    elif Path(path).suffix:
        check_output(path, overwrite=config.overwrite or going_on)
        with open(path, "a" if going_on else "w", encoding="utf-8") as file:
            yield MetricsLog(lambda values: print(json.dumps(values), file=file, flush=True))
    else:
        writer = tensorboard()(path)
        try:
            yield MetricsLog(lambda values: _scalars(writer, values))
        finally:
            writer.close()


def tensorboard() -> Any:
    """What writes files of TensorBoard. Raises `OptionError` where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError(
            "--log to a folder is for TensorBoard, which is not installed",
            "pip install tensorboard, or --log run.jsonl",
        ) from error
    return SummaryWriter


class _Watched(Stages):
    watched = True

    def __init__(self, stages: Stages, log: MetricsLog, always: Mapping[str, Any]) -> None:
        super().__init__()
        self.stages, self.log, self.always = stages, log, always

    @contextmanager
    def show(self, name: str) -> Iterator[Tell]:
        begin = time.perf_counter()
        with self.stages.show(name) as shown:

            def tell(done: int, total: int, message: str = "", **values: float) -> None:
                shown(done, total, message, **values)
                event = "step" if "loss" in values else "eval" if "held_back" in values else "trial"
                said = {"message": message} if event == "trial" else {}
                self._log(event, name, self.log.begun, step=done, of=total, **said, **values)

            yield tell
        self._log("stage", name, begin)

    def _log(self, event: str, stage: str, since: float, **values: Any) -> None:
        seconds = round(time.perf_counter() - since, 3)
        self.log(event, **self.always, stage=stage, **values, seconds=seconds)


def _scalars(writer: Any, values: Mapping[str, Any]) -> None:
    """Loss, rates and scores over the steps; how long each stage took."""
    name = "/".join(str(values[key]) for key in ("method", "stage") if key in values)
    if values["event"] == "stage":
        writer.add_scalar(f"{name}/seconds", values["seconds"], 0)
    elif values["event"] != "trial":
        for key in ("loss", "lr", "rate", "held_back"):
            if key in values:
                writer.add_scalar(f"{name}/{key}", values[key], values["step"])
        writer.flush()
