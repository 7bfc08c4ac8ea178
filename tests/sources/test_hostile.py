"""Files from strangers through the command line: two lines and exit code 2, nothing run, written, left or filled."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from fxmerge.cli.verbs import main
from fxmerge.io import child
from tests.small_nets import Trap
from tests.sources import hostile
from tests.sources.hostile_models import MODELS
from tests.sources.hostile_samples import SAMPLES

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs pipes, devices and resource limits")

CASES = {f"{kind}: {name}": case for kind, cases in (MODELS | SAMPLES).items() for name, case in cases.items()}
HARMLESS = {
    "bundle: unpooling", "pt2: code as size", "arrays: 4 GB of nothing",
    "images: bitmap of 2^31", "text: zero bytes", "text: 30 million rows", "text: half a surrogate",
    "text: labels are lists", "tokenizer: no unknown token", "tokenizer: padding to 2^40",
}  # fmt: skip
"""May also be read: what is wrong with them changes nothing, or only their first rows are used."""

MESSAGES = {
    "bundle: full, 40 GB": "its values would take 40960 MiB",
    "bundle: many at once": "its values would take",
    "bundle: pooling backward": "which no forward pass has",
    "bundle: recurrent backward": "which no forward pass has",
    "bundle: sparse": "gives no plain tensor",
    "bundle: a million labels": "1000000 labels, more than any model tells apart",
    "bundle: a tensor for every number": "would give more than 65536 tensors",
    "bundle: name of two lines": r"bad\\n\\x1b\[31m.pt is no model",
    "weights: hash of a billion": "takes longer than 3 seconds to read",
    "weights: a place far away": "it would take more than 1536 MiB of memory",
    "weights: bare payload": "is a plain pickle, not a file of torch.save\ncapture it",
    "folder: a thousand layers": "describes more than 1004 tensors, there are 1",
    "folder: positions of 10^9": "sizes differ from the weights",
    "arrays: one row of 4 GB": "not in rows that can be read one by one",
    "images: postscript": "no picture of a format that is opened",
    "tokenizer: text without end": "the tokenizer of text cannot be read: ",
    "names: zero bytes without end": "no ordinary file but a device",
    "yaml: laughs": "refers to another place",
    "onnx: 40 GB": "it would take more than 1536 MiB of memory",
    "onnx: loop without end": "takes longer than 3 seconds",
}
"""What is said where the danger, and not the damage beside it, must be what is found."""

MEMORY, SECONDS = 2 << 20, 10.0


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    hostile.build(folder)
    return folder


def _peaks() -> tuple[int, int]:
    """KiB of memory that this process and its children took at most."""
    return tuple(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))  # type: ignore[return-value]


def _cpu() -> float:
    """Processor time: what a busy machine adds to the clock is not ours."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def test_there_are_many() -> None:
    assert len(CASES) >= 200
    assert CASES.keys() >= HARMLESS | MESSAGES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_costs_two_lines(
    name: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room, scratch = tmp_path / "room", tmp_path / "scratch"
    shutil.copytree(good, room)
    scratch.mkdir()
    trap = Trap(tmp_path)
    args = CASES[name](hostile.Lab(room, trap))
    monkeypatch.chdir(room)
    monkeypatch.setattr(child, "SECONDS", 3)
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = sorted(os.fspath(p) for p in room.rglob("*"))
    capsys.readouterr()
    peaks, resident, start = _peaks(), psutil.Process().memory_info().rss >> 10, _cpu()
    code = main(args)
    used = _cpu() - start
    out, error = capsys.readouterr()
    assert code == 2 or (code == 0 and name in HARMLESS), f"{code}: {error}"
    if code == 2:
        assert len(error.splitlines()) == 2, error
        assert error.startswith("error: ")
        assert all(c.isprintable() for line in error.splitlines() for c in line), error
        assert not out
        assert re.search(MESSAGES.get(name, ""), error), error
    assert "this is a bug" not in error
    assert "Traceback" not in error
    assert not trap.sprung
    assert not list(scratch.iterdir())
    assert sorted(os.fspath(p) for p in room.rglob("*")) == before
    assert used < SECONDS, error
    own, children = _peaks()
    assert own <= max(peaks[0], resident + MEMORY), (own, resident)
    assert children <= max(peaks[1], MEMORY, own), children  # a child begins with what this process has
