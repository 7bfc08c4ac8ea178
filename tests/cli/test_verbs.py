"""The command line as a user meets it: verbs, output, files, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxmerge import compiler
from fxmerge.cli.verbs import main
from fxmerge.compiler import inspection
from fxmerge.errors import VerificationError
from fxmerge.from_onnx.runtime import OnnxModel
from fxmerge.sources.bundle import save
from fxmerge.training.resume import Interrupted
from passes.spaces.check import CheckReport

VERBS = (
    "capture", "inspect", "check", "merge", "compare", "eval", "methods", "passes", "rules", "demo", "serve", "package",
)  # fmt: skip
FLAGS = (
    "out", "method", "data", "config", "init", "steps", "batch-size", "rank", "full", "like", "width-scale", "seed",
    "device", "dtype", "resume", "report", "result", "extension", "dry-run", "opset", "atol", "overwrite", "verbose",
    "quiet", "save-config",
)  # fmt: skip


def net(seed: int, hidden: int = 12) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as they like: what they say is tested, not where a narrow terminal breaks it."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles, samples with labels, and nothing else."""
    folder = tmp_path_factory.mktemp("zoo")
    for number, task in enumerate("ab"):
        model = net(number)
        x = torch.randn(96, 8)
        save(model, folder / f"{task}.pt", inputs=(x,), task=task, labels=["red", "green", "blue"])
        labels = model(x).argmax(1)
        np.savez(folder / f"{task}.npz", x=x.numpy(), labels=labels.numpy())
    return folder


MERGE = ("merge", "a.pt", "b.pt", "--out", "m.onnx")


