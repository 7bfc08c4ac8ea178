"""Accuracy, agreement and perplexity of a merged ONNX model, worked out by hand beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxmerge.capturing import capture
from fxmerge.errors import DataError, OptionError, SourceError
from fxmerge.ir.program import Program
from fxmerge.output.evaluate import evaluate
from fxmerge.output.onnx import export_onnx
from fxmerge.sources.bundle import save


def write(program: Program, path: Path, outputs: Sequence[str], tasks: Sequence[str], **more: Any) -> Path:
    """An ONNX file as a merge writes it: outputs called TASK.OUTPUT, tasks in the metadata."""
    ports = tuple(replace(port, name=name) for port, name in zip(program.outputs, outputs, strict=True))
    metadata = {f"fxmerge.{key}": json.dumps(value) for key, value in {"tasks": list(tasks), **more}.items()}
    export_onnx(program.evolve(outputs=ports), path, metadata=metadata)
    return path


class Two(nn.Module):
    """Two tasks on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


class Apart(nn.Module):
    """Two tasks with an input each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(y)


class Decoder(nn.Module):
    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.causal, self.embed, self.head = causal, nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x.cumsum(1) if self.causal else x + x.sum(1, keepdim=True)
        return self.head(x)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two.onnx, a parent that differs from its task a, and labeled samples."""
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(0)
    model, parent, x = Two(), nn.Linear(6, 3), torch.randn(300, 6)
    write(capture(model, (x,)), folder / "m.onnx", ["a.logits", "b.logits"], ["a", "b"], labels={"a": ["5", "6", "7"]})
    save(parent, folder / "a.pt", inputs=(x[:4],), task="a", labels=["5", "6", "7"])
    with torch.no_grad():
        ours, theirs = model(x)[0].argmax(1), parent(x).argmax(1)
    labels = torch.randint(0, 3, (300,))
    np.savez(folder / "a.npz", x=x.numpy(), labels=labels.numpy())
    np.savez(folder / "named.npz", x=x.numpy(), labels=labels.numpy() + 5)
    np.savez(folder / "wrong.npz", x=x.numpy(), labels=labels.numpy() + 9)
    np.savez(folder / "bare.npz", x=x.numpy())
    expected = {
        "agreement": (ours == theirs).double().mean().item(),
        "parent_accuracy": (theirs == labels).double().mean().item(),
        "merged_accuracy": (ours == labels).double().mean().item(),
    }
    (folder / "expected.json").write_text(json.dumps(expected))
    return folder


def test_accuracy_and_agreement(two: Path) -> None:
    found = evaluate(two / "m.onnx", {"a": str(two / "a.npz")}, parents=[two / "a.pt"])
    expected = json.loads((two / "expected.json").read_text())
    (row,) = found["tasks"]
    (output,) = row.pop("outputs")
    assert row == {"task": "a", "samples": 300, **{k: pytest.approx(v) for k, v in expected.items()}}
    assert (output["output"], output["kind"], output["said_by"]) == ("logits", "classes", "labels")
    assert output["agreement"] == row["agreement"]


def test_numbers_that_are_names_of_classes(two: Path) -> None:
    plain = evaluate(two / "m.onnx", {"a": str(two / "a.npz")})["tasks"]
    assert evaluate(two / "m.onnx", {"a": str(two / "named.npz")})["tasks"] == plain
    with pytest.raises(DataError, match="labels from 9 to 11 for 3 classes"):
        evaluate(two / "m.onnx", {"a": str(two / "wrong.npz")})


def test_without_labels_or_parents_there_are_only_counts(two: Path) -> None:
    found = evaluate(two / "m.onnx", {"": str(two / "bare.npz")}, limit=10)
    assert found["tasks"] == [{"task": "a", "samples": 10}, {"task": "b", "samples": 10}]


def test_unknown_tasks_and_strangers(two: Path) -> None:
    with pytest.raises(OptionError, match="unknown task 'c'"):
        evaluate(two / "m.onnx", {"c": str(two / "a.npz")})
    other = capture(nn.Linear(6, 3), (torch.randn(2, 6),), task="d")
    with pytest.raises(OptionError, match="unknown task 'd'"):
        evaluate(two / "m.onnx", {"a": str(two / "a.npz")}, parents=[other])


def test_text_needs_the_tokenizer_of_a_parent(two: Path, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("hello\t1\n")
    with pytest.raises(DataError, match=r"no tokenizer\ngive --parent SOURCE"):
        evaluate(two / "m.onnx", {"a": str(tmp_path / "t.tsv")})


def test_a_parent_that_was_not_merged_is_noted(two: Path, tmp_path: Path) -> None:
    program = capture(nn.Linear(6, 3), (torch.randn(2, 6),))
    path = write(program, tmp_path / "m.onnx", ["a.logits"], ["a"], parents={"a": "0" * 64})
    found = evaluate(path, {"a": str(two / "bare.npz")}, parents=[two / "a.pt"])
    assert "is not the file that was merged as a" in found["notes"][0]


def test_inputs_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Apart()
    program = capture(model, {"x": torch.randn(3, 6), "y": torch.randn(3, 5)})
    program = program.evolve(
        inputs=(replace(program.inputs[0], name="a.x"), replace(program.inputs[1], name="b.y")), samples={}
    )
    path = write(program, tmp_path / "m.onnx", ["a.logits", "b.logits"], ["a", "b"])
    y = torch.randn(20, 5)
    with torch.no_grad():
        labels = model.b(y).argmax(1)
    np.savez(tmp_path / "b.npz", y=y.numpy(), labels=labels.numpy())
    found = evaluate(path, {"b": str(tmp_path / "b.npz")})
    assert found["tasks"] == [{"task": "b", "samples": 20, "merged_accuracy": 1.0}]


def test_perplexity_of_a_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, parent, ids = Decoder(), Decoder(), torch.randint(0, 11, (70, 9))
    path = write(capture(model, (ids,)), tmp_path / "m.onnx", ["text.logits"], ["text"])
    np.savez(tmp_path / "t.npz", ids=ids.numpy())
    teacher = capture(parent, (ids,), task="text")
    (row,) = evaluate(path, {"text": str(tmp_path / "t.npz")}, parents=[teacher])["tasks"]
    with torch.no_grad():
        for key, net in (("merged_perplexity", model), ("parent_perplexity", parent)):
            loss = F.cross_entropy(net(ids)[:, :-1].reshape(-1, 11), ids[:, 1:].reshape(-1))
            assert row[key] == pytest.approx(math.exp(loss), rel=1e-5)
        assert row["agreement"] == pytest.approx((model(ids).argmax(2) == parent(ids).argmax(2)).double().mean().item())


def test_no_perplexity_where_later_tokens_are_seen(tmp_path: Path) -> None:
    ids = torch.randint(0, 11, (4, 9))
    path = write(capture(Decoder(causal=False), (ids,)), tmp_path / "m.onnx", ["text.logits"], ["text"])
    np.savez(tmp_path / "t.npz", ids=ids.numpy())
    assert evaluate(path, {"": str(tmp_path / "t.npz")})["tasks"] == [{"task": "text", "samples": 4}]


def test_an_onnx_file_from_elsewhere(tmp_path: Path) -> None:
    export_onnx(capture(nn.Linear(6, 3), (torch.randn(2, 6),)), tmp_path / "m.onnx")
    with pytest.raises(SourceError, match="is no merged model"):
        evaluate(tmp_path / "m.onnx", {})
