"""`fxmerge compare`: one table, JSON, the best written, failures as rows, options where they belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.compiler.comparison import Row
from fxmerge.errors import LineUpError
from fxmerge.from_onnx.runtime import OnnxModel

EXTENSION = """
from fxmerge import Extension

class Broken:
    name, summary, needs_data = "broken", "fails", False
    def __call__(self, job):
        raise ZeroDivisionError("not today")

mine = Extension(methods=Broken())
"""


CONDENSE = "condense{rows=100,balance=[1 1]}"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nets on the same inputs, and one of another structure."""
    folder = tmp_path_factory.mktemp("compared")
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
        fxmerge.save(model, folder / f"{task}.pt", inputs=(torch.randn(96, 8),), task=task)
    other = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3))
    fxmerge.save(other, folder / "c.pt", inputs=(torch.randn(8, 8),), task="c")
    (folder / "ext.py").write_text(EXTENSION)
    return folder


@pytest.fixture
def here(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    for file in zoo.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_one_table_and_the_best_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = f"average,broken,{CONDENSE},distill{{lr=0.002}}"
    code, out, err = run(
        capsys, "compare", "a.pt", "b.pt", "--methods", methods, "--steps", "20", "--batch-size", "8", "--pool", "32",
        "--extension", "ext.py:mine", "--out", "best.onnx", "--result", "all.json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads((here / "all.json").read_text())
    rows = {row["method"].partition("{")[0]: row for row in found["methods"]}
    assert list(rows) == ["average", "broken", "condense", "distill"]
    assert found["best"] == CONDENSE
    assert rows["condense"]["agreement"] > rows["average"]["agreement"]
    assert rows["condense"]["parameters"] == rows["average"]["parameters"]
    assert rows["broken"]["failed"] == "method broken of ext.py:mine failed: ZeroDivisionError: not today"
    assert 0.5 < rows["average"]["share"] < 1.5
    assert {task["task"] for task in rows["distill"]["tasks"]} == {"a", "b"}
    for text in ("agreement with parents", "failed: method broken", "best by agreement", "written: best.onnx"):
        assert text in out
    assert "1/4 average done" in err
    assert OnnxModel(here / "best.onnx").metadata["fxmerge.method"] == "condense"


def test_json_is_all_that_is_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "compare", "a.pt", "b.pt", "--methods", "average,ties", "--json", "-q")
    assert (code, err) == (0, "")
    assert [row["method"] for row in json.loads(out)["methods"]] == ["average", "ties"]
    assert sorted(p.name for p in here.iterdir() if not p.is_symlink()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--methods", "average"), "1 method to compare"),
        (("--methods", "average,average"), "average is named twice"),
        (("--methods", "average,tise"), "did you mean 'ties'?"),
        (("--methods", "average,ties", "--steps", "3"), "no method that is compared takes steps"),
        (("--methods", "average,ties", "--method", "ties"), "--method is of `fxmerge merge`"),
        (("--methods", "average,ties", "--dry-run"), "--dry-run is of `fxmerge merge`"),
        (("--methods", "average,ties", "--out", "a.pt"), "--out a.pt is a parent too"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    args: tuple[str, ...], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "compare", "a.pt", "b.pt", *args)
    assert (code, out) == (2, "")
    assert said in err


def test_if_every_method_fails_the_first_reason_is_the_error(here: Path) -> None:
    with pytest.raises(LineUpError):
        fxmerge.compare([str(here / "a.pt"), str(here / "c.pt")], "average,ties")


def test_agreement_ranks_before_r2() -> None:
    rows = [Row("a", 0.9, 0.1), Row("b", 0.8, 0.9), Row("c", 0.9, 0.2), Row("d")]
    assert max(rows, key=lambda row: row.rank).method == "c"
    assert Row("e", None, 0.4).rank > Row("d").rank
