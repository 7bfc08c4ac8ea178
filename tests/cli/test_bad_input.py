"""Bad input: one line what, one line what to do, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxmerge.cli.verbs import main
from fxmerge.sources.bundle import save


class Wide(nn.Module):
    """Another structure than `_net` from the first call on: a norm, and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.last(x + torch.sigmoid(self.first(x)))


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def _with(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        model[0].weight[0, 0] = value  # type: ignore[index,operator]
    return model


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good bundles a and b, and one file of every kind of bad input."""
    folder = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(0)
    x = torch.randn(96, 8)
    save(_net(0), folder / "a.pt", inputs=(x,), task="a")
    save(_net(1), folder / "b.pt", inputs=(x,), task="b")
    save(_net(1), folder / "a_again.pt", inputs=(x,), task="a")
    save(_net(1), folder / "few.pt", inputs=(x[:3],), task="few")
    save(Wide(), folder / "wide.pt", inputs=(x,), task="wide")
    save(_with(_net(1), float("nan")), folder / "nan.pt", inputs=(x,), task="nan")
    save(_with(_net(1), float("inf")), folder / "inf.pt", inputs=(x,), task="inf")
    save(_net(1), folder / "bare.pt", inputs=(x,), task="bare")
    _drop_samples(folder / "bare.pt")
    whole = (folder / "b.pt").read_bytes()
    (folder / "empty.pt").write_bytes(b"")
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "corrupt.pt").write_bytes(whole[:1000] + bytes(64) + whole[1064:])
    (folder / "noise.pt").write_bytes(b"no model at all" * 50)
    (folder / "folder").mkdir()
    torch.save(_net(1), folder / "pickled.pt")
    torch.save(_net(1).state_dict(), folder / "state.pt")
    for name, value in {
        "good": x.numpy(), "rank": x.numpy()[:, :, None], "size": x.numpy()[:, :5], "dtype": x.numpy().astype(complex),
        "nan": np.where(x.numpy() > 2, np.nan, x.numpy()), "inf": np.full((96, 8), np.inf, np.float32),
        "few": x.numpy()[:3], "none": x.numpy()[:0],
    }.items():  # fmt: skip
        np.savez(folder / f"{name}.npz", input=value)
    np.savez(folder / "names.npz", pictures=x.numpy(), other=x.numpy())
    (folder / "unknown.xyz").write_text("?")
    (folder / "there.onnx").write_text("kept")
    (folder / "typo.yaml").write_text("stpes: 3\n")
    return folder


def _drop_samples(path: Path) -> None:
    """Rewrite a bundle without the samples in it."""
    import json

    from safetensors.torch import save as to_bytes

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["samples.safetensors"] = to_bytes({})
    json.loads(members["bundle.json"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.fixture
def refuse(zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command that must be refused in the two promised lines; returns them."""
    monkeypatch.chdir(zoo)

    def call(*args: str, lines: int = 2) -> str:
        before = {path: path.stat().st_mtime_ns for path in zoo.rglob("*")}
        capsys.readouterr()
        code = main(args)
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert len(err.splitlines()) == lines, err
        assert all(line.strip() for line in err.splitlines())
        assert {path: path.stat().st_mtime_ns for path in zoo.rglob("*")} == before
        return err

    return call


Refuse = Callable[..., str]
OUT = ("--out", "m.onnx", "--steps", "2")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.pt", "missing.pt does not exist"),
        ("empty.pt", "empty.pt is empty"),
        ("folder", "folder"),
        ("cut.pt", "cut.pt"),
        ("corrupt.pt", "corrupt.pt"),
        ("noise.pt", "noise.pt"),
        ("pickled.pt", "pickle"),
        ("state.pt", "--arch"),
    ],
)
@pytest.mark.parametrize("verb", ["merge", "inspect"])
def test_sources(source: str, message: str, verb: str, refuse: Refuse) -> None:
    assert message in refuse(*(("merge", "a.pt", source, *OUT) if verb == "merge" else (verb, source)))


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        (("a.pt", "nan.pt"), "NaN"),
        (("a.pt", "inf.pt"), "infinite"),
        (("a.pt", "a_again.pt"), "task name a"),
        (("a.pt", "bare.pt"), "no samples for bare"),
        (("a.pt",), "only a.pt"),
        ((), "there is none"),
    ],
)
def test_parents(parents: tuple[str, ...], message: str, refuse: Refuse) -> None:
    assert message in refuse("merge", *parents, *OUT)


def test_parents_that_do_not_line_up_name_both_source_lines(refuse: Refuse) -> None:
    said = refuse("merge", "a.pt", "wide.pt", *OUT, "--method", "foldable")
    assert "test_bad_input.py:" in said


