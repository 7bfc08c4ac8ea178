"""The user's own code beside a model: neighbours of a factory's file, the working folder of a pickled module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxmerge.errors import SourceError
from fxmerge.sources.load import load

LAYERS = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, {width}), torch.nn.Linear({width}, 3)
    def forward(self, x):
        return self.last(self.first(x).relu())
"""
FACTORY = "from {module} import Net\ndef build():\n    import {other}\n    return Net()\n"
SAVE = """
import torch, {module}
torch.manual_seed(0)
net = {module}.Net()
torch.save(net.state_dict(), "state.pt")
torch.save(net, "bare.pt")
torch.save({{"epoch": 3, "model": net, "ema": {module}.Net(), "best": 0.5}}, "checkpoint.pt")
torch.save({{"model": net.half()}}, "half.pt")
"""


def project(folder: Path, module: str, width: int = 6) -> Path:
    """A folder with a factory that imports the file beside it, and checkpoints made by a script of its own."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(LAYERS.format(width=width))
    (folder / "late.py").write_text("")
    (folder / "net.py").write_text(FACTORY.format(module=module, other="late"))
    np.savez(folder / "x.npz", x=np.random.default_rng(0).random((5, 4)))
    subprocess.run([sys.executable, "-c", SAVE.format(module=module)], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("project"), "my_layers")


def test_a_factory_imports_the_files_beside_it_from_anywhere(made: Path, tmp_path: Path) -> None:
    program = load(made / "state.pt", arch=f"{made / 'net.py'}:build", inputs=made / "x.npz")
    assert torch.equal(program.tensors["first.weight"], torch.load(made / "state.pt")["first.weight"])
    assert str(made) not in sys.path
    assert not {"my_layers", "late", "net"} & sys.modules.keys()


def test_two_folders_may_have_files_of_one_name(tmp_path: Path) -> None:
    for number, width in enumerate((6, 9)):
        folder = project(tmp_path / str(number), "my_layers", width)
        for _ in range(2):
            program = load(folder / "state.pt", arch=f"{folder / 'net.py'}:build", inputs=folder / "x.npz")
            assert program.tensors["first.weight"].shape == (width, 4)


def test_a_missing_neighbour_is_said(made: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY.format(module="no_such_layers", other="late"))
    with pytest.raises(SourceError, match=r"No module named 'no_such_layers'"):
        load(made / "state.pt", arch=f"{tmp_path / 'net.py'}:build")


def test_pickled_modules_find_their_code_in_the_working_folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    weight = torch.load("state.pt")["first.weight"]
    for name, said in (("bare.pt", ()), ("checkpoint.pt", ("took the module under 'model'", "other modules: 'ema'"))):
        program = load(name, inputs="x.npz", allow_pickle=True)
        assert torch.equal(program.tensors["first.weight"], weight)
        assert all(any(words in note for note in program.notes) for words in said)
    averaged = load("checkpoint.pt", inputs="x.npz", allow_pickle=True, key="ema")
    assert not torch.equal(averaged.tensors["first.weight"], weight)
    half = load("half.pt", inputs="x.npz", allow_pickle=True)
    assert half.tensors["first.weight"].dtype == torch.float32
    assert any("half precision" in note for note in half.notes)
    with pytest.raises(SourceError, match=r"no module under 'eam', did you mean 'ema'"):
        load("checkpoint.pt", inputs="x.npz", allow_pickle=True, key="eam")


def test_the_weights_of_a_pickled_module_fill_a_factory(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    for name in ("bare.pt", "checkpoint.pt"):
        program = load(name, arch="net.py:build", inputs="x.npz", allow_pickle=True)
        assert torch.equal(program.tensors["first.weight"], torch.load("state.pt")["first.weight"])


def test_pickled_modules_without_their_code(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"No module named 'my_layers'\nrun from the folder that holds its code"):
        load(made / "bare.pt", inputs=made / "x.npz", allow_pickle=True)
    monkeypatch.chdir(made)  # what the message says to do
    assert isinstance(load("bare.pt", inputs="x.npz", allow_pickle=True).module, nn.Module)
