"""Progress shows on a terminal after a while, with rate and time left, and nowhere else."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from fxmerge.cli.bars import Bars, duration
from fxmerge.stages import Stages


def _console(terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=120), text


def test_stages_add_up() -> None:
    stages = Stages()
    with stages("train") as tell:
        tell(1, 2, "")
    first = stages.seconds["train"]
    with stages("train"), stages("verify"):
        pass
    assert stages.seconds["train"] > first > 0
    assert set(stages.seconds) == {"train", "verify"}


def test_a_bar_with_rate_and_time_left() -> None:
    console, text = _console(terminal=True)
    bars = Bars(console, patience=0.0)
    with bars("train") as tell:
        end = time.monotonic() + 20
        done = 0
        while "left" not in text.getvalue() and time.monotonic() < end:
            done += 1
            tell(done, 10_000_000, "loss 0.42")
    shown = text.getvalue()
    assert "train" in shown
    assert "/s" in shown
    assert "left" in shown
    assert "loss 0.42" in shown


def test_short_work_shows_nothing() -> None:
    console, text = _console(terminal=True)
    with Bars(console, patience=60)("train") as tell:
        tell(1, 2, "")
    assert text.getvalue().strip() == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_without_a_terminal(quiet: bool) -> None:
    console, text = _console(terminal=False)
    console.quiet = quiet
    bars = Bars(console, patience=0.0)
    with bars("train") as tell:
        tell(1, 2, "")
    assert text.getvalue() == ""
    assert "train" in bars.seconds


def test_a_bar_is_taken_down_when_work_fails() -> None:
    console, _ = _console(terminal=True)
    bars = Bars(console, patience=0.0)
    with pytest.raises(ValueError, match="no"), bars("train"):
        raise ValueError("no")
    with bars("verify"):  # a display left up would refuse a second one
        pass
    assert list(bars.seconds) == ["train", "verify"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.42 s"), (8.0, "8 s"), (38.2, "38 s"), (250, "4 min 10 s"), (3900, "1 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
