"""A dry run says what the merge will be: sizes, trained numbers and outputs are those of the real run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.config import MergeConfig
from fxmerge.ir.program import Program
from fxmerge.sources.bundle import save_bundle

Parents = Callable[[str, int], list[Program]]
QUICK: dict[str, Any] = {"steps": 4, "batch_size": 6, "pool": 12, "init": "average"}


@pytest.mark.parametrize(
    ("method", "family", "count", "options"),
    [
        ("foldable", "mlp", 2, {"width_scale": 1.5, "rank": 2}),
        ("foldable", "vit-fused", 2, {"like": 1, "rank": 0}),
        ("foldable", "bert", 2, {"inner": 0.5}),
        ("distill", "mlp", 2, {"width_scale": 1.5}),
        ("average", "mlp", 3, {"like": 1}),
        ("condense", "mlp", 2, {}),
    ],
)
def test_the_plan_is_what_the_merge_makes(
    family: str, count: int, options: dict[str, Any], method: str, parents: Parents
) -> None:
    trains = method in ("foldable", "distill")
    quick = QUICK if trains else {}
    programs = parents(family, count)
    plan, merged = (fxmerge.merge(programs, method=method, dry_run=dry, **quick, **options) for dry in (True, False))
    unknown: dict[str, Any] = {"groups": {}} if trains or method == "condense" else {}
    unknown |= {"groups_at_start": {}, "groups_of": "result"}
    assert plan.result["merged"] == merged.result["merged"] | unknown
    assert plan.result["merged"]["parameters"] == merged.program.count()
    shapes = [{n: t.shape for n, t in each.state_dict().items()} for each in (plan, merged)]
    assert shapes[0] == shapes[1]
    assert plan.result["checks"] == {}
    assert (merged.result["merged"]["trainable"] > 0) == trains


class Own:
    """A method that trains in a way of its own."""

    name, summary, needs_data = "own", "trains", True

    def __call__(self, job: Any) -> Any:
        raise AssertionError("a dry run trains nothing")


def test_a_method_without_a_plan_is_sized_and_said(parents: Parents, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from fxmerge import Extension\nfrom tests.compiler.test_dry_run import Own\nown = Extension(methods=Own())\n"
    )
    programs = parents("mlp", 2)
    plan = fxmerge.merge(programs, method="own", extension=[f"{tmp_path / 'own.py'}:own"], dry_run=True)
    assert plan.result["merged"]["parameters"] == fxmerge.merge(programs, method="average").program.count()
    assert "how much own trains is not known before it runs" in plan.result["notes"]


def test_the_command_prints_it(
    parents: Parents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    programs = parents("mlp", 2)
    for program in programs:
        save_bundle(program, f"{program.task}.pt")
    plan = fxmerge.merge(programs, method="auto", dry_run=True).result["merged"]
    assert main(["merge", "a.pt", "b.pt", "--out", "m.onnx", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{plan['parameters']:,} parameters" in out
    assert f"{plan['trainable']:,} numbers trained" in out
    assert "outputs: a.logits, b.logits" in out
    assert "nothing was written (--dry-run)" in out and " MiB)" not in out


def test_time_and_memory_are_estimated_and_nothing_is_changed(parents: Parents) -> None:
    programs = parents("mlp", 2)
    before = [{name: t.clone() for name, t in program.tensors.items()} for program in programs]
    plan = fxmerge.merge(programs, method="distill", steps=1000, dry_run=True).result
    longer = fxmerge.merge(programs, method="distill", steps=1_000_000, dry_run=True).result
    assert longer["estimate"]["seconds"] > plan["estimate"]["seconds"] > 0
    assert plan["estimate"]["memory_mib"] > 0
    assert any(note.startswith("about ") and "of training" in note for note in plan["notes"])
    assert all(torch.equal(t, b[n]) for p, b in zip(programs, before, strict=True) for n, t in p.tensors.items())
    assert fxmerge.merge(programs, method="average", dry_run=True).result["estimate"] == {}


def test_a_plan_that_is_saved_is_a_merge(tmp_path: Path) -> None:
    MergeConfig.of(dry_run=True, seed=3).save(tmp_path / "merge.yaml")
    assert not MergeConfig.load(tmp_path / "merge.yaml").dry_run
