"""One model alone and one task of a merged one, through the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from fxmerge.cli.verbs import main
from fxmerge.from_onnx.runtime import OnnxModel, run_onnx
from fxmerge.output.merged_file import MergedFile
from fxmerge.sources.bundle import save


class Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 64), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles, one with a dot in its task, and what `merge` makes of them."""
    made = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, classes in (("a", 3), ("a.b", 5)):
        net, labels = Net(classes).eval(), [f"class {k}" for k in range(classes)]
        save(net, made / f"{name}.pt", inputs=(torch.randn(12, 6),), task=name, labels=labels)
    parents = [str(made / "a.pt"), str(made / "a.b.pt")]
    assert main(["merge", *parents, "--method", "average", "--out", str(made / "merged.onnx")]) == 0
    return made


def test_a_model_alone_is_written_as_it_is(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.onnx"
    assert main(["export", str(folder / "a.pt"), "--out", str(out), "--opset", "18"]) == 0
    assert "written: " in capsys.readouterr().out
    import fxmerge

    program, x = fxmerge.load(folder / "a.pt"), torch.randn(5, 6)
    model = OnnxModel(out)
    assert [port.name for port in model.outputs] == [port.name for port in program.outputs]
    name = program.outputs[0].name
    torch.testing.assert_close(model.run({"x": x})[name], program.run({"x": x})[name])
    assert onnx.load(out).opset_import[0].version == 18


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".safetensors"])
def test_other_formats_are_written_by_their_suffix(folder: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"a{suffix}"
    assert main(["export", str(folder / "a.pt"), "--out", str(out), "-q"]) == 0
    assert out.is_file()


def test_tasks_whose_names_begin_alike_are_told_apart(folder: Path) -> None:
    merged = MergedFile(folder / "merged.onnx", "cpu")
    assert [port.name for port in merged.outputs("a")] == ["logits"]
    assert [port.name for port in merged.outputs("a.b")] == ["logits"]


@pytest.mark.parametrize("task", ["a", "a.b"])
def test_a_task_stands_alone(folder: Path, tmp_path: Path, task: str) -> None:
    out, whole = tmp_path / "one.onnx", folder / "merged.onnx"
    assert main(["split", str(whole), "--task", task, "--out", str(out)]) == 0
    x = torch.randn(7, 6)
    expected, found = run_onnx(whole, {"x": x}), run_onnx(out, {"x": x})
    mine = [name for name in expected if name == f"{task}.{name.rsplit('.', 1)[1]}"]
    assert list(found) == mine
    torch.testing.assert_close(found[mine[0]], expected[mine[0]])
    values = OnnxModel(out).metadata
    assert json.loads(values["fxmerge.tasks"]) == [task]
    assert list(json.loads(values["fxmerge.labels"])) == list(json.loads(values["fxmerge.parents"])) == [task]
    assert out.stat().st_size < whole.stat().st_size


def test_a_part_can_be_evaluated_and_split_again(folder: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "one.onnx", tmp_path / "again.onnx"
    assert main(["split", str(folder / "merged.onnx"), "--task", "a", "--out", str(out), "-q"]) == 0
    assert main(["split", str(out), "--task", "a", "--out", str(again), "-q"]) == 0
    import numpy as np

    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(9, 6)).astype("float32"), y=np.zeros(9, int))
    assert main(["eval", str(again), "--data", f"a={tmp_path / 'x.npz'}", "-q"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split", "{m}", "--task", "A", "--out", "{o}"], "has no task 'A'"),
        (["split", "{p}", "--task", "a", "--out", "{o}"], "fxmerge export {p} --out "),
        (["split", "{m}", "--task", "a", "--out", "{m}"], "exists already"),
        (["export", "{p}", "--out", "{o}.gguf"], "cannot be written"),
        (["export", "{p}", "--out", "{o}", "--opset", "3"], "choose one from 18"),
        (["export", "{p}.no", "--out", "{o}"], "does not exist"),
    ],
)
def test_wrong_words_are_two_lines(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    names = {"m": folder / "merged.onnx", "p": folder / "a.pt", "o": tmp_path / "one.onnx"}
    assert main([word.format(**names) for word in words]) == 2
    told = capsys.readouterr().err
    assert said.format(**names) in told
    assert len(told.strip().splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_large_weights_lie_beside(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxmerge.output.parts.LARGE", 100)
    out = tmp_path / "one.onnx"
    assert main(["split", str(folder / "merged.onnx"), "--task", "a", "--out", str(out), "-q"]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.onnx", "one.onnx.data"]
    x = torch.randn(2, 6)
    torch.testing.assert_close(
        run_onnx(out, {"x": x})["a.logits"], run_onnx(folder / "merged.onnx", {"x": x})["a.logits"]
    )


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_a_merged_model_of_another_format_is_served_after_the_command_that_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    parents = [str(folder / "a.pt"), str(folder / "a.b.pt")]
    held = tmp_path / f"m{suffix}"
    assert main(["merge", *parents, "--method", "average", "--out", str(held), "-q"]) == 0
    (tmp_path / "m.onnx").touch()
    assert main(["eval", str(held), "--data", "a=x.npz"]) == 2
    what, todo = capsys.readouterr().err.strip().splitlines()
    assert what.endswith("is no ONNX model but " + ("a bundle" if suffix == ".pt" else "an archive of torch.export"))
    words = shlex.split(todo.partition(": ")[2])
    assert words[0] == "fxmerge" and main([*words[1:], "-q"]) == 0
    found, whole = MergedFile(words[-1], "cpu"), MergedFile(folder / "merged.onnx", "cpu")
    assert (found.tasks, found.labels, found.hashes) == (whole.tasks, whole.labels, whole.hashes)
    x = torch.randn(3, 6)
    torch.testing.assert_close(run_onnx(words[-1], {"x": x}), run_onnx(folder / "merged.onnx", {"x": x}))
