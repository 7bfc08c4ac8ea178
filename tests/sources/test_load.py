"""Models from every kind of file: what is read, and what each wrong file is answered with."""

from __future__ import annotations

import json
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxmerge.errors import CaptureError, DataError, SourceError, UnsafeFileError
from fxmerge.ir.program import Program
from fxmerge.sources.bundle import save_bundle
from fxmerge.sources.load import load
from fxmerge.sources.pt2 import load_pt2

FACTORY = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, width), torch.nn.Linear(width, 3)

    def forward(self, pixels):
        return self.last(self.first(pixels).relu())

def build():
    return Net()

def sized(width):
    return Net(width)

def number():
    return 3

def broken():
    raise KeyError("width")

def wide():
    return Net(7)
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(self.first(pixels).relu())


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def place(net: Net, tmp_path: Path) -> Path:
    """A folder with a factory, a state dict and sample inputs."""
    (tmp_path / "factory.py").write_text(FACTORY)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "x.npz", pixels=np.random.default_rng(0).random((5, 4)), labels=np.arange(5) % 3)
    return tmp_path


def arch(place: Path, name: str = "build") -> str:
    return f"{place / 'factory.py'}:{name}"


def same(program: Program, net: nn.Module, name: str = "pixels") -> bool:
    x = torch.rand(7, 4)
    return torch.equal(program.run({name: x})["logits"], net(x))


def test_a_bundle_is_named_after_its_task_then_its_file(vit: Program, tmp_path: Path) -> None:
    save_bundle(vit, tmp_path / "a.pt")
    assert load(tmp_path / "a.pt").task == "digits"
    assert load(tmp_path / "a.pt", task="mine").task == "mine"
    save_bundle(vit.evolve(task="model"), tmp_path / "b.pt")
    assert load(tmp_path / "b.pt").task == "b"
    with pytest.raises(SourceError, match=r"holds its model and weights already\nleave out --arch"):
        load(tmp_path / "a.pt", arch="x:y")


def test_samples_given_replace_those_of_a_bundle(vit: Program, tmp_path: Path) -> None:
    save_bundle(vit, tmp_path / "a.pt")
    np.save(tmp_path / "x.npy", np.zeros((6, 1, 8, 8), dtype=np.float32))
    assert load(tmp_path / "a.pt", inputs=tmp_path / "x.npy").samples["x"].shape == (6, 1, 8, 8)


def test_a_file_is_known_by_what_it_holds(net: Net, place: Path) -> None:
    exported = torch.export.export(net, (torch.rand(3, 4),), strict=False)
    torch.export.save(exported, place / "net.pt2")
    (place / "net.pt2").rename(place / "other.pt")
    program = load(place / "other.pt")
    assert program.task == "other"
    assert torch.equal(program.run({"pixels": torch.ones(3, 4)})["logits"], net(torch.ones(3, 4)))


def test_a_state_dict_with_a_factory(net: Net, place: Path) -> None:
    program = load(place / "net.pt", arch=arch(place), inputs=place / "x.npz")
    assert same(program, net)
    assert program.task == "net"
    assert program.parameters == set(net.state_dict())
    assert program.samples["pixels"].dtype == torch.float32
    save_file(net.state_dict(), place / "net.safetensors")
    assert same(load(place / "net.safetensors", arch=arch(place), inputs=place / "x.npz"), net)
    assert same(load(arch(place), weights=place / "net.pt", inputs=place / "x.npz", task="t"), net)
    assert load(arch(place), inputs=place / "x.npz").task == "build"


def test_checkpoints_of_training_scripts_are_unwrapped(net: Net, place: Path) -> None:
    state = {"module." + name: tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer": {"lr": 0.1}}, place / "net.pt")
    assert same(load(place / "net.pt", arch=arch(place), inputs=place / "x.npz"), net)


def test_a_module_of_the_working_folder_is_found(place: Path, monkeypatch: pytest.MonkeyPatch, net: Net) -> None:
    (place / "factory.py").rename(place / "my_factory.py")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert same(load(place / "net.pt", arch="my_factory:build", inputs=place / "x.npz"), net)
    with pytest.raises(SourceError, match=r"my_factory has no 'bild', did you mean 'build'\?\nit has .*build"):
        load(place / "net.pt", arch="my_factory:bild")
    with pytest.raises(SourceError, match=r"--arch my_fctory:build: No module named.*\nrun from the folder"):
        load(place / "net.pt", arch="my_fctory:build")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sized", r"cannot be called without arguments.*\nwrite a function without parameters"),
        ("broken", r"factory\.py:broken failed: KeyError: 'width'\nrepair the factory"),
        ("number", r"gives a int, not a torch\.nn\.Module"),
        ("wide", r"do not belong to .*first\.weight has shape \(6, 4\)\nthe model it builds has \(7, 4\)"),
        ("", r"is not the name of a factory\ngive module:callable"),
    ],
)
def test_a_factory_that_does_not_fit(name: str, message: str, place: Path) -> None:
    with pytest.raises(SourceError, match=message):
        load(place / "net.pt", arch=arch(place, name))


