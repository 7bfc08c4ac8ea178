"""Architectures examined one after another: rows are kept, a slow one is stopped, what is missing is said."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import bench_vision, survey
from benchmarks.survey import Subject, parser


def net(seed: int) -> tuple[nn.Module, Mapping[str, Any]]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).eval(), {"input": torch.randn(4, 5)}


def endless(seed: int) -> tuple[nn.Module, Mapping[str, Any]]:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pass
    return net(seed)


def run(folder: Path, subjects: list[Subject], *options: str) -> tuple[int, dict[str, Any]]:
    given = parser("", "vision").parse_args(
        ["--out", str(folder / "vision.json"), "--docs", str(folder / "page.md"), *options]
    )
    code = survey.survey(given, subjects, timm="1")
    return code, {row["model"]: row for row in json.loads(given.out.read_text())["rows"]}


def test_rows_are_kept_and_only_missing_ones_are_made(tmp_path: Path) -> None:
    both = [Subject("one", "", net, trace_both=False), Subject("two", "", net)]
    code, rows = run(tmp_path, both, "--only", "two")
    assert code == 0 and list(rows) == ["two"] and not rows["two"]["errors"]
    marked = json.loads((tmp_path / "vision.json").read_text())
    marked["rows"][0]["mark"] = True
    (tmp_path / "vision.json").write_text(json.dumps(marked))
    code, rows = run(tmp_path, both, "--missing")
    assert code == 0 and list(rows) == ["one", "two"] and rows["two"]["mark"]
    assert rows["one"]["planted"]["weights"] < 1e-12 and rows["one"]["movable"] == rows["two"]["movable"]


def test_one_that_takes_too_long_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    code, rows = run(tmp_path, [Subject("slow", "", endless), Subject("slower", "", endless)], "--limit", "0.3")
    assert code == 1
    assert [row["errors"] for row in rows.values()] == [{"time": "stopped in capture after 0.3 s"}] * 2


def test_missing_packages_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(sys, "argv", ["bench_vision"])
    with pytest.raises(SystemExit, match=r"pip install timm torchvision") as raised:
        bench_vision.main()
    assert "\n" not in str(raised.value)
