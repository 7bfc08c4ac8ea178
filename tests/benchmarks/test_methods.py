"""The table of methods: trained ones get the steps that fit into the time, and every cell is measured once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.bench_methods import Course
from benchmarks.quality_cells import Ledger
from fxmerge.errors import OptionError
from fxmerge.methods import METHODS

BY_NAME = {method.name: method for method in METHODS}


@dataclass
class Fake:
    """A family whose merges take three seconds, and a fiftieth of a second a step; ties cannot do it."""

    family: Any = field(default_factory=lambda: SimpleNamespace(name="fake", nets=()))
    settings: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def data(self, count: int, seed: int) -> Any:
        return {}

    def reference(self) -> dict[str, Any]:
        return {"mean": 0.8, "scores": {"a": 0.8}, "figure": "accuracy"}

    def measured(self, merged: Any) -> dict[str, Any]:
        return {"mean": 0.4, "scores": {"a": 0.4}, "figure": "accuracy"}

    def merge(self, data: Any, seed: int, options: dict[str, Any]) -> tuple[Any, float]:
        if options["method"] == "ties":
            raise OptionError("no", "use another")
        self.asked.append(options)
        return SimpleNamespace(result={"init": "average"}), 3 + options.get("steps", 0) / 50


def test_trained_methods_get_the_same_time_and_cells_are_kept(tmp_path: Path, capsys: Any) -> None:
    case: Any = Fake()
    course = Course(case, tmp_path, Ledger(tmp_path / "methods.json"), 23.0)
    methods = [BY_NAME[name] for name in ("average", "align", "auto", "ties")]
    course.run(methods, [16], 1)
    assert case.asked == [
        {"method": "average"},
        {"method": "align", "steps": 20},
        {"method": "align", "steps": 60},
        {"method": "align", "steps": 1000},
        {"method": "auto", "budget": 23.0},
    ]
    rows = {row["method"]: row for row in course.ledger.rows()}
    assert set(rows) == {"parents", "average", "align", "auto"}
    assert rows["align"]["share"] == 0.5
    assert rows["align"]["cpu_seconds"] == 23
    assert "skipped: ties of fake: no" in capsys.readouterr().out
    course.run(methods[:3], [16], 1)
    assert len(case.asked) == 5
