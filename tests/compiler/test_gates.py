"""A gate: which task a row belongs to, from an early value of the merged model, in every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fxmerge
from fxmerge.capturing import capture
from fxmerge.cli.verbs import main
from fxmerge.errors import DataError, OptionError, SourceError
from fxmerge.from_onnx.runtime import OnnxModel
from fxmerge.ir.program import Program
from fxmerge.output.evaluate import evaluate
from fxmerge.output.split import split
from fxmerge.serving.engine import Engine
from fxmerge.serving.protocol import InferRequest
from fxmerge.sources.bundle import save_bundle

Parents = Callable[[str, int], list[Program]]


def told_apart(programs: list[Program], rows: int = 40) -> dict[str, dict[str, Tensor]]:
    """Samples of every task around a mean of its own; tokens from a part of the vocabulary of its own."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for k, program in enumerate(programs):
        own = {}
        for port in program.inputs:
            shape = [rows, *program.samples[port.name].shape[1:]]
            if port.dtype.is_floating_point:
                own[port.name] = torch.randn(shape, generator=generator) * 0.5 + (k - 1)
            elif "mask" in port.name:
                lengths = torch.randint(2, shape[1] + 1, (rows, 1), generator=generator)
                own[port.name] = (torch.arange(shape[1]) < lengths).long()
            else:
                own[port.name] = torch.randint(15 * k, 15 * k + 15, shape, generator=generator)
        found[program.task] = own
    return found


@pytest.mark.parametrize(("family", "count"), [("vit", 2), ("mlp", 3)])
def test_the_gate_names_the_task(family: str, count: int, parents: Parents) -> None:
    programs = parents(family, count)
    merged = fxmerge.merge(programs, data=told_apart(programs, 100), method="average", gate=True)
    gate = merged.result["gate"]
    assert gate["output"] == "task" and gate["tasks"] == merged.tasks and gate["held_back"] == 12 * count
    assert gate["accuracy"] > 0.8
    assert merged.result["checks"]["outputs"]["task"]["fold"] < 1e-5
    fresh = told_apart(programs, 40)
    for k, program in enumerate(programs):
        found = merged(**fresh[program.task])["task"]
        torch.testing.assert_close(found.sum(1), torch.ones(40))
        assert (found.argmax(1) == k).float().mean() > 0.7


