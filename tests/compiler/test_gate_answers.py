"""Answers for rows whose task is not known: the likeliest task's, or all tasks' mixed, in every format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fxmerge
from fxmerge.capturing import capture
from fxmerge.cli.verbs import main
from fxmerge.errors import OptionError
from fxmerge.from_onnx.runtime import OnnxModel
from fxmerge.ir.program import Program
from fxmerge.output.evaluate import evaluate
from fxmerge.output.split import split
from fxmerge.serving.engine import Engine
from fxmerge.serving.protocol import InferRequest
from fxmerge.sources.bundle import save_bundle
from tests.compiler.test_gates import Twins, pair


class Sized(Twins):
    """With so many classes."""

    def __init__(self, seed: int, classes: int) -> None:
        super().__init__(seed)
        self.head = torch.nn.Linear(8, classes)


def sized(*classes: int, rows: int = 40) -> list[Program]:
    torch.manual_seed(0)
    given = [(torch.randn(rows, 6) + 2 * k,) for k in range(len(classes))]
    return [capture(Sized(k, n), given[k], task="abc"[k]) for k, n in enumerate(classes)]


def merged(programs: list[Program], **options: Any) -> Any:
    return fxmerge.merge(programs, method="average", gate=True, **options)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with m.onnx, r.json and r.html, as the command writes them; the last two blocks are apart."""
    folder = tmp_path_factory.mktemp("mixed")
    for program in pair():
        save_bundle(program, folder / f"{program.task}.pt")
        fresh = torch.randn(60, 6) + 2 * "ab".index(program.task)
        labels = program.run({"x": fresh})["logits"].argmax(1)
        np.savez(folder / f"{program.task}.npz", x=fresh.numpy(), labels=labels.numpy())
    files = ["--out", str(folder / "m.onnx"), "--result", str(folder / "r.json"), "--report", str(folder / "r.html")]
    how = ["--gate", "--answer", "mix", "--method", "average", "--share-until", "layers.0"]
    assert main(["merge", str(folder / "a.pt"), str(folder / "b.pt"), *how, *files, "-q"]) == 0
    return folder


def test_a_mix_is_weighed_by_the_gate_and_its_cost_is_said(mixed: Path) -> None:
    said = json.loads((mixed / "r.json").read_text())
    assert said["merged"]["outputs"] == ["a.logits", "b.logits", "task", "logits"]
    assert said["gate"]["answers"] == [{"output": "logits", "how": "mix", "of": ["a.logits", "b.logits"]}]
    assert max(said["checks"]["outputs"]["logits"][check] for check in ("fold", "onnx")) < 1e-5
    assert list(said["gate"]["tried"]) == ["stem", "layers.0"], "any block that is shared, not the early ones alone"
    assert max(said["gate"]["tried"].values()) == said["gate"]["tried"][said["gate"]["after"]]
    block, head = 8 * 8 + 8, 8 * 3 + 3
    assert said["gate"]["weights"] == {"shared": 7 * 8 + block, "a": 2 * block + head, "b": 2 * block + head}
    assert list(said["gate"]["latency"]) == ["task", "a", "b", "logits", "all outputs"]
    note = next(note for note in said["notes"] if note.startswith("logits: the answer of all tasks"))
    assert "2 sets of weights" in note and "ms for 16 rows, one task alone" in note
    assert "logits is those of all tasks weighed by it" in (mixed / "r.html").read_text()
    x = torch.randn(7, 6) + 1
    found = OnnxModel(mixed / "m.onnx").run({"x": x})
    wanted = found["task"][:, :1] * found["a.logits"] + found["task"][:, 1:] * found["b.logits"]
    torch.testing.assert_close(found["logits"], wanted)


def test_eval_says_how_often_the_mix_is_right(mixed: Path) -> None:
    found = evaluate(mixed / "m.onnx", {task: str(mixed / f"{task}.npz") for task in "ab"})
    for row in found["tasks"]:
        given = np.load(mixed / f"{row['task']}.npz")
        mix = OnnxModel(mixed / "m.onnx").run({"x": torch.from_numpy(given["x"])})["logits"]
        assert row["answer_accuracy"] == pytest.approx((mix.argmax(1).numpy() == given["labels"]).mean())


def test_a_server_computes_one_task_without_the_others_and_the_answer_from_all(mixed: Path) -> None:
    engine = Engine(mixed / "m.onnx")
    assert engine.notes == [] and engine._answers is not None
    assert set(engine._answers.inputs) == {"a.logits", "b.logits", "task"}
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    alone, whole = (engine.run([engine.accept(InferRequest({"x": x}, each))])[0] for each in (("logits",), ()))
    assert alone.keys() == {"logits"} and len(whole) == 4
    np.testing.assert_allclose(alone["logits"], whole["logits"], rtol=1e-5)


def test_one_task_alone_has_no_answer(mixed: Path) -> None:
    split(mixed / "m.onnx", "a", mixed / "alone.onnx", overwrite=True)
    assert [port.name for port in OnnxModel(mixed / "alone.onnx").outputs] == ["a.logits"]


def test_a_choice_is_the_likeliest_tasks_and_shorter_ones_are_filled(tmp_path: Path) -> None:
    found = merged(sized(3, 5, 4), answer="choose", out=str(tmp_path / "m.onnx"))
    assert max(found.result["checks"]["outputs"]["logits"][check] for check in ("fold", "onnx")) < 1e-5
    x = torch.randn(30, 6) + 2 * torch.arange(3).repeat(10)[:, None]
    for values in (found.program.run({"x": x}), OnnxModel(tmp_path / "m.onnx").run({"x": x})):
        assert values["logits"].shape == (30, 5)
        named = values["task"].argmax(1)
        assert set(named.tolist()) == {0, 1, 2}
        for row, k in enumerate(named.tolist()):
            own: Tensor = values[f"{'abc'[k]}.logits"][row]
            assert torch.equal(values["logits"][row, : len(own)], own)
            assert (values["logits"][row, len(own) :] == -torch.inf).all()


def test_tasks_that_look_alike_are_chosen_the_same_everywhere(tmp_path: Path) -> None:
    x = torch.randn(40, 6)
    found = merged(pair(), data=x, answer="choose", out=str(tmp_path / "m.onnx"))
    values = OnnxModel(tmp_path / "m.onnx").run({"x": x})
    near = (values["task"][:, 0] - values["task"][:, 1]).abs() < 5e-5
    assert torch.equal(values["logits"][near], values["a.logits"][near])
    assert found.result["checks"]["outputs"]["logits"]["onnx"] < 1e-5


def test_a_plan_has_the_answer() -> None:
    plan = merged(sized(3, 5), answer="choose", share_until="layers.1", dry_run=True).result
    assert plan["merged"]["outputs"] == ("a.logits", "b.logits", "task", "logits")
    assert plan["gate"]["weights"] == {"shared": 56 + 144, "a": 72 + 27, "b": 72 + 45} and not plan["gate"]["latency"]


def test_what_cannot_be_one_answer_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(OptionError, match="--answer mix needs the gate"):
        fxmerge.merge(pair(), method="average", answer="mix")
    with pytest.raises(OptionError, match="only what has one shape in all tasks is mixed") as caught:
        merged(sized(3, 5), answer="mix")
    assert "--answer choose" in caught.value.todo
    one, two = pair()
    named = [
        dataclasses.replace(one, labels=("x", "y", "z")),
        dataclasses.replace(two, labels=("u", "v", "w")),
    ]
    with pytest.raises(OptionError, match="name their classes differently"):
        merged(named, answer="mix")
