"""What capture found out about rows holds downstream: time-first data, fixed batches, eval, the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.errors import OptionError
from fxmerge.from_onnx.runtime import run_onnx
from fxmerge.output.evaluate import evaluate


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.enter(x).relu()).cumsum(0).relu()[-1])


class Written(TimeFirst):
    def __init__(self, rows: int = 4) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.enter(x).relu()).relu().view(self.rows, 8))


def parents(kind: type[nn.Module], x: Tensor) -> list[fxmerge.Program]:
    found = []
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        found.append(fxmerge.capture(kind(), (x,), task=task))
    return found


def test_time_first_arrays_are_merged_and_evaluated_as_the_models_take_them(tmp_path: Path) -> None:
    models = parents(TimeFirst, torch.randn(5, 4, 6))
    x = torch.randn(5, 12, 6)
    np.savez(tmp_path / "x.npz", x=x.numpy(), labels=np.arange(12) % 3)
    out = tmp_path / "merged.onnx"
    merged = fxmerge.merge(models, method="average", data=x, out=str(out))
    assert [task["samples"] for task in merged.result["tasks"]] == [12, 12]
    assert merged.program.inputs[0].shape == ("batch", 5, 6)
    found = evaluate(out, {"": str(tmp_path / "x.npz")})
    assert [task["samples"] for task in found["tasks"]] == [12, 12]
    right = run_onnx(out, {"x": x.movedim(1, 0).contiguous()})["a.logits"].argmax(1) == torch.arange(12) % 3
    assert found["tasks"][0]["merged_accuracy"] == pytest.approx(float(right.double().mean()))


def test_a_fixed_batch_is_trained_written_and_evaluated_in_blocks(tmp_path: Path) -> None:
    x = torch.randn(10, 6)
    models = parents(Written, x[:4])
    out = tmp_path / "merged.onnx"
    merged = fxmerge.merge(models, data=x, out=str(out), method="foldable", steps=3, batch_size=8, augment="none")
    assert merged(x)["a"].shape == (10, 3)
    torch.testing.assert_close(run_onnx(out, {"x": x})["a.logits"], merged(x)["a"], rtol=1e-4, atol=1e-5)
    np.savez(tmp_path / "x.npz", x=x.numpy(), labels=np.arange(10) % 3)
    assert evaluate(out, {"": str(tmp_path / "x.npz")})["tasks"][0]["samples"] == 10


def test_two_fixed_batches_exclude_each_other() -> None:
    models = [fxmerge.capture(Written(rows), (torch.randn(rows, 6),), task=f"of{rows}") for rows in (4, 5)]
    with pytest.raises(OptionError, match="of4 takes 4 rows at a time and of5 5"):
        fxmerge.merge(models, method="average")


NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
"""


def test_dynamic_axes_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), dtype=np.float32))
    net, x, out = (str(tmp_path / name) for name in ("net.py:build", "x.npy", "a.pt"))
    command = ["capture", net, "--inputs", x, "--out", out, "-q"]
    assert main([*command, "--dynamic", "height,width"]) == 0
    assert fxmerge.load(tmp_path / "a.pt").inputs[0].shape == ("batch", 1, "height", "width")
    assert main([*command, "--overwrite", "--dynamic", "hight"]) == 2
