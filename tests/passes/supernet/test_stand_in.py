"""A model of another structure teaches: the template's trunk with a head that gives the model's outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.errors import LineUpError
from fxmerge.from_onnx.runtime import OnnxModel
from fxmerge.ir.program import Program
from passes.rules import BUILTIN
from passes.spelling.normalize import normalize
from passes.supernet.stand_in import stand_in


class Trunk(nn.Module):
    """(batch, 2, 6, 6) maps to 8 channels of as many places; heads as functions of that, linear in it."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kind = kind
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "map":
            return self.one(self.second(self.first(x).relu()).relu())
        h = self.second(self.first(x).clamp(min=0)).clamp(min=0)  # the same in other calls, which do not line up
        found = self.two(self.one(h))
        pooled = found.mean((2, 3))
        return found, found.permute(0, 2, 3, 1), pooled, found.mean((1, 2, 3)), pooled.reshape(-1, 2, 2)


class Words(nn.Module):
    """(batch, sequence) tokens to scores a token, or a row."""

    def __init__(self, kind: str, words: int = 30, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kind = kind
        self.words, self.inner = nn.Embedding(words, 8), nn.Linear(8, 8)
        self.one, self.two = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.inner(self.words(ids))
        h = h.relu() if self.kind == "tags" else h.clamp(min=0)
        return self.one(h) if self.kind == "tags" else self.two(self.one(h)).mean(1 if self.kind == "row" else ())


class Other(nn.Module):
    """What no other net here lines up with, for the inputs of `Trunk`."""

    def __init__(self, inputs: int = 2) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.inner, self.head = nn.Linear(inputs * 36, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.flatten(1))))


MAPS, IDS = torch.randn(96, 2, 6, 6), torch.randint(1, 30, (96, 7))


def captured(net: nn.Module, x: Tensor, task: str) -> Program:
    return normalize(fxmerge.capture(net, (x,), task=task))


def test_outputs_that_are_linear_in_the_trunk_are_found_again() -> None:
    """By regression alone, whatever their shape: the two trunks are the same, the heads are not."""
    merged = fxmerge.merge(
        [captured(Trunk("map"), MAPS, "a"), captured(Trunk("several"), MAPS, "b")],
        data=MAPS, method="auto", polish=0, init="first",
    )  # fmt: skip
    one, two = merged.result["tasks"]
    assert [p["role"] for p in merged.result["parents"]] == ["merged", "teacher"]
    assert one["feature_r2"] == pytest.approx(1, abs=1e-6)
    assert len(two["outputs"]) == 5
    assert all(output["r2"] > 0.999 for output in two["outputs"])
    assert merged.result["checks"]["fold_max_abs"] < 1e-5


def test_heads_stand_at_every_token_or_at_their_mean() -> None:
    tags, row = Words("tags"), Words("row")
    for like in (0, 1):
        merged = fxmerge.merge(
            [captured(tags, IDS, "tags"), captured(row, IDS, "row")], data=IDS, method="auto", polish=0, init="first",
            like=like,
        )  # fmt: skip
        assert merged.result["tasks"][like]["feature_r2"] == pytest.approx(1, abs=1e-6)
        found = merged(IDS[:, :5])
        assert found["tags"].shape == (96, 5, 5)
        assert found["row"].shape == (96, 3)
    assert merged.result["parents"][0]["role"] == "teacher"


def test_a_teacher_with_words_of_its_own_gets_a_table_of_its_own() -> None:
    own = torch.randint(1, 50, (96, 7))
    a, b = captured(Words("tags"), IDS, "tags"), captured(Words("row", words=50), own, "row")
    merged = fxmerge.merge([a, b], data={"tags": IDS, "row": own}, method="distill", steps=4)
    shapes = {name: tuple(tensor.shape) for name, tensor in merged.state_dict().items() if "words" in name}
    assert sorted(shapes.values()) == [(30, 8), (50, 8)]


