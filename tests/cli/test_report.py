"""Tables and the HTML report say what the result says, and nothing of it is taken for markup."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fxmerge.cli import report, report_page
from fxmerge.config import MergeConfig

RESULT: dict[str, Any] = {
    "fxmerge": "0.1.0", "method": "foldable", "init": "average", "seed": 0, "out": "m.onnx",
    "parents": [
        {"task": "mnist", "source": "a.pt", "sha256": "ab" * 32, "parameters": 1000},
        {"task": "<b>[red]x", "source": None, "sha256": "cd" * 32, "parameters": 2000},
    ],
    "merged": {"parameters": 1100, "spaces": 21, "opaque_axes": 2, "trainable": 5000},
    "tasks": [
        {"task": "mnist", "samples": 1000, "held_back": 125, "agreement": 0.97, "feature_r2": 0.93,
         "stages": {"condense": 0.88, "polish": 0.93}},
        {"task": "<b>[red]x", "samples": 500, "agreement": None, "feature_r2": None},
    ],
    "checks": {"fold_max_abs": 3e-7, "onnx_max_abs": None, "all_gradients": True},
    "training": {"steps": 600, "loss_first": 1.0, "loss_last": 0.21, "samples_per_second": 1900.0,
                 "augmentation": {"kind": "image", "steps": ["mix"], "pool": 64}, "losses": [1.0, 0.5, 0.21]},
    "notes": ["the <sequence> is fixed"], "seconds": {"capture": 0.9, "train": 70.2}, "peak_rss_mib": 812,
}  # fmt: skip


def printed(value: Any) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(value)
    return text.getvalue()


def test_merge_table() -> None:
    text = printed(report.merge(RESULT))
    parts = (
        "mnist",
        "1,000 (125 held back)",
        "97.0%",
        "0.93",
        "<b>[red]x",
        "1,100 parameters for 3,000 in 2 parents (37%)",
        "2 opaque axes",
        "✓ a gradient reached every M and U",
        "✓ folded model = SuperNet  within 3.0e-07",
        "– ONNX Runtime = folded model  does not apply",
        "written: m.onnx",
        "1 min 11 s",
        "loss 1 → 0.21",
        "mnist: condense 0.88 → polish 0.93",
    )
    for part in parts:
        assert part in text, part


def test_merge_table_of_a_dry_run() -> None:
    text = printed(report.merge({**RESULT, "tasks": [], "checks": {}, "training": {}}))
    assert "nothing was written" in text
    assert "✓" not in text


def test_a_merge_names_the_command_that_measures_by_labels() -> None:
    given = {"data": {"": "my samples.npz"}}
    tasks = [{**task, "held_back": 125} for task in RESULT["tasks"]]
    result = {**RESULT, "options": given, "tasks": tasks}
    command = "fxmerge eval m.onnx --data 'my samples.npz' --parent a.pt --limit 125"
    assert report.eval_command(result) == command
    assert f"hold labels: {command}" in printed(report.merge(result))
    assert f"<code>{command}</code>".replace("'", "&#39;") in report_page.html(result, MergeConfig())
    of_weights = {**given, "arch": {"": "net.py:build"}, "data": {"mnist": "x.npz"}}
    assert (
        report.eval_command({**result, "options": of_weights}) == "fxmerge eval m.onnx --data mnist=x.npz --limit 125"
    )
    assert report.eval_command({**RESULT, "options": given}) == command.removesuffix(" --limit 125")
    for without in ({"options": {}}, {"out": "m.pt2"}, {"checks": {}}):
        assert report.eval_command({**result, **without}) is None


def test_evaluation_table_has_the_columns_there_are() -> None:
    row = {"task": "a", "samples": 3, "merged_accuracy": 0.5}
    text = printed(report.evaluation({"tasks": [row, {"task": "b", "samples": 2}]}))
    assert "50.0%" in text
    assert "agreement" not in text
    assert "give --parent" in printed(report.evaluation({"tasks": [{"task": "b", "samples": 2}]}))


def test_html_report() -> None:
    text = report_page.html(RESULT, MergeConfig.of(seed=3, parents=["a.pt", "b.pt"]))
    assert "<b>[red]x" not in text
    assert "&lt;b&gt;[red]x" in text
    for part in (
        "97.0%",
        "<td>condense</td>",
        "<polyline",
        "seed=3",
        "largest difference 3e-07",
        "the &lt;sequence&gt; is fixed",
        "1 min 10 s",
    ):
        assert part in text, part
    for elsewhere in ("http://", "https://", "src=", "href="):
        assert elsewhere not in text


def test_html_report_of_a_dry_run() -> None:
    text = report_page.html({**RESULT, "tasks": [], "checks": {}, "training": {}}, MergeConfig())
    assert "nothing was trained" in text
    assert "<polyline" not in text


def test_check_table() -> None:
    good = {"ok": True, "error": 1e-16, "spaces": 9, "first_bad": None}
    assert "9 spaces transformed at random" in printed(report.check(good))
    bad = {"ok": False, "error": 0.3, "spaces": 9, "first_bad": "aten.mul.Tensor at model.py:4"}
    assert "aten.mul.Tensor at model.py:4" in printed(report.check(bad))


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.9712, "97.1%"), (1, "100.0%")])
def test_percent(value: float | None, text: str) -> None:
    assert report.percent(value) == text
