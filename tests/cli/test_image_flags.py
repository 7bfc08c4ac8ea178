"""Flags that say how images are read: in merge, eval and capture, and in what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import fxmerge
from fxmerge.cli.verbs import main


@pytest.fixture
def parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two nets that take 6 x 6 pictures in colour, and a folder of pictures of other sizes."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 2))
        fxmerge.save(net, f"{name}.pt", inputs=(torch.randn(4, 3, 6, 6),))
    for label in ("0", "1"):
        Path("images", label).mkdir(parents=True)
        for number in range(4):
            pixels = draw.integers(0, 256, (9, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("images", label, f"{number}.png"))
    return tmp_path


FLAGS = ("--image-size", "9", "--image-mean", "0.5", "--image-std", "a=0.25", "--image-std", "0.5")


def test_merge_and_eval_read_images_alike(parents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = ["--data", "images", "--method", "average", "--out", "ab.onnx", "-q"]
    assert main(["merge", "a.pt", "b.pt", *what]) == 2
    assert "the model's own samples are numbers from" in capsys.readouterr().err
    assert main(["merge", "a.pt", "b.pt", *what, *FLAGS]) == 0
    found = {p.key: p.value for p in onnx.load("ab.onnx").metadata_props}
    places = json.loads(found["fxmerge.assets"])
    config = json.loads(found[places["a"]["preprocessor_config.json"]])
    assert (config["image_mean"], config["image_std"], config["size"]) == ([0.5], [0.25], {"shortest_edge": 9})
    assert json.loads(found[places["b"]["preprocessor_config.json"]])["image_std"] == [0.5]
    capsys.readouterr()
    assert main(["eval", "ab.onnx", "--data", "a=images", "--json", "-q"]) == 0
    plain = json.loads(capsys.readouterr().out)["tasks"][0]
    assert plain["samples"] == 8
    said = ["eval", "ab.onnx", "--data", "a=images", "--parent", "a.pt", *FLAGS[:4], "--image-std", "0.25", "--json"]
    assert main([*said, "-q"]) == 0
    again = json.loads(capsys.readouterr().out)["tasks"][0]
    assert again["merged_accuracy"] == plain["merged_accuracy"]


def test_flags_for_images_that_no_parent_takes(parents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    for name in "cd":
        fxmerge.save(nn.Linear(4, 2), f"{name}.pt", inputs=(torch.randn(4, 4),))
    assert main(["merge", "c.pt", "d.pt", "--out", "cd.onnx", "--image-size", "9", "-q"]) == 2
    assert "--image-size is for images, and no parent takes images" in capsys.readouterr().err
    assert main(["merge", "a.pt", "b.pt", "--out", "ab.onnx", "--image-size", "c=9", "-q"]) == 2
    assert "--image-size c=…: there is no task of that name" in capsys.readouterr().err


def test_a_bundle_knows_how_its_images_are_read(parents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    torch.save(nn.Linear(3, 2).state_dict(), "w.pth")
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.head = nn.Linear(3, 2)\n"
        "    def forward(self, x):\n        return self.head(x.mean((2, 3)))\n"
    )
    state = {f"head.{key}": value for key, value in torch.load("w.pth").items()}
    torch.save(state, "w.pth")
    np.save("x.npy", np.zeros((2, 3, 6, 6), np.float32))
    command = ["capture", "w.pth", "--arch", "net.py:Net", "--inputs", "x.npy", "--out", "w.pt", "-q"]
    assert main([*command, "--image-size", "9,12", "--image-mean", "0.5", "--image-std", "0.5"]) == 0
    config = json.loads(fxmerge.load("w.pt").assets["preprocessor_config.json"])
    assert config["size"] == {"height": 9, "width": 12}
    assert config["image_mean"] == [0.5]
    assert main([*command, "--overwrite", "--image-size", "v=9"]) == 2
    assert "unknown task 'v'" in capsys.readouterr().err
