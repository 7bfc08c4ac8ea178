"""Parents of different depth: blocks without effect, blocks left out, and what the command line makes of both."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.ir.difference import differences, largest
from fxmerge.ir.program import Program
from fxmerge.ir.wide import run_wide
from passes.depth.cover import best_cover, spread
from passes.depth.match_depth import match_depth
from passes.line_up.chains import runs, same_runs
from passes.line_up.pairs import line_up
from passes.rules import BUILTIN
from passes.spelling.normalize import normalize

X = torch.randn(24, 5, 8)


class Layer(nn.Module):
    """Attention and perceptron, the norms in front of both or behind."""

    def __init__(self, post: bool) -> None:
        super().__init__()
        self.post = post
        self.norm1, self.norm2 = nn.LayerNorm(8, eps=1e-12), nn.LayerNorm(8, eps=1e-12)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.norm1(x + self.attend(x))
            return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
        x = x + self.attend(self.norm1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Net(nn.Module):
    def __init__(self, depth: int, *, post: bool = False, seed: int = 0, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8, eps=1e-12), nn.Linear(8, classes)
        self.layers = nn.Sequential(*(Layer(post) for _ in range(depth)))
        for norm in (m for m in self.modules() if isinstance(m, nn.LayerNorm)):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.norm(self.stem(x))).mean(1))


class Residual(nn.Module):
    """Convolutions with a batch norm and a ReLU behind every sum."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(depth)
        self.stem, self.head = nn.Conv1d(5, 6, 1), nn.Linear(6, 3)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for layer in self.layers:
            x = (x + layer(x)).relu()
        return self.head(x.mean(2))


def captured(net: nn.Module, task: str) -> Program:
    return normalize(fxmerge.capture(net.eval(), (X,), task=task)).evolve(samples={"x": X})


def apart(one: Program, two: Program) -> float:
    """The largest difference of the outputs in float64, as a share of their spread."""
    return largest(differences(run_wide(one, {"x": X}), run_wide(two, {"x": X})))


def test_steps_are_read_as_runs() -> None:
    steps = [text.encode() for text in "sababn"]
    assert [(run.first, run.period, run.count) for run in runs(steps)] == [(0, 1, 1), (1, 2, 2), (5, 1, 1)]
    found = same_runs([text.encode() for text in "sabn"], steps)
    assert found is not None
    assert [(a.count, b.count) for a, b in found] == [(1, 1), (1, 2), (1, 1)]
    assert same_runs(steps, [text.encode() for text in "sabacn"]) is None


def test_blocks_are_chosen_by_the_least_sum_of_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(6, 7, 6, generator=generator)

    def error(a: int, b: int, k: int) -> float:
        return float(table[a, b, k])

    for keep in (1, 2, 3, 6):
        found = best_cover(error, 6, keep)
        every = []
        for inner in combinations(range(1, 6), keep - 1):
            borders = [0, *inner, 6]
            every.append([min((error(a, b, k), k) for k in range(a, b)) for a, b in pairwise(borders)])
        best = min(every, key=lambda runs: sum(e for e, _ in runs))
        assert found == [k for _, k in best]
    assert best_cover(lambda a, b, k: float(k != 4) * (b - a), 6, 1) == [4]
    assert spread(12, 6) == [0, 2, 4, 6, 8, 10]


KINDS = {"pre-norm": Net, "post-norm": lambda depth: Net(depth, post=True), "residual": Residual}


@pytest.mark.parametrize("kind", KINDS)
def test_a_shorter_parent_gets_blocks_without_effect(kind: str) -> None:
    make = KINDS[kind]
    deep, short = captured(make(3), "deep"), captured(make(1), "short")
    found = match_depth(deep, short, BUILTIN)
    assert found is not None
    assert apart(short, found) < 1e-9
    assert found.teacher is None
    assert line_up(deep, found)
    assert any("2 copies that add nothing" in note for note in found.notes)


def test_blocks_that_write_zero_are_those_left_out() -> None:
    """So that nothing is lost; a deeper parent that does need its blocks stays the one whose outputs are learnt."""
    net = Net(4, seed=3)
    for number in (0, 2):
        for linear in (net.layers[number].out, net.layers[number].down):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
    deep, short = captured(net, "deep"), captured(Net(2), "short")
    found = match_depth(short, deep, BUILTIN)
    assert found is not None
    assert apart(deep, found) < 1e-9
    assert "numbers 2, 4 are kept, which miss least of all of them on its own samples" in " ".join(found.notes)
    assert line_up(short, found)
    other = match_depth(short, captured(Net(3, seed=4), "deep"), BUILTIN)
    assert other is not None
    assert other.teacher is not None
    assert not other.teacher.only


def test_equal_depth_and_other_blocks_are_left_alone() -> None:
    two = captured(Net(2), "a")
    assert match_depth(two, captured(Net(2, seed=1), "b"), BUILTIN) is None
    assert match_depth(two, captured(Net(1, post=True), "b"), BUILTIN) is None


def test_what_is_no_sum_of_increments_keeps_the_original_as_its_teacher() -> None:
    """Copies of plain layers do something; layers that change the width come and go with none."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)]
    deep, short = captured(nn.Sequential(*layers), "deep"), captured(nn.Sequential(*layers[2:]), "short")
    for one, two in ((deep, short), (short, deep)):
        found = match_depth(one, two, BUILTIN)
        assert found is not None
        assert found.teacher is not None
        assert found.teacher.program is two
        assert line_up(one, found)
    narrow = nn.Sequential(nn.Linear(8, 7), nn.Linear(7, 6), nn.Linear(6, 3))
    assert (
        match_depth(captured(nn.Sequential(nn.Linear(8, 7), nn.Linear(7, 3)), "a"), captured(narrow, "b"), BUILTIN)
        is None
    )


def test_the_command_line_merges_parents_of_different_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways round, by a method that knows nothing of depth and by one that learns what was left out."""
    monkeypatch.chdir(tmp_path)
    for task, depth in (("deep", 3), ("short", 1)):
        fxmerge.save(Net(depth, seed=depth), f"{task}.pt", inputs=(X,), task=task)
    line = ["merge", "deep.pt", "short.pt", "--out", "m.onnx", "--result", "r.json", "--overwrite"]
    assert main([*line, "--method", "average"]) == 0
    result = json.loads(Path("r.json").read_text())
    assert result["checks"]["outputs"]["short.logits"]["rewrite"] < 1e-9
    assert [p["role"] for p in result["parents"]] == ["merged", "merged"]
    assert main([*line, "--method", "distill", "--init", "average", "--steps", "3", "--like", "1"]) == 0
    result = json.loads(Path("r.json").read_text())
    assert any("blocks in a row, 3 in deep and 1 in short" in note for note in result["notes"])
    assert any("the original's outputs are trained for" in note for note in result["notes"])
    assert result["checks"]["onnx_max_abs"] < 1e-4