def test_no_samples_lists_methods_that_need_none(refuse: Refuse) -> None:
    assert "average" in refuse("merge", "a.pt", "bare.pt", *OUT).splitlines()[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a=missing.npz", "missing.npz does not exist"),
        ("a=unknown.xyz", "unknown.xyz is of no known kind"),
        ("a=names.npz", "no array for the input input"),
        ("a=rank.npz", "rank.npz"),
        ("a=size.npz", "size.npz"),
        ("a=dtype.npz", "dtype.npz"),
        ("a=none.npz", "none.npz"),
        ("c=good.npz", "there is no task named c"),
        ("=good.npz", "good.npz"),
    ],
)
def test_samples(data: str, message: str, refuse: Refuse) -> None:
    assert message in refuse("merge", "a.pt", "b.pt", "--data", data, *OUT)


@pytest.mark.parametrize("data", ["nan.npz", "inf.npz"])
def test_rows_that_hold_no_numbers(data: str, refuse: Refuse) -> None:
    assert data in refuse("merge", "a.pt", "b.pt", "--data", f"a={data}", "--strict-data", *OUT)


def test_too_few_samples_for_a_batch(refuse: Refuse) -> None:
    said = refuse("merge", "a.pt", "few.pt", "--augment", "none", "--batch-size", "500", *OUT)
    assert "batch" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("merge", "a.pt", "b.pt", "--out", "there.onnx"), "there.onnx exists already"),
        (("merge", "a.pt", "b.pt", "--out", "none/m.onnx"), "none does not exist"),
        (("merge", "a.pt", "b.pt", "--out", "m.onx"), "did you mean '.onnx'?"),
        (("merge", "a.pt", "b.pt"), "--out is missing"),
        (("merge", "a.pt", "b.pt", "--out", "m.onnx", "--result", "none/r.json"), "none does not exist"),
        (("merge", "a.pt", "b.pt", "--out", "m.onnx", "--report", "there.onnx"), "there.onnx exists already"),
        (("capture", "a.pt", "--out", "there.onnx"), "there.onnx exists already"),
        (("inspect", "a.pt", "--html", "none/p.html"), "none does not exist"),
        (("merge", "a.pt", "b.pt", *OUT, "--method", "avarage"), "unknown method 'avarage', did you mean 'average'?"),
        (("merge", "a.pt", "b.pt", *OUT, "--init", "avarage"), "did you mean 'average'?"),
        (("merge", "a.pt", "b.pt", *OUT, "--metod", "average"), "--metod"),
        (("merge", "a.pt", "b.pt", *OUT, "--config", "typo.yaml"), "unknown option 'stpes', did you mean 'steps'?"),
        (("merge", "a.pt", "b.pt", *OUT, "--config", "none.yaml"), "none.yaml: no such file"),
        (("merge", "a.pt", "b.pt", *OUT, "--like", "7"), "--like 7 of 2 parents"),
        (("merge", "a.pt", "b.pt", *OUT, "--steps", "many"), "--steps"),
        (("merge", "a.pt", "b.pt", *OUT, "--steps", "-3"), "--steps -3"),
        (
            ("merge", "a.pt", "b.pt", *OUT, "--method", "foldable", "--rank", "3", "--full"),
            "--rank and --full exclude each other",
        ),
        (("merge", "a.pt", "b.pt", *OUT, "--device", "gpu"), "--device gpu"),
        (("merge", "a.pt", "b.pt", *OUT, "--resume", "folder"), "no state of an interrupted merge"),
        (("capture", "a.pt", "--out", "c.pt", "--labels", "missing.txt"), "--labels missing.txt"),
        (("eval", "missing.onnx", "--data", "a=good.npz"), "missing.onnx: no such file"),
        (("eval", "there.onnx", "--data", "a=good.npz"), "there.onnx: ONNX Runtime cannot open it"),
        (("merg", "a.pt"), "merg"),
        (("eval",), "model"),
    ],
)
def test_command_lines(args: tuple[str, ...], message: str, refuse: Refuse) -> None:
    assert message.lower() in refuse(*args).lower()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder that not even root can write")
@pytest.mark.parametrize("flag", ["--out", "--result", "--report", "--log"])
def test_devices_and_pipes_are_not_replaced(flag: str, zoo: Path, refuse: Refuse) -> None:
    if not (pipe := zoo / "pipe.onnx").exists():
        os.mkfifo(pipe)
    rest = ("--method", "average", "--overwrite") if flag == "--out" else ("--method", "average", "--overwrite", *OUT)
    for path in (pipe, Path("/dev/fxmerge.onnx")):  # never a real device here: if this fails, it would be lost
        said = refuse("merge", "a.pt", "b.pt", flag, str(path), *rest)
        assert f"{path} is a device or a pipe, which nothing may replace\ngive the name of a file" in said
    assert pipe.is_fifo()


def test_folder_that_cannot_be_written(refuse: Refuse) -> None:
    assert "cannot be written" in refuse("merge", "a.pt", "b.pt", "--method", "average", "--out", "/proc/m.onnx")
