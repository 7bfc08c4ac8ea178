"""What a message about an option says to do is done, and then the merge runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from fxmerge.cli.verbs import main
from fxmerge.sources.bundle import save

SHORT = {"--method": "distill", "--steps": "2", "--batch-size": "4"}


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two bundles with inputs of many features, so that a small --memory is soon full."""
    folder, x = tmp_path_factory.mktemp("parents"), torch.randn(24, 4000)
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4000, 8), nn.ReLU(), nn.Linear(8, 3))
        save(net, folder / f"{task}.pt", inputs=(x,), task=task)
    return [str(folder / f"{task}.pt") for task in "ab"]


def run(parents: list[str], options: dict[str, str | None], out: Path) -> int:
    """Merge with options; one of None is left out, one of no text is a flag."""
    given = {name: value for name, value in ({"--out": str(out)} | options).items() if value is not None}
    words = [word for pair in given.items() for word in pair if word]
    return main(["merge", *parents, *words])


@pytest.mark.parametrize(
    ("wrong", "said", "followed"),
    [
        ({"--steps": "0"}, "at least 1", {"--steps": "1"}),
        ({"--batch-size": "0"}, "greater than or equal to 1", {"--batch-size": "1"}),
        ({"--lr": "1e30", "--steps": "9"}, "use a learning rate below 1e+30", {"--lr": "1e-3"}),
        ({"--memory": "0.00001"}, "a larger --memory", {"--memory": "1"}),
        ({"--like": "2"}, "choose one from 0 to 1", {"--like": "1"}),
        ({"--like": "0", "--width-scale": "2"}, "keep one of them", {"--like": "0", "--width-scale": None}),
        ({"--augment": "image"}, "leave the kind to auto, or use none", {"--augment": "auto"}),
        ({"--augment": "picture"}, "image", {"--augment": "none"}),
        ({"--method": "foldable", "--rank": "0", "--width-scale": "2"}, "give --rank 1 or more", {"--rank": "1"}),
        ({"--method": "foldable", "--rank": "1", "--full": ""}, "keep one of them", {"--rank": "1", "--full": None}),
        ({"--opset": "3"}, "18 to 23", {"--opset": "18"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_following_the_advice_helps(
    wrong: dict[str, str | None],
    said: str,
    followed: dict[str, str | None],
    parents: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "merged.onnx"
    assert run(parents, SHORT | wrong, out) == 2
    assert said in capsys.readouterr().err and not out.exists()
    assert run(parents, SHORT | wrong | followed, out) == 0
    assert out.exists()


def test_the_command_that_is_shown_makes_the_missing_folder(
    parents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my merged models" / "m.onnx"
    assert run(parents, {"--method": "average"}, out) == 2
    shown = "".join(capsys.readouterr().err.splitlines(keepends=True)[1:]).partition(": ")[2]
    subprocess.run(shown, shell=True, check=True, cwd=tmp_path)
    assert run(parents, {"--method": "average"}, out) == 0