@pytest.fixture
def here(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an empty folder beside which `zoo` lies."""
    monkeypatch.chdir(tmp_path)
    for file in zoo.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_merge_writes_a_model_its_figures_and_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, "merge", "a.pt", "b.pt", "--out", "m.onnx", "--steps", "8", "--batch-size", "16", "--pool", "64",
        "--result", "m.json", "--report", "m.html", "--seed", "3",
    )  # fmt: skip
    assert code == 0, err
    for text in ("merged by auto", "agreement with parent", "ONNX Runtime = folded model", "written: m.onnx"):
        assert text in out
    assert sorted(p.name for p in here.iterdir() if not p.is_symlink()) == ["m.html", "m.json", "m.onnx"]
    result = json.loads((here / "m.json").read_text())
    promised = {"fxmerge", "method", "init", "seed", "out", "parents", "merged", "tasks", "checks", "training"}
    assert promised | {"seconds", "peak_rss_mib"} <= set(result)
    assert (result["seed"], result["out"], result["training"]["steps"]) == (3, "m.onnx", 8)
    assert [task["task"] for task in result["tasks"]] == ["a", "b"]
    assert set(result["checks"]) >= {"fold_max_abs", "onnx_max_abs", "all_gradients"}
    model = OnnxModel(here / "m.onnx")
    assert [port.name for port in model.outputs] == ["a.logits", "b.logits"]
    assert all(port.shape[0] == "batch" for port in (*model.inputs, *model.outputs))
    assert json.loads(model.metadata["fxmerge.tasks"]) == ["a", "b"]


def test_eval_and_its_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "merge", "a.pt", "b.pt", "--method", "average", "--out", "m.onnx", "-q")[:2] == (0, "")
    args = ("eval", "m.onnx", "--data", "a=a.npz", "--data", "b=b.npz", "--parent", "a.pt")
    code, out, err = run(capsys, *args, "--json")
    assert code == 0, err
    first, second = json.loads(out)["tasks"]
    assert (first["samples"], first["parent_accuracy"]) == (96, 1.0)
    assert first["agreement"] == first["merged_accuracy"]  # the labels are the parent's own choices
    assert set(second) == {"task", "samples", "merged_accuracy"}
    code, out, _ = run(capsys, *args)
    assert code == 0
    assert "parent's accuracy" in out
    assert "100.0%" in out


def test_config_file_and_flags(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(
        capsys, "merge", "a.pt", "b.pt", "--method", "average", "--out", "m.onnx", "--save-config", "c.yaml", "-q"
    )
    assert code == 0, err
    code, _, err = run(capsys, "merge", "--config", "c.yaml", "--out", "n.safetensors", "--like", "1", "-q")
    assert code == 0, err
    assert (here / "n.safetensors").is_file()
    code, _, err = run(capsys, "merge", "--config", "c.yaml", "-q")
    assert code == 2
    assert "m.onnx exists already" in err


def test_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    code, out, err = run(capsys, "merge", "a.pt", "b.pt", "--out", "m.onnx", "--dry-run")
    assert code == 0, err
    assert "nothing was written" in out
    assert sorted(here.iterdir()) == before


def test_capture_from_a_bundle_renames_the_task(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "names.txt").write_text("one\ntwo\nthree\n")
    code, _, err = run(capsys, "capture", "a.pt", "--task", "c", "--labels", "names.txt", "--out", "c.pt")
    assert code == 0, err
    assert "task c" in err
    assert "3 labels" in err
    code, _, err = run(capsys, "capture", "a.pt", "--task", "c", "--out", "c.pt")
    assert code == 2
    assert "c.pt exists already" in err


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_by_example(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert re.search(rf"Examples?:\s+fxmerge {verb}", out)


def test_help_lists_all_verbs_and_merge_all_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run(capsys, "--help")
    assert all(verb in out for verb in VERBS)
    _, out, _ = run(capsys, "merge", "--help")
    assert [flag for flag in FLAGS if f"--{flag} " not in out] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert re.fullmatch(r"fxmerge \d+\.\d+\.\d+\S*\n", out)


def test_inspect_as_text_json_and_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", "a.pt")
    assert (code, err) == (0, "")
    assert "2: 0.weight, 0.bias" in out or "1: 0.weight" in out
    assert "100.0% of parameters have no opaque axis" in out
    code, out, _ = run(capsys, "inspect", "a.pt", "--json")
    assert code == 0
    assert {"spaces", "parameters", "opaque", "coverage", "free_axes", "operators"} <= set(json.loads(out))
    code, out, err = run(capsys, "inspect", "a.pt", "--html", "a.html")
    assert (code, out) == (0, "")
    assert "written: a.html" in err
    assert "<svg" in (here / "a.html").read_text()


def test_inspect_is_the_same_every_time(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "inspect", "a.pt", "--json") == run(capsys, "inspect", "a.pt", "--json")


def test_check(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run(capsys, "check", "a.pt")
    assert (code, err) == (0, "")
    assert "spaces transformed at random" in out
    code, out, _ = run(capsys, "check", "a.pt", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True)
    assert report["error"] < 1e-9
    bad = CheckReport(ok=False, error=0.5, outputs={}, spaces=2, moved=1.0, first_bad="relu at net.py:3")
    monkeypatch.setattr(inspection, "check", lambda *_, **__: bad)
    code, out, _ = run(capsys, "check", "a.pt")
    assert code == 3
    assert "relu at net.py:3" in out


@pytest.mark.parametrize(
    ("verb", "name"), [("methods", "foldable"), ("passes", "fold-merge"), ("rules", "aten.layer_norm.default")]
)
def test_lists_have_a_line_each(verb: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, verb)
    assert (code, err) == (0, "")
    assert any(line.split()[0] == name and len(line.split()) > 3 for line in out.splitlines())


def test_methods_say_what_they_need_in_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, "methods", "--json")
    found = {each["name"]: each for each in json.loads(out)}
    assert code == 0
    assert (found["foldable"]["trained"], found["foldable"]["groups"]) == (True, ["free"])
    assert found["average"] | {"summary": ""} == {
        "name": "average", "owner": "fxmerge", "summary": "", "needs_data": False, "trained": False,
        "parents": "any", "widths": True, "depths": True, "groups": ["identity"],
        "source": "the baseline of every paper", "uses_data": False,
    }  # fmt: skip
    optional = {name for name, each in found.items() if each["uses_data"] and not each["needs_data"]}
    assert {"permute", "rotate", "transport", "task-arithmetic"} <= optional
    assert all(each["trained"] is not None for each in found.values()), "a built-in method says nothing of itself"
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run(capsys, "methods")
    assert "needs samples · trained · any width and depth · free · Kinderman et al., TMLR 2025, §4" in out
    assert "samples optional · any width and depth · permutation, sign" in out and "fxmerge's own" in out


def test_demo_hands_its_flags_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("fxmerge.demo.run", lambda **options: given.update(options))
    assert run(capsys, "demo", "--seed", "3", "--out", "d.onnx")[0] == 0
    assert (given["seed"], given["out"]) == (3, Path("d.onnx"))
    (here / "d.onnx").write_text("")
    assert run(capsys, "demo", "--out", "d.onnx")[0] == 2


EXTENSION = """
from fxmerge import Extension
from fxmerge.rewrite import op, var
from fxmerge.rewrite import rewrite

@rewrite(op("aten.sigmoid", op("aten.neg", var("x"))))
def mirror(match):
    \"\"\"sigmoid(-x)  -->  1 - sigmoid(x)\"\"\"
    return match.call("aten.rsub.Scalar", match.call("aten.sigmoid.default", match["x"]), 1)

class Last:
    name, summary, needs_data = "last", "the last parent as it is", False
    def __call__(self, job):
        raise RuntimeError("not today")

mine = Extension(rewrites=mirror, methods=Last())
"""


def test_extension_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "ext.py").write_text(EXTENSION)
    code, out, err = run(capsys, "methods", "--extension", "ext.py:mine")
    assert code == 0, err
    assert re.search(r"last\s+the last parent as it is\s+from ext\.py:mine", out)
    code, _, err = run(capsys, "inspect", "a.pt", "-v", "--extension", "ext.py:mine")
    assert code == 0
    assert "note: mirror: did not fire; refused: there is no aten.sigmoid" in err
    code, _, err = run(capsys, *MERGE, "--method", "last", "--extension", "ext.py:mine")
    assert code == 2
    assert "method last of ext.py:mine failed: RuntimeError: not today" in err
    code, _, err = run(capsys, "methods", "--extension", "ext.py:main")
    assert code == 2
    assert "did you mean 'mine'?" in err


# -- exit codes ----------------------------------------------------------------------------------------


def _raise(error: BaseException) -> Any:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def test_failed_verification_is_3(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "merge", _raise(VerificationError("fold differs", "report it")))
    assert run(capsys, *MERGE) == (3, "", "error: fold differs\nreport it\n")


def test_real_verification_failure_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    code, _, err = run(capsys, *MERGE, "--method", "average", "--atol", "1e-30")
    assert code == 3
    assert "tolerance" in err
    assert sorted(here.iterdir()) == before


def test_interrupted_is_130_and_says_how_to_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = here / "m.onnx.state" / "training.pt"
    monkeypatch.setattr(compiler, "merge", _raise(Interrupted(5, 10, state)))
    code, _, err = run(capsys, *MERGE)
    assert code == 130
    assert "interrupted at step 5 of 10" in err
    assert f"go on with: fxmerge merge a.pt b.pt --out m.onnx --resume {state.parent}" in err
    monkeypatch.setattr(compiler, "merge", _raise(KeyboardInterrupt()))
    assert run(capsys, *MERGE) == (130, "", "error: interrupted\nnothing was written\n")


def test_a_bug_is_1_and_says_where(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "merge", _raise(ZeroDivisionError("[oops] division")))
    code, _, err = run(capsys, *MERGE)
    assert code == 1
    assert re.search(r"this is a bug in fxmerge: ZeroDivisionError: \[oops\] division \(\w+\.py:\d+\)", err)
    assert "-v" in err.splitlines()[1]
    assert "Traceback" not in err
    code, _, err = run(capsys, *MERGE, "-v")
    assert code == 1
    assert "Traceback" in err


def test_the_module_exits_as_the_command_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fxmerge", "check", str(tmp_path / "none.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 2
    assert "none.pt" in done.stderr
