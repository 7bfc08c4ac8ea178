"""Weights too large for one ONNX file: a pair of files, whole or not at all. And paths as they are given."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.errors import OptionError, OutputError, SourceError, VerificationError
from fxmerge.io import files
from fxmerge.ir.program import Program
from fxmerge.output import onnx
from fxmerge.output.merged import Merged
from fxmerge.output.onnx import run_onnx

Parents = Callable[[str, int], list[Program]]


@pytest.fixture(scope="module")
def merged(parents: Parents) -> Merged:
    return fxmerge.merge(parents("mlp", 2), method="average")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """From here on every model is too large for one file."""
    monkeypatch.setattr(onnx, "LARGE", 100)
    return monkeypatch


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two files of text in place of a large model: what happens to files does not depend on what they hold."""

    def write(program: Program, path: Path, **options: Any) -> None:
        path.write_text("new model")
        files.weights_beside(path).write_text("new weights")

    monkeypatch.setattr("fxmerge.output.formats.export_onnx", write)
    monkeypatch.setattr("fxmerge.output.formats.OnnxModel", lambda path: None)
    monkeypatch.setattr("fxmerge.output.formats.compare_runs", lambda *_, **__: {})
    return monkeypatch


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["net.v1", "net.pt"])
def test_the_path_is_the_one_given(name: str, merged: Merged, tmp_path: Path) -> None:
    merged.export_onnx(tmp_path / name)
    assert names(tmp_path) == [name]
    x = torch.randn(2, 20)
    torch.testing.assert_close(run_onnx(tmp_path / name, {"x": x})["a.logits"], merged(x)["a"], rtol=1e-4, atol=1e-5)


def test_a_suffix_that_nobody_writes_is_refused(merged: Merged, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'\.onx' cannot be written, did you mean '\.onnx'"):
        merged.save(tmp_path / "m.onx")
    assert names(tmp_path) == []


def test_large_weights_lie_beside_the_model_and_can_be_copied_with_it(
    merged: Merged, tmp_path: Path, large: pytest.MonkeyPatch
) -> None:
    merged.export_onnx(tmp_path / "m.onnx")
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert any("the weights are in" in note and "m.onnx.data" in note for note in merged.result["notes"])
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(tmp_path / "m.onnx", other)
    with pytest.raises(SourceError, match=r"copy its weights too, to .*elsewhere/m\.onnx\.data"):
        run_onnx(other / "m.onnx", {"x": torch.randn(2, 20)})
    shutil.copy(tmp_path / "m.onnx.data", other)
    assert set(run_onnx(other / "m.onnx", {"x": torch.randn(2, 20)})) == {"a.logits", "b.logits"}


def test_both_files_are_replaced_together(merged: Merged, tmp_path: Path, stub: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.onnx"
    out.write_text("old")
    (tmp_path / "m.onnx.data").write_text("old")
    merged.save(out)
    assert (out.read_text(), (tmp_path / "m.onnx.data").read_text()) == ("new model", "new weights")
    with pytest.raises(OutputError, match=r"m\.onnx exists already"):
        merged.save(out, overwrite=False)
    out.unlink()
    with pytest.raises(OutputError, match=r"m\.onnx\.data exists already: .*\nadd --overwrite"):
        merged.save(out, overwrite=False)
    merged.save(out, overwrite=True)
    stub.undo()
    merged.save(out)
    assert names(tmp_path) == ["m.onnx"]


def _fails(*args: Any, **kwargs: Any) -> Any:
    raise VerificationError("they differ", "report it")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("what", ["check", "move"])
def test_a_failed_run_leaves_what_there_was(
    what: str, old: bool, merged: Merged, tmp_path: Path, stub: pytest.MonkeyPatch
) -> None:
    before = {}
    if old:
        before = {"m.onnx": "old model", "m.onnx.data": "old weights"}
        for name, text in before.items():
            (tmp_path / name).write_text(text)
    if what == "check":
        stub.setattr("fxmerge.output.formats.compare_runs", _fails)
    else:
        real = os.replace

        def replace(one: Path, two: Path) -> None:
            if two == tmp_path / "m.onnx":
                raise OSError(28, "No space left on device")
            real(one, two)

        stub.setattr(files.os, "replace", replace)
    with pytest.raises((VerificationError, OutputError), match=r"differ|No space left"):
        merged.save(tmp_path / "m.onnx")
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == before


def test_the_command_says_it_and_eval_reads_it(
    parents: Parents, tmp_path: Path, large: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxmerge.sources.bundle import save_bundle

    large.chdir(tmp_path)
    for program in parents("mlp", 2):
        save_bundle(program, f"{program.task}.pt")
    assert main(["merge", "a.pt", "b.pt", "--method", "average", "--out", "m.onnx"]) == 0
    assert "the weights are in m.onnx.data" in capsys.readouterr().err
    np.savez("a.npz", x=torch.randn(4, 20).numpy())
    assert main(["eval", "m.onnx", "--data", "a=a.npz", "--parent", "a.pt"]) == 0
