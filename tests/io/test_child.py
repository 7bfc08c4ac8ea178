"""Workers that are kept alive between questions."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fxmerge.io import child
from fxmerge.io.child import ChildError, Talk


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = Talk(
        "fxmerge.samples.workers:pictures", {"mode": "L", "width": 2, "height": 2, "config": {}, "most": 100}, size=1000
    )
    yield made
    made.close()
    assert not list(tmp_path.iterdir())  # it had a scratch folder of its own


def picture(color: int) -> bytes:
    made = io.BytesIO()
    Image.new("L", (2, 2), color).save(made, "PNG")
    return made.getvalue()


def test_one_worker_answers_all_questions(talk: Talk) -> None:
    numbers = set()
    for color in (3, 200):
        assert talk.ask({}, picture(color)) == ({"resized": False}, bytes([color] * 4))
        numbers.add(talk._process.pid)  # type: ignore[union-attr]
    assert len(numbers) == 1
    assert "no picture" in talk.ask({}, b"?")[0]["bad"]


def test_a_worker_that_dies_is_begun_anew(talk: Talk) -> None:
    talk.begin()
    os.kill(talk._process.pid, 9)  # type: ignore[union-attr]
    with pytest.raises(ChildError, match="ran out of memory or crashed"):
        talk.ask({}, picture(3))
    assert talk.ask({}, picture(3))[1] == bytes([3] * 4)


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    failing = Talk("fxmerge.samples.workers:texts", {"pads": []}, b"no tokenizer")
    for _ in range(2):
        with pytest.raises(ChildError):
            failing.begin()
    failing.close()


def test_a_worker_has_longer_where_the_machine_is_busy(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child cannot begin within a hundredth of a second; it can where ten thousand others want each processor."""
    monkeypatch.setattr(child, "WALL", 0.01)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    with pytest.raises(ChildError, match="takes longer"):
        talk.begin()
    monkeypatch.setattr(os, "getloadavg", lambda: (1e4 * (os.cpu_count() or 1), 0.0, 0.0))
    assert talk.ask({}, picture(3))[1] == bytes([3] * 4)
