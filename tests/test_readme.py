"""What the README shows works as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks import readme
from fxmerge.demo import ViT

TEXT = readme.README.read_text(encoding="utf-8")


def test_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    code = block[1].replace("seed=0)", "seed=0, steps=4, pool=64)")
    assert code != block[1]
    shape = {"image": 8, "patch": 4, "width": 16, "heads": 2, "hidden": 24, "depth": 1}
    x = torch.rand(24, 1, 8, 8)
    names = {"x_mnist": x, "x_fashion": x.flip(3), "x": x[:5]}
    names |= {"mnist_net": ViT(classes=10, **shape), "fashion_net": ViT(classes=7, **shape)}
    exec(compile(code, "README.md", "exec"), names)
    assert names["answers"]["mnist"].shape == (5, 10)
    assert names["answers"]["fashion"].shape == (5, 7)
    assert Path("merged.onnx").is_file()
    assert "onnx_max_abs" in capsys.readouterr().out


def test_files_the_readme_links_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert links
    assert [link for link in links if not (readme.README.parent / link).exists()] == []


def test_tables_are_those_of_the_result_files() -> None:
    assert readme.main(["--check"]) == 0, "run python -m benchmarks.readme"


def test_a_method_is_a_line_and_a_family_a_column() -> None:
    row = {"setting": "vits", "inputs": 16, "method": "condense", "share": 0.9, "cpu_seconds": 7.0}
    text = readme.by_method([row, {**row, "share": 0.92}, {**row, "setting": "gpt", "cpu_seconds": 9.4, "share": 41.2}])
    assert text.splitlines()[0] == "With 16 unlabeled inputs a task:"
    assert text.splitlines()[-1] == "| `condense` | 0.910 ± 0.010 | 41 | 7 to 9 |"


def test_every_command_of_the_readme_is_a_verb() -> None:
    from typer.main import get_command

    from fxmerge.cli.verbs import app

    verbs = set(re.findall(r"^    fxmerge (\w+)", TEXT, re.MULTILINE))
    assert verbs and verbs <= set(get_command(app).commands)  # type: ignore[attr-defined]