def test_what_cannot_be_taught_is_refused() -> None:
    first = captured(Trunk("map"), MAPS, "a")
    with pytest.raises(LineUpError, match=r"b does not line up with a, nor .* other inputs \(.*2, 6, 6.*3, 6, 6"):
        stand_in(first, captured(Other(3), torch.randn(4, 3, 6, 6), "b"), BUILTIN, "why")
    with pytest.raises(LineUpError, match=r"a can learn nothing that gives .* of b"):
        stand_in(captured(Words("row"), IDS, "a"), captured(Chosen(), IDS, "b"), BUILTIN, "why")


class Chosen(nn.Module):
    """A class that is chosen already."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids).sum(1).argmax(1)


def test_the_command_line_merges_what_does_not_line_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A convolutional network and a plain one: the template's family wins, the other is called a teacher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    fxmerge.save(Trunk("map"), "maps.pt", inputs=(MAPS,), task="maps")
    fxmerge.save(Other(), "flat.pt", inputs=(MAPS,), task="flat")
    line = ["merge", "maps.pt", "flat.pt", "--out", "m.onnx", "--result", "r.json"]
    assert main([*line, "--method", "distill", "--steps", "4", "--init", "first", "--like", "1"]) == 0
    assert "maps (teacher only)" in capsys.readouterr().out
    result = json.loads(Path("r.json").read_text())
    assert [p["role"] for p in result["parents"]] == ["teacher", "merged"]
    assert any("maps is a teacher only" in note and "distillation" in note for note in result["notes"])
    assert {port.name for port in OnnxModel("m.onnx").outputs} == {
        f"{task}.{port.name}" for task in ("maps", "flat") for port in fxmerge.load(f"{task}.pt").outputs
    }
    Path("m.onnx").unlink()
    for method in ("average", "condense", "foldable"):
        assert main([*line, "--method", method, "--overwrite"]) == 2
        assert "--method distill" in " ".join(capsys.readouterr().err.split())
    assert not Path("m.onnx").exists()


class Branches(nn.Module):
    """(batch, 6) to two outputs, each by hidden units of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x).relu()
        return {"one": self.one(self.left(h).relu()), "two": self.two(self.right(h).relu())}


def test_a_teacher_reads_one_branch_of_the_template() -> None:
    x = torch.randn(20, 6)
    a = fxmerge.capture(Branches(), (x,), task="a")
    b = fxmerge.capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), (x,), task="b")
    merged = fxmerge.merge([a, b], data={"a": x, "b": x}, method="distill", steps=2, init="average", batch_size=8)
    found = merged(x)
    assert set(found["a"]) == {"one", "two"} and merged.result["checks"]["all_gradients"]


def test_who_could_not_teach_is_not_advised_to() -> None:
    torch.manual_seed(0)
    a = fxmerge.capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(4, 6),), task="a")
    others = {
        "fits": fxmerge.capture(nn.Sequential(nn.Tanh(), nn.Linear(6, 8)), (torch.randn(4, 6),), task="fits"),
        "not": fxmerge.capture(nn.Sequential(nn.Conv1d(2, 8, 3), nn.Softmax(1)), (torch.randn(4, 2, 9),), task="not"),
    }
    for name, other in others.items():
        with pytest.raises(LineUpError, match="do not line up") as found:
            fxmerge.merge([a, other], method="average")
        assert ("--method distill" in found.value.todo) is (name == "fits")


def test_a_teacher_between_two_that_line_up_leaves_these_merged() -> None:
    a, b = captured(Trunk("map"), MAPS, "a"), captured(Trunk("map", seed=1), MAPS, "c")
    merged = fxmerge.merge(
        [a, captured(Other(), MAPS, "b"), b], data=MAPS, method="auto", polish=0, init="parent2", like=0
    )
    assert [p["role"] for p in merged.result["parents"]] == ["merged", "teacher", "merged"]
    assert merged.result["tasks"][2]["feature_r2"] == pytest.approx(1, abs=1e-6)
