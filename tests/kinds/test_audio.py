"""Sounds of different length, as raw frames: stacks of convolutions, the mean over time, one file of arrays a task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.from_onnx.runtime import run_onnx

LENGTHS = {"speech": 48, "music": 80}


class Sound(nn.Module):
    def __init__(self, seed: int, width: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stack = nn.Sequential(
            nn.Conv1d(1, width, 8, stride=4), nn.ReLU(), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stack(x).mean(-1))


def tones(length: int, count: int = 24) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Sines of three pitches with noise, one channel of frames a row."""
    rng, time = np.random.default_rng(length), np.arange(length)
    pitch = 0.1 + 0.2 * (np.arange(count) % 3)
    sound = np.sin(pitch[:, None] * time) + 0.1 * rng.standard_normal((count, length))
    return sound[:, None].astype(np.float32)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed lengths", "any length"])
def test_sounds_of_different_length_end_to_end(tmp_path: Path, dynamic: bool) -> None:
    command, parents = ["merge"], {}
    for k, (task, length) in enumerate(LENGTHS.items()):
        frames = tones(length)
        np.savez(tmp_path / f"{task}.npz", x=frames, labels=np.arange(len(frames)) % 3)
        parents[task] = Sound(k, (6, 8)[k], 3).eval()
        shapes = {"x": {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}} if dynamic else None
        example = torch.from_numpy(frames[:4])
        fxmerge.save(parents[task], tmp_path / f"{task}.pt", inputs=(example,), task=task, dynamic_shapes=shapes)
        command += [str(tmp_path / f"{task}.pt"), "--data", f"{task}={tmp_path / f'{task}.npz'}"]
    out, result = tmp_path / "merged.onnx", tmp_path / "result.json"
    command += ["--out", str(out), "--result", str(result), "--method", "foldable", "--init", "average"]
    assert main([*command, "--steps", "10", "--batch-size", "8", "-q"]) == 0
    found = json.loads(result.read_text())
    assert found["checks"]["all_gradients"] and found["checks"]["onnx_max_abs"] < 1e-4
    assert [(t["task"], t["samples"]) for t in found["tasks"]] == [("speech", 24), ("music", 24)]
    sounds = {task: torch.from_numpy(tones(length, 6)) for task, length in LENGTHS.items()}
    if dynamic:  # one input for both, of any length
        assert run_onnx(out, {"x": sounds["music"][..., :-8]})["speech.logits"].shape == (6, 3)
        return
    answers = run_onnx(out, {f"{task}.x": value for task, value in sounds.items()})
    assert all(answers[f"{task}.logits"].shape == (6, 3) for task in LENGTHS)