def test_weights_of_another_model(net: Net, place: Path) -> None:
    state = net.state_dict()
    state["frist.weight"] = state.pop("first.weight")
    torch.save(state, place / "net.pt")
    with pytest.raises(
        SourceError, match=r"missing: first\.weight; not in the model: frist\.weight\), did you mean 'frist"
    ):
        load(place / "net.pt", arch=arch(place))


def test_a_state_dict_without_arch(place: Path) -> None:
    with pytest.raises(
        SourceError, match=r"net\.pt is a state dict \(4 tensors\): weights without a model\n.*--arch FACTORY"
    ):
        load(place / "net.pt")


def test_a_model_without_inputs(place: Path) -> None:
    with pytest.raises(SourceError, match=r"its inputs are not known\nadd --inputs FILE"):
        load(place / "net.pt", arch=arch(place))
    (place / "recordings").mkdir()
    said = (
        r"recordings holds no arrays that show them\ntrace it first: fxmerge capture WEIGHTS --arch \S+ --inputs X\.npz"
    )
    with pytest.raises(SourceError, match=said):
        load(place / "net.pt", arch=arch(place), inputs=place / "recordings")
    np.savez(place / "x.npz", pixel=np.zeros((3, 4)), other=np.zeros((3, 4)))
    with pytest.raises(
        DataError, match=r"no array for pixels \(found: pixel, other\), did you mean 'pixel'\?\n.*forward: pixels"
    ):
        load(place / "net.pt", arch=arch(place), inputs=place / "x.npz")


def test_image_bytes_are_read_as_fractions_and_said(place: Path) -> None:
    (place / "conv.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2))\n"
    )
    np.save(place / "x.npy", np.full((3, 1, 4, 4), 255, dtype=np.uint8))
    program = load(f"{place / 'conv.py'}:build", inputs=place / "x.npy")
    assert float(program.samples["input"].max()) == 1.0
    assert any("read as 0..1" in note for note in program.notes)


