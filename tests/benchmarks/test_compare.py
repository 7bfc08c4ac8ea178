"""Two result files compared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import compare, table


def write(path: Path, mean: float, seconds: float, more: bool = False) -> str:
    rows: list[table.Row] = [
        {
            "setting": "vit",
            "inputs": 16,
            "method": "foldable",
            "seed": seed,
            "mean": mean + seed / 100,
            "seconds": seconds,
        }
        for seed in (0, 1)
    ]
    if more:
        rows.append({"setting": "vit", "inputs": 16, "method": "condense", "mean": 1.0})
    table.save(path, rows, what="vit")
    return str(path)


@pytest.mark.parametrize(
    ("mean", "seconds", "code"),
    [(0.8, 10.0, 0), (0.9, 10.0, 0), (0.795, 12.0, 0), (0.78, 10.0, 1), (0.8, 14.0, 1)],
)
def test_a_loss_beyond_tolerance_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mean: float, seconds: float, code: int
) -> None:
    old, new = write(tmp_path / "old.json", 0.8, 10.0), write(tmp_path / "new.json", mean, seconds)
    monkeypatch.setattr(sys, "argv", ["compare", old, new])
    assert compare.main() == code


def test_settings_in_only_one_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write(tmp_path / "old.json", 0.8, 10.0), write(tmp_path / "new.json", 0.8, 10.0, more=True)
    monkeypatch.setattr(sys, "argv", ["compare", old, new])
    assert compare.main() == 0
    assert "1 figures only in new: vit 16 condense" in capsys.readouterr().out


def test_results_name_versions_but_no_place(tmp_path: Path) -> None:
    text = Path(write(tmp_path / "new.json", 0.123456789, 1.0)).read_text()
    assert '"torch"' in text and "0.123457" in text
    assert str(Path.home()) not in text and str(Path.cwd()) not in text
