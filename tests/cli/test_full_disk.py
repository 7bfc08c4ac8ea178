"""A disk that is full, at every verb that writes: two lines, exit code 2, what was there before stays, nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fxmerge.cli.verbs import main
from fxmerge.errors import OutputError
from fxmerge.io.tensor_files import written_by_torch
from fxmerge.sources.bundle import save
from fxmerge.training.resume import keep

resource = pytest.importorskip("resource")
MERGE = ("merge", "a.pt", "b.pt", "--method", "average", "-q", "--overwrite", "--out")
COMPARE = ("--methods", "average,permute", "-q", "--overwrite")
EARLIER = "what was written before"


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: the system refuses, as it does where the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _held(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two bundles, and what they merge into."""
    folder = tmp_path_factory.mktemp("made")
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
        save(model, folder / f"{task}.pt", inputs=(torch.randn(16, 8),), task=task)
    parents = [str(folder / name) for name in ("a.pt", "b.pt")]
    assert main(["merge", *parents, "--method", "average", "--out", str(folder / "merged.onnx"), "-q"]) == 0
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def here(made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with these files in it."""
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("size", "args"),
    [
        (0, (*MERGE, "m.onnx")),
        (600, (*MERGE, "m.safetensors")),
        (600, (*MERGE, "m.pt2")),
        (600, (*MERGE, "m.pt")),
        (600, (*MERGE, "folder")),
        (10, (*MERGE, "m.onnx", "--save-config", "m.yaml")),
        (1900, (*MERGE, "m.safetensors", "--result", "m.json")),
        (1900, (*MERGE, "m.safetensors", "--report", "m.html")),
        (600, ("compare", "a.pt", "b.pt", *COMPARE, "--out", "m.safetensors")),
        (100, ("compare", "a.pt", "b.pt", *COMPARE, "--result", "m.json")),
        (600, ("capture", "a.pt", "--overwrite", "--out", "m.pt")),
        (600, ("inspect", "a.pt", "--overwrite", "--html", "m.html")),
        (600, ("export", "a.pt", "--overwrite", "--out", "m.onnx")),
        (600, ("split", "merged.onnx", "--task", "a", "--overwrite", "--out", "m.onnx")),
        (600, ("package", "merged.onnx", "--overwrite", "--triton", "repository")),
        (600, ("config", "--overwrite", "--out", "m.yaml")),
    ],
    ids=lambda value: f"{value[0]} {value[-1]}" if isinstance(value, tuple) else "",
)
def test_verbs(here: Path, capsys: pytest.CaptureFixture[str], size: int, args: tuple[str, ...]) -> None:
    """The last argument is where the disk is full."""
    last = Path(args[-1])
    if last.suffix:
        last.write_text(EARLIER)
    else:
        last.mkdir()
        (last / "config.json").write_text(EARLIER)
    before = _held(here)
    with full_after(size):
        code = main(args)
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert code == 2 and out == "", err
    assert len(said) == 2 and said[0].startswith("error: ") and "File too large" in said[0], err
    assert "free some space" in said[1]
    whole = {name for name in ("m.safetensors",) if last.suffix in (".json", ".html")}  # complete, and named before
    assert {name: data for name, data in _held(here).items() if name not in whole} == before


def test_weights_beside_a_model(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxmerge.output.onnx.LARGE", 0)
    (here / "m.onnx").write_text(EARLIER)
    (here / "m.onnx.data").write_text(EARLIER)
    before = _held(here)
    with full_after(600):
        assert main([*MERGE, "m.onnx"]) == 2
    assert capsys.readouterr().err.startswith("error: m.onnx cannot be written")
    assert _held(here) == before


def test_state_of_a_run(here: Path) -> None:
    keep(here / "state.pt", {}, {"step": 1})
    before = _held(here)
    with full_after(600), pytest.raises(OutputError, match=r"state\.pt cannot be written"):
        keep(here / "state.pt", {}, {"weights": torch.zeros(1000)})
    assert _held(here) == before


def test_torch_writes_what_it_would_write_itself(tmp_path: Path) -> None:
    with written_by_torch(tmp_path / "x.pt") as file:
        torch.save({"x": torch.arange(5)}, file)
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True)["x"], torch.arange(5))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_what_is_printed() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fxmerge", "config"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2 and "No space left on device" in done.stderr


def test_room_is_looked_for_before_anything_is_trained(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    monkeypatch.setattr("fxmerge.compiler.merging.outcome_of", lambda *given: pytest.fail("it was trained"))
    before = _held(here)
    assert main([*MERGE, "m.onnx"]) == 2
    what = r"m\.onnx takes 204 bytes or more, and \. has room for 100 bytes\nfree some space there"
    assert re.search(what, capsys.readouterr().err)
    assert _held(here) == before