@pytest.mark.parametrize("origin", ["timm", "torchvision"])
def test_models_of_a_library_by_name(origin: str, net: Net, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the library, which need not be installed: it records how it is called."""
    calls: list[dict[str, Any]] = []

    def create(name: str, **options: Any) -> nn.Module:
        calls.append({"name": name, **options})
        model = Net()
        model.default_cfg = {"input_size": (4,)}  # type: ignore[assignment]
        return model

    library = types.ModuleType(origin)
    library.list_models = lambda: ["tiny", "large"]  # type: ignore[attr-defined]
    library.create_model = library.get_model = create  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, origin, library)
    monkeypatch.setitem(sys.modules, "torchvision.models", library)
    program = load(place / "net.pt", arch=f"{origin}:tiny")
    assert same(program, net)
    off = {"pretrained": False} if origin == "timm" else {"weights": None}
    assert calls == [{"name": "tiny", "num_classes": 3, **off}]
    assert not program.samples
    assert "traced with random inputs: pixels (2, 4)" in program.notes
    with pytest.raises(SourceError, match=r"has no model 'tinny', did you mean 'tiny'\?"):
        load(place / "net.pt", arch=f"{origin}:tinny")
    with pytest.raises(SourceError, match=r"untrained model\nadd --weights FILE"):
        load(f"{origin}:tiny")


def test_assets_come_from_the_folder_of_the_model_alone(net: Net, vit: Program, place: Path) -> None:
    (place / "tokenizer.json").write_text("{}")
    save_bundle(vit, place / "a.pt")
    program = load(place / "a.pt")
    assert dict(program.assets) == {"tokenizer.json": b"{}"}
    assert program.notes[-1] == "with tokenizer.json from its folder"
    assert not load(arch(place), inputs=place / "x.npz").assets


def test_inputs_that_hold_nothing(place: Path) -> None:
    np.savez(place / "x.npz", pixels=np.zeros((0, 4)))
    with pytest.raises(DataError, match=r"pixels is empty\ngive at least one row"):
        load(place / "net.pt", arch=arch(place), inputs=place / "x.npz")
    np.savez(place / "x.npz", pixels=np.full((3, 4), np.nan))
    with pytest.raises(DataError, match="pixels holds NaN or infinite values"):
        load(place / "net.pt", arch=arch(place), inputs=place / "x.npz")


def test_a_library_that_is_not_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SourceError, match=r"timm is not installed\n.*fxmerge\[vision\]"):
        load(place / "net.pt", arch="timm:tiny")


# -- files that are not read ---------------------------------------------------------------------------


def test_a_pickled_module_is_refused_and_does_not_run(net: Net, place: Path, trap: Any) -> None:
    torch.save(net, place / "module.pt")
    with pytest.raises(
        UnsafeFileError, match=r"module\.pt is a pickled object: .*execute code.*\ncapture it.*fxmerge\.save"
    ):
        load(place / "module.pt")
    torch.save({"first.weight": trap.object}, place / "evil.pt")
    torch.save({"first.weight": trap.object}, place / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("evil.pt", "old.pt"):
        with pytest.raises(UnsafeFileError, match="is a pickled object"):
            load(place / name, arch=arch(place))
    assert not trap.sprung


def test_a_pickled_module_is_read_when_allowed(net: Net, place: Path) -> None:
    torch.save(net, place / "module.pt")
    assert same(load(place / "module.pt", inputs=place / "x.npz", allow_pickle=True), net)


def test_a_torchscript_file_is_refused(place: Path) -> None:
    with zipfile.ZipFile(place / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"x")
    with pytest.raises(SourceError, match=r"is a TorchScript file\nsave the model's state dict"):
        load(place / "script.pt")


def test_missing_empty_and_other_files(place: Path) -> None:
    cases = {
        "missing.pt": r"missing\.pt does not exist\ngive a bundle",
        "empty.pt": r"empty\.pt is empty",
        "noise.pt": r"noise\.pt is no model fxmerge can read\ngive a bundle",
        "folder": r"folder is a folder but no model: it has no config\.json \(it has x\.txt\)",
        "cut.pt": r"cut\.pt is truncated",
        "cut.safetensors": r"cut\.safetensors is damaged",
        "numbers.pt": r"numbers\.pt holds no weights",
    }
    (place / "empty.pt").write_bytes(b"")
    (place / "noise.pt").write_bytes(b"no model " * 100)
    (place / "folder").mkdir()
    (place / "folder" / "x.txt").write_text("x")
    whole = (place / "net.pt").read_bytes()
    (place / "cut.pt").write_bytes(whole[: len(whole) // 2])
    save_file({"a": torch.zeros(100)}, place / "cut.safetensors")
    (place / "cut.safetensors").write_bytes((place / "cut.safetensors").read_bytes()[:-50])
    torch.save([1, 2], place / "numbers.pt")
    for name, message in cases.items():
        with pytest.raises(SourceError, match=message) as caught:
            load(place / name)
        assert caught.value.todo


def test_absurd_sizes_are_refused(place: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40, 1 << 30], "data_offsets": [0, 4]}}).encode()
    (place / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(SourceError, match=r"a\.safetensors is damaged"):
        load(place / "a.safetensors")
    torch.save({"x": torch.zeros(1).expand(1 << 20, 1 << 20)}, place / "a.pt")
    with pytest.raises(SourceError, match=r"x claims \(1048576, 1048576\) numbers, more than the file holds"):
        load(place / "a.pt")
    with zipfile.ZipFile(place / "net.pt") as old, zipfile.ZipFile(place / "b.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(200 << 20) if name.endswith("data/0") else old.read(name))
    with pytest.raises(SourceError, match=r"unpacks to 200 MiB, more than is allowed"):
        load(place / "b.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, net: Net, place: Path) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state["first.bias"][2] = value
    torch.save(state, place / "net.pt")
    with pytest.raises(
        SourceError, match=r"1 of 6 numbers of first\.bias are NaN or infinite\nuse a checkpoint from before"
    ):
        load(place / "net.pt", arch=arch(place), inputs=place / "x.npz")


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x)
        return out + torch.rand_like(out)


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_a_file_whose_model_draws_random_numbers_is_refused_with_the_line(suffix: str, tmp_path: Path) -> None:
    archive, path = tmp_path / "noisy.pt2", tmp_path / f"noisy{suffix}"
    torch.export.save(torch.export.export(Noisy().eval(), (torch.randn(4, 3),)), archive)
    if suffix == ".pt":
        save_bundle(load_pt2(archive), path)
    with pytest.raises(CaptureError, match=r"draws random numbers.*rand_like.*test_load.py"):
        load(path)
