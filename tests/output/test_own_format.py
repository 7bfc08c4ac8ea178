"""A format that an extension adds is written, read back and compared as the built-in ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fxmerge
from fxmerge.capturing import capture
from fxmerge.config import MergeConfig
from fxmerge.errors import ExtensionError, OptionError, VerificationError
from fxmerge.ir.program import Program
from fxmerge.output.format import Format

SOURCE = """
import numpy as np
import torch
from fxmerge import Extension
from fxmerge.output.format import Format

def write(content, path, opset):
    with path.open("wb") as file:
        np.savez(file, **{name: value.detach().numpy() for name, value in content.program.tensors.items()})

def read(path, program):
    with np.load(path) as found:
        return program.evolve(tensors={name: torch.from_numpy(found[name]) for name in found.files})

def write_less(content, path, opset):
    with path.open("wb") as file:
        np.savez(file, **{name: value.detach().numpy().round(1) for name, value in content.program.tensors.items()})

extension = Extension(formats=[Format(".npz", write, read), Format(".less", write_less, read)])
"""


@pytest.fixture(scope="module")
def parents() -> list[Program]:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))

    return [capture(net(k), (torch.randn(8, 6),), task=task) for k, task in enumerate("ab")]


@pytest.fixture
def extension(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(SOURCE)
    return f"{tmp_path / 'own.py'}:extension"


def test_a_model_is_written_in_it(parents: list[Program], extension: str, tmp_path: Path) -> None:
    out = tmp_path / "m.npz"
    MergeConfig.of(parents=["a.pt", "b.pt"], out=out, extension=extension).check_outputs()
    merged = fxmerge.merge(parents, method="average", extension=extension, out=out)
    with np.load(out) as found:
        assert {name: found[name].tolist() for name in found.files} == {
            name: value.tolist() for name, value in merged.state_dict().items()
        }
    assert merged.result["checks"]["written_max_abs"] == 0
    assert merged.result["checks"]["onnx_max_abs"] is None
    merged.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").is_file()


def test_what_reads_back_as_another_model_is_not_left(parents: list[Program], extension: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"\.less, read back, is not the folded model"):
        fxmerge.merge(parents, method="average", extension=extension, out=tmp_path / "m.less")
    assert not (tmp_path / "m.less").exists()


def test_without_the_extension_its_suffix_is_unknown(extension: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'\.npz' cannot be written"):
        fxmerge.merge(["a.pt", "b.pt"], out=tmp_path / "m.npz")
    with pytest.raises(OptionError, match=r"'\.lesss' cannot be written, did you mean '\.less'\?"):
        fxmerge.merge(["a.pt", "b.pt"], out=tmp_path / "m.lesss", extension=extension)
    with pytest.raises(OptionError, match=r"'\.npz' cannot be written"):
        fxmerge.compare(["a.pt", "b.pt"], methods="average,condense", out=tmp_path / "m.npz")


@pytest.mark.parametrize("suffix", [".onnx", "npz", ".", ".a/b", ""])
def test_a_suffix_is_a_word_of_its_own(suffix: str) -> None:
    with pytest.raises(ExtensionError, match="stands among the suffixes of an extension"):
        fxmerge.Extension(formats=Format(suffix, lambda *_: None, lambda path, program: program))
