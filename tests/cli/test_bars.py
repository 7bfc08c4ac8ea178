"""Progress shows after a while, with rate and time left: as a bar on a terminal, as lines elsewhere."""

from __future__ import annotations

import io
import re
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
    console.width = 80
    bars = Bars(console, patience=0.0)
    with bars("train") as tell:
        end = time.monotonic() + 20
        done = 0
        while "left" not in text.getvalue() and time.monotonic() < end:
            done += 1
            tell(min(done, 99_999), 100_000, "train, loss 0.42")
    shown = text.getvalue()
    assert "train" in shown
    assert "/s" in shown
    assert "left" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(r"train .*/s · .* left .*\d:\d\d:\d\d .*train", plain), "one line, also where it is narrow"


def test_short_work_shows_nothing() -> None:
    console, text = _console(terminal=True)
    with Bars(console, patience=60)("train") as tell:
        tell(1, 2, "")
    assert text.getvalue().strip() == ""


def test_lines_without_a_terminal() -> None:
    console, text = _console(terminal=False)
    with Bars(console, patience=0.0)("train") as tell:
        tell(0, 200, "try average with muon, about 9 s in all")
        tell(1, 200, "try condense with muon, about 9 s in all")
        for done in range(1, 201):
            tell(done, 200, f"train, loss {1 / done:.3f}")
    first, *lines, last = text.getvalue().splitlines()
    assert first == "train: 0/200 · try average with muon, about 9 s in all"
    shown = re.compile(r"train: (\d+)/200 · [\d.e+]+/s · [\w. ]+ left · train, loss [\d.]+")
    steps = [int(found[1]) for line in lines if (found := shown.fullmatch(line))]
    assert steps == sorted(steps)
    assert len(lines) < 40, "ever more seldom"
    assert re.fullmatch(r"train: done in [\w.e-]+ s", last)


@pytest.mark.parametrize(("quiet", "patience"), [(True, 0.0), (False, 60.0)])
def test_nothing_without_a_terminal_when_quiet_or_quick(quiet: bool, patience: float) -> None:
    console, text = _console(terminal=False)
    console.quiet = quiet
    bars = Bars(console, patience=patience)
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
