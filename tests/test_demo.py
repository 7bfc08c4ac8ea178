"""The demo end to end with little training, and its parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from fxmerge import demo
from fxmerge.from_onnx.runtime import run_onnx


def test_shifted_moves_each_image_by_whole_pixels() -> None:
    x = torch.arange(2 * 25, dtype=torch.float32).reshape(2, 1, 5, 5) + 1
    moved = demo.shifted(x, 1, torch.Generator().manual_seed(3))
    assert moved.shape == x.shape
    for before, after in zip(x, moved, strict=True):
        padded = torch.nn.functional.pad(before, (1, 1, 1, 1))
        candidates = [padded[:, r : r + 5, c : c + 5] for r in range(3) for c in range(3)]
        assert any(torch.equal(after, candidate) for candidate in candidates)


def test_accuracy_counts_rows_over_chunks() -> None:
    labels = torch.arange(1203) % 3
    logits = torch.nn.functional.one_hot(labels, 3).float()
    logits[:401] = -logits[:401]
    assert demo.accuracy(lambda x: x, [logits], labels) == pytest.approx(802 / 1203)


def test_split_keeps_training_and_test_apart() -> None:
    x, y, test, labels = demo.split_of(demo.WIDE)
    assert set(y.tolist()) == set(labels.tolist()) == set(range(5))
    assert len(x) + len(test) == len(y) + len(labels) == 896
    assert not {bytes(image.numpy()) for image in x} & {bytes(image.numpy()) for image in test}


def test_demo_merges_and_writes_a_model_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "UNLABELED", 40)
    console = Console(record=True, width=120)
    found = demo.run(steps=3, out=tmp_path / "merged.onnx", console=console)
    rows = {row["model"]: row for row in found["rows"]}
    assert list(rows) == ["parents", "average", "distill", "fxmerge"]
    assert found["unlabeled"] == {"digits04": 40, "digits59": 40}
    assert rows["fxmerge"]["parameters"] < rows["parents"]["parameters"]
    assert found["onnx_max_abs"] < 1e-5
    outputs = run_onnx(tmp_path / "merged.onnx", {"x": torch.rand(7, 1, 8, 8)})
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "digits04.logits": (7, 5),
        "digits59.logits": (7, 5),
    }
    text = console.export_text()
    assert "fxmerge" in text and f"{rows['fxmerge']['mean']:.3f}" in text