@pytest.fixture(scope="module")
def written(parents: Parents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with merged.onnx and result.json, as the command writes them, and data of a and b."""
    folder = tmp_path_factory.mktemp("gate")
    programs = parents("bert", 2)
    for program in programs:
        given = told_apart(programs, 80)[program.task]
        save_bundle(program.evolve(samples=given), folder / f"{program.task}.pt")
        fresh = {name: value.numpy() for name, value in told_apart(programs, 100)[program.task].items()}
        labels = program.run(told_apart(programs, 100)[program.task])["logits"].argmax(1).numpy()
        np.savez(folder / f"{program.task}.npz", **fresh, labels=labels)
    sources = [str(folder / f"{program.task}.pt") for program in programs]
    files = ["--out", str(folder / "merged.onnx"), "--result", str(folder / "result.json")]
    report = ["--report", str(folder / "report.html")]
    assert main(["merge", *sources, "--gate", "--method", "average", *files, *report, "-q"]) == 0
    return folder


def test_the_command_writes_the_gate(written: Path) -> None:
    said = json.loads((written / "result.json").read_text())
    assert said["merged"]["outputs"] == ["a.logits", "b.logits", "task"]
    assert said["gate"]["tasks"] == ["a", "b"] and said["gate"]["accuracy"] > 0.8
    assert said["checks"]["outputs"]["task"]["onnx"] < 1e-5
    assert "task says which task a row belongs to, right for" in (written / "report.html").read_text()
    model = OnnxModel(written / "merged.onnx")
    assert json.loads(model.metadata["fxmerge.gate"])["tasks"] == ["a", "b"]
    fresh = {name: torch.from_numpy(value) for name, value in np.load(written / "b.npz").items() if name != "labels"}
    for rows in (1, 2, 7):
        assert model.run({name: value[:rows] for name, value in fresh.items()})["task"].shape == (rows, 2)
    assert (model.run(fresh)["task"].argmax(1) == 1).float().mean() > 0.7


def test_eval_says_how_often_the_gate_is_right(written: Path) -> None:
    found = evaluate(written / "merged.onnx", {task: str(written / f"{task}.npz") for task in "ab"})
    model = OnnxModel(written / "merged.onnx")
    for k, row in enumerate(found["tasks"]):
        given = {name: torch.from_numpy(value) for name, value in np.load(written / f"{row['task']}.npz").items()}
        values = model.run(given)
        named = values["task"].argmax(1) == k
        right = values[f"{row['task']}.logits"].argmax(1) == given["labels"]
        assert row["gate_accuracy"] == pytest.approx(named.double().mean().item())
        assert row["routed_accuracy"] == pytest.approx((named & right).double().mean().item())


def test_one_task_alone_has_no_gate(written: Path) -> None:
    split(written / "merged.onnx", "a", written / "a.onnx", overwrite=True)
    model = OnnxModel(written / "a.onnx")
    assert [port.name for port in model.outputs] == ["a.logits"] and "fxmerge.gate" not in model.metadata


def test_a_server_answers_with_the_gate_alone(written: Path) -> None:
    engine = Engine(written / "merged.onnx")
    assert engine.gate == "task" and engine.notes == [] and engine.batched
    rows = {name: value[:3] for name, value in np.load(written / "a.npz").items() if name != "labels"}
    alone = engine.run([engine.accept(InferRequest(rows, ("task",)))])[0]
    whole = engine.run([engine.accept(InferRequest(rows, ()))])[0]
    assert alone.keys() == {"task"} and whole.keys() == {"a.logits", "b.logits", "task"}
    np.testing.assert_allclose(alone["task"], whole["task"], rtol=1e-5)


def test_metadata_that_names_no_output_is_refused(written: Path, tmp_path: Path) -> None:
    model = onnx.load(str(written / "merged.onnx"))
    found = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, found | {"fxmerge.gate": json.dumps({"output": "other", "tasks": ["a", "b"]})})
    onnx.save(model, str(tmp_path / "strange.onnx"))
    with pytest.raises(SourceError, match=r"fxmerge\.gate is not what fxmerge writes"):
        Engine(tmp_path / "strange.onnx")


def test_a_folder_holds_the_weights_of_the_gate_and_says_so(tmp_path: Path) -> None:
    merged = fxmerge.merge(pair(), method="average", gate=True, out=str(tmp_path / "merged"))
    assert "weights are the tensors `task.weight` and `task.bias`" in (tmp_path / "merged/README.md").read_text()
    found: dict[str, Tensor] = {}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        found |= load_file(file)
    assert torch.equal(found["task.bias"], merged.state_dict()["task.bias"])


def test_padding_does_not_move_the_gate(written: Path) -> None:
    model = OnnxModel(written / "merged.onnx")
    rows, more = torch.randint(0, 30, (4, 6)), torch.randint(0, 50, (4, 5))
    short = model.run({"input_ids": rows, "attention_mask": torch.ones_like(rows)})["task"]
    mask = torch.cat([torch.ones_like(rows), torch.zeros_like(more)], 1)
    padded = model.run({"input_ids": torch.cat([rows, more], 1), "attention_mask": mask})["task"]
    torch.testing.assert_close(short, padded)


class Twins(nn.Module):
    """(rows, 6) to 3 classes, by three blocks."""

    def __init__(self, seed: int, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Linear(6, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x)


def pair(one: str = "a", two: str = "b", rows: int = 40) -> list[Program]:
    torch.manual_seed(0)
    return [capture(Twins(k), (torch.randn(rows, 6) + 2 * k,), task=name) for k, name in enumerate((one, two))]


def test_a_gate_reads_what_is_shared_where_parts_are_kept_apart() -> None:
    merged = fxmerge.merge(pair(), method="average", gate=True, share_until="stem")
    assert merged.result["gate"]["after"] == "stem" and list(merged.result["gate"]["tried"]) == ["stem"]
    assert merged.result["merged"]["apart"]
    with pytest.raises(OptionError, match="--gate: no value inside the merged model belongs to all tasks"):
        fxmerge.merge(pair(), method="average", gate=True, share_until="input")


def test_a_size_leaves_something_for_the_gate_to_read() -> None:
    merged = fxmerge.merge(pair(), method="average", gate=True, max_size=9.0)
    assert merged.result["merged"]["shared_until"] != "input"
    assert merged.result["gate"]["accuracy"] > 0.9


def test_a_network_without_modules_is_read_behind_its_first_parameters() -> None:
    class Plain(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.one, self.two = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.one).relu() @ self.two

    programs = [capture(Plain(k), (torch.randn(12, 6) + 3 * k,), task="ab"[k]) for k in range(2)]
    gate = fxmerge.merge(programs, method="average", gate=True).result["gate"]
    assert gate["after"] == "the first parameters" and gate["features"] == 8 and gate["accuracy"] > 0.8


def test_few_samples_measure_the_gate_by_cross_validation() -> None:
    gate = fxmerge.merge(pair(rows=12), method="average", gate=True).result["gate"]
    assert gate["held_back"] == 0 and set(gate["by_task"]) == {"a", "b"} and gate["accuracy"] is not None


def test_tasks_that_look_alike_are_said() -> None:
    torch.manual_seed(0)
    x = torch.randn(80, 6)
    merged = fxmerge.merge(pair(), data=x, method="average", gate=True)
    assert any("the gate names the right task of" in note for note in merged.result["notes"])


def test_a_dry_run_shows_the_gate() -> None:
    plan, merged = (fxmerge.merge(pair(), method="average", gate=True, dry_run=dry) for dry in (True, False))
    assert plan.result["merged"] == merged.result["merged"]
    assert plan.result["gate"]["accuracy"] is None


def test_names_that_the_output_would_share_are_refused() -> None:
    with pytest.raises(OptionError, match="a parent is called 'task'"):
        fxmerge.merge(pair("task", "b"), method="average", gate=True)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, task: Tensor) -> Tensor:
            return self.layer(task)

    named = [capture(Named(), (torch.randn(9, 6),), task=name) for name in "ab"]
    with pytest.raises(OptionError, match="a has an input of that name"):
        fxmerge.merge(named, method="average", gate=True)


def test_tasks_with_inputs_of_their_own_need_no_gate() -> None:
    class Other(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.stem, self.layer, self.head = nn.Linear(size, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.stem(x).relu()).relu())

    programs = [capture(Other(size), (torch.randn(9, size),), task=name) for size, name in ((5, "a"), (6, "b"))]
    with pytest.raises(OptionError, match=r"every task has inputs of its own, which say the task already: a \(a.x\)"):
        fxmerge.merge(programs, method="average", gate=True)


def test_a_gate_needs_samples_of_every_task() -> None:
    programs = [program.evolve(samples={}) for program in pair()]
    with pytest.raises(DataError, match="no samples for a") as caught:
        fxmerge.merge(programs, method="average", gate=True)
    assert "leave out --gate" in caught.value.todo
