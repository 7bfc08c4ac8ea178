"""State dicts and checkpoints straight from the command line: no capture first, nothing lost, advice that works."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.errors import DataError, OptionError, SourceError

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.inner = torch.nn.Linear(8, width), torch.nn.Linear(width, width)
        self.last = torch.nn.Linear(width, 3)
    def forward(self, x):
        return self.last(self.inner(self.first(x).relu()).relu())
def build():
    return Net(12)
def wide():
    return Net(20)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: code, state dicts a, b (and c, wider), samples, a bundle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("net.py").write_text(NET)
    made: dict[str, object] = {}
    exec(NET, made)
    for seed, (task, build) in enumerate((("a", "build"), ("b", "build"), ("c", "wide"))):
        torch.manual_seed(seed)
        model: nn.Module = made[build]()  # type: ignore[operator]
        save_file(model.state_dict(), f"{task}.safetensors")
        np.savez(f"{task}.npz", x=torch.randn(24, 8).numpy(), labels=np.zeros(24))
    np.save("all.npy", torch.randn(24, 8).numpy())
    torch.save({"model": model.state_dict(), "ema": model.state_dict(), "total_ops": torch.ones(1)}, "raw.pt")
    return tmp_path


ARCH = ("--arch", "net.py:build")
MERGE = ("merge", "a.safetensors", "b.safetensors", *ARCH, "--out", "m.pt", "--method", "average")


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("data", [("a=a.npz", "b=b.npz"), ("all.npy",), ("a=a.npz", "all.npy")])
def test_state_dicts_need_no_capture(data: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [flag for value in data for flag in ("--data", value)]
    code, _, err = run(capsys, *MERGE, *flags, "-v", "--result", "m.json")
    assert code == 0, err
    result = json.loads((here / "m.json").read_text())
    assert [task["samples"] for task in result["tasks"]] == [24, 24]
    assert (here / "m.pt").is_file()


def test_state_dicts_from_python(here: Path) -> None:
    x = torch.randn(9, 8)
    for data in ({"a": x, "b": x}, x, {"x": x}, {"a": {"x": x}, "": x}, Path("all.npy"), {"a": "a.npz", "b": x}):
        merged = fxmerge.merge(
            ["a.safetensors", Path("b.safetensors")], arch="net.py:build", data=data, method="average"
        )
        assert merged(x)["a"].shape == (9, 3)


def test_parents_of_two_architectures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parents = ("merge", "a.safetensors", "c.safetensors", "--data", "all.npy", "--method", "average")
    out = ("--out", "m.pt")
    code, _, err = run(capsys, *parents, *out, "--arch", "a=net.py:build", "--arch", "c=net.py:wide")
    assert code == 0, err
    code, _, err = run(capsys, *parents, "--out", "n.pt", "--arch", "net.py:build", "--arch", "c=net.py:wide")
    assert code == 0, err
    code, _, err = run(capsys, *parents, *out, "--arch", "net.py:build", "--arch", "d=net.py:wide", "--overwrite")
    assert (code, "there is no task of that name" in err) == (2, True)
    (here / "c.yaml").write_text("arch: {a: 'net.py:build', c: 'net.py:wide'}\n")
    code, _, err = run(capsys, *parents, "--out", "o.pt", "--config", "c.yaml")
    assert code == 0, err


def test_a_factory_with_weights_of_its_own_is_traced_on_the_samples(here: Path) -> None:
    merged = fxmerge.merge(["net.py:build", "net.py:wide"], data="all.npy", method="average")
    assert merged.tasks == ("build", "wide")


def test_one_state_dict_beside_a_bundle(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "capture", "b.safetensors", *ARCH, "--inputs", "b.npz", "--out", "b.pt")
    assert code == 0, err
    args = ("merge", "a.safetensors", "b.pt", "--out", "m.pt", "--method", "average", "--data", "a=a.npz")
    code, _, err = run(capsys, *args, *ARCH)
    assert code == 0, err
    code, _, err = run(capsys, *args, *ARCH, "--arch", "b=net.py:wide", "--overwrite")
    assert (code, "b.pt holds its model and weights already\nleave out --arch" in err) == (2, True)
    for flag in (ARCH, ("--key", "ema"), ("--ignore", "x")):
        code, _, err = run(capsys, "merge", "b.pt", "b.pt", "--out", "n.pt", *flag)
        assert (code, f"{flag[0]} is for weights" in err, f"leave {flag[0]} out" in err) == (2, True, True)


def test_what_to_do_without_samples_and_without_arch(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *MERGE)
    assert (code, "(to merge: --data TASK=FILE), an .npz" in err) == (2, True)
    assert run(capsys, *MERGE, "--data", "a=a.npz", "--data", "b=b.npz")[0] == 0
    code, _, err = run(capsys, "inspect", "a.safetensors")
    assert code == 2
    command = err.splitlines()[1].partition(": ")[2].partition(" (")[0].replace("FACTORY", "net.py:build")
    assert command.startswith("fxmerge capture a.safetensors --arch")
    code, _, err = run(capsys, *shlex.split(command)[1:], "--out", "c.pt")
    assert (code, "add --inputs FILE" in err) == (2, True)
    assert run(capsys, *shlex.split(command)[1:], "--out", "c.pt", "--inputs", "a.npz")[0] == 0


def test_a_checkpoint_with_more_in_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture = ("capture", "raw.pt", "--arch", "net.py:wide", "--inputs", "a.npz", "--out", "c.pt")
    code, _, err = run(capsys, *capture)
    assert code == 0, err
    assert "took the weights under 'model'" in err
    assert "other weights that fit: 'ema' (--key NAME takes them)" in err
    code, _, err = run(capsys, *capture, "--overwrite", "--key", "ema")
    assert (code, "took the weights under 'ema'" in err) == (0, True)
    state = torch.load("raw.pt")["model"] | {"first.total_ops": torch.ones(1)}
    torch.save(state, "raw.pt")
    code, _, err = run(capsys, *capture, "--overwrite")
    assert (code, "not in the model: first.total_ops" in err) == (2, True)
    flags = shlex.split(err.splitlines()[1].partition("weights of it: ")[2])
    code, _, err = run(capsys, *capture, "--overwrite", *flags)
    assert code == 0, err
    merge = ("merge", "raw.pt", "a.safetensors", "--data", "all.npy", "--out", "m.pt", "--method", "average")
    code, _, err = run(capsys, *merge, "--arch", "raw=net.py:wide", "--arch", "a=net.py:build", *flags)
    assert code == 0, err


def test_weights_under_a_key_of_one_parent(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": torch.load("raw.pt")["model"]}, "plain.ckpt")
    merge = ("merge", "raw.pt", "plain.ckpt", "--arch", "net.py:wide", "--data", "all.npy", "--out", "m.pt")
    code, _, err = run(capsys, *merge, "--method", "average", "--key", "ema")
    assert (code, "plain.ckpt has no weights under 'ema'" in err) == (2, True)
    assert "it has state_dict; --key TASK=NAME is for one parent of several" in err
    code, _, err = run(capsys, *merge, "--method", "average", "--key", "raw=ema")
    assert (code, "took the weights under 'ema'" in err) == (0, True), err


def test_all_inputs_of_a_trace_must_be_there(here: Path) -> None:
    with pytest.raises(DataError, match="no array for x"):
        fxmerge.load("a.safetensors", arch="net.py:build", inputs={"y": torch.ones(2, 8), "z": torch.ones(2, 8)})
    by_place = fxmerge.load("a.safetensors", arch="net.py:build", inputs=(torch.ones(2, 8),))
    assert [port.name for port in by_place.inputs] == ["x"]
    with pytest.raises(DataError, match="'input 1' is no parameter of forward"):
        fxmerge.load("a.safetensors", arch="net.py:build", inputs=(torch.ones(2, 8), torch.ones(2)))
    with pytest.raises(OptionError, match="1 model given"):
        fxmerge.merge(["a.safetensors"])
    with pytest.raises(SourceError, match="weights without a model"):
        fxmerge.merge(["a.safetensors", "b.safetensors"], method="average")
