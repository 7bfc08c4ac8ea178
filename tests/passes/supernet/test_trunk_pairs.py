"""Parents with heads of their own, tables that others lack, and of another depth: their trunk is one all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.errors import LineUpError
from fxmerge.ir.difference import differences, largest
from fxmerge.ir.program import Program
from fxmerge.ir.wide import run_wide
from fxmerge.pipeline import Known
from passes.line_up.carry_moves.carry import carry_moves
from passes.line_up.chains import first_runs
from passes.line_up.further import FURTHER, CarryMoves, line_up_all, unwatched
from passes.line_up.pairs import line_up
from passes.operators import OPERATORS
from passes.rules import BUILTIN
from passes.spelling.normalize import normalize
from passes.supernet.trunk_pairs import trunk_pairs

TOKENS = torch.randint(0, 11, (24, 6), generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8, eps=1e-12), nn.LayerNorm(8, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = self.norm1(x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """A post-norm encoder; `types`: with token types of which it uses one; `pooler`: what its head is."""

    def __init__(self, depth: int, pooler: str, *, types: bool = False, seed: int = 0, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.places, self.norm = nn.Embedding(11, 8), nn.Embedding(9, 8), nn.LayerNorm(8, eps=1e-12)
        self.types = nn.Embedding(2, 8) if types else None
        self.register_buffer("none", torch.zeros(1, 9, dtype=torch.long))
        self.register_buffer("count", torch.arange(9)[None])
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.pooler, self.pool, self.head = pooler, nn.Linear(8, 5), nn.Linear(8 if pooler == "mean" else 5, classes)

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.words(tokens)
        if self.types is not None:
            x = x + self.types(self.none[:, : tokens.shape[1]].expand_as(tokens))
        x = self.norm(x + self.places(self.count[:, : tokens.shape[1]]))
        for layer in self.layers:
            x = layer(x)
        if self.pooler == "mean":
            return self.head(x.mean(1))
        if self.pooler == "both":
            return self.head(self.pool(x[:, 0]).sigmoid()), x.sum(1)
        return self.head(getattr(self.pool(x[:, 0]), self.pooler)())


def like(one: Encoder, two: Encoder) -> Encoder:
    """`two` with the trunk of `one`; its further layers do nothing, its token type is part of the places."""
    with torch.no_grad():
        own = two.state_dict()
        shared = {n: t for n, t in one.state_dict().items() if n in own and not n.startswith(("pool", "head"))}
        two.load_state_dict({**own, **shared})
        for layer in list(two.layers)[len(one.layers) :]:
            for linear in (layer.out, layer.down):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
            for norm in (layer.norm1, layer.norm2):
                nn.init.ones_(norm.weight)
                nn.init.zeros_(norm.bias)
        if two.types is not None:
            two.places.weight -= two.types.weight[0]
    return two


def captured(net: nn.Module, task: str) -> Program:
    return normalize(fxmerge.capture(net.eval(), (TOKENS,), task=task)).evolve(samples={"tokens": TOKENS})


def test_rows_that_are_the_same_everywhere_become_part_of_another_table() -> None:
    one, two = captured(Encoder(1, "tanh"), "plain"), captured(Encoder(1, "tanh", types=True, seed=1), "typed")
    for steps in FURTHER[:-2]:
        with pytest.raises(LineUpError):
            line_up(unwatched(steps, one), unwatched(steps, two))
    plain, typed = line_up_all([one, two])
    assert line_up(plain, typed)
    assert not any("types" in name for name in typed.tensors)
    assert largest(differences(run_wide(two, {"tokens": TOKENS}), run_wide(typed, {"tokens": TOKENS}))) < 1e-6
    assert "added at every place is part of places.weight" in " ".join(typed.notes)


@pytest.mark.parametrize("other", ["relu", "both", "mean"])
def test_one_trunk_under_two_heads_stays_what_it_is(other: str) -> None:
    """A head may be any calls at all, with more outputs or with fewer."""
    one = Encoder(2, "tanh")
    two = like(one, Encoder(2, other, seed=1, classes=4))
    programs = [captured(one, "a"), captured(two, "b")]
    for template in (0, 1):
        merged = fxmerge.merge(programs, method="average", like=template)
        for program in programs:
            for name, value in program.run({"tokens": TOKENS}).items():
                found = merged(TOKENS)[program.task]
                found = found if isinstance(found, Tensor) else found[name]
                torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
        assert [p["role"] for p in merged.result["parents"]] == ["merged", "merged"]
        assert merged.result["merged"]["size"] < 1.4
        assert any("is another one than that of" in note for note in merged.result["notes"])


def test_no_way_to_write_a_parent_is_worked_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Program] = []

    def carried(self: CarryMoves, program: Program, known: Known) -> Program:
        given.append(program)
        return carry_moves(program, OPERATORS)

    monkeypatch.setattr(CarryMoves, "run", carried)
    one, two = Encoder(1, "tanh"), Encoder(1, "relu", seed=1)
    fxmerge.merge([captured(one, "a"), captured(two, "b")], method="average")
    assert 2 * 3 == len(given) == len({id(program) for program in given})


def test_what_holds_most_of_the_weights_is_no_head() -> None:
    def net(*behind: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), *behind)

    x = torch.randn(9, 6)
    small, large = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 3))
    one, two = (normalize(fxmerge.capture(net(head), (x,))) for head in (small, large))
    with pytest.raises(LineUpError, match="do not line up"):
        trunk_pairs(one, two, BUILTIN)
    three = normalize(fxmerge.capture(net(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3)), (x,)))
    assert trunk_pairs(one, three, BUILTIN).apart > 0


def test_what_both_begin_with_is_read_as_runs() -> None:
    one, two = ([text.encode() for text in word] for word in ("sabababxy", "sabz"))
    for a, b in ((one, two), (two, one)):
        found = first_runs(a, b)
        assert found is not None
        assert [(r.period, r.count) for pair in found for r in pair][:2] == [(1, 1), (1, 1)]
        assert sorted(r.count for r in found[1]) == [1, 3]
    assert first_runs(one, [b"z"]) is None


def test_the_command_line_merges_encoders_of_other_depth_head_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact both ways round, where the blocks of the deeper one that the other lacks do nothing."""
    monkeypatch.chdir(tmp_path)
    short = Encoder(1, "relu", classes=4)
    deep = like(short, Encoder(3, "tanh", types=True, seed=1))
    for task, net in (("deep", deep), ("short", short)):
        fxmerge.save(net.eval(), f"{task}.pt", inputs=(TOKENS,), task=task)
    line = ["merge", "deep.pt", "short.pt", "--out", "m.onnx", "--result", "r.json", "--overwrite"]
    for template in ("0", "1"):
        assert main([*line, "--method", "average", "--like", template]) == 0
        result = json.loads(Path("r.json").read_text())
        assert [p["role"] for p in result["parents"]] == ["merged", "merged"]
        assert min(out["r2"] for task in result["tasks"] for out in task["outputs"]) > 1 - 1e-6
        said = " ".join(result["notes"])
        assert "1 in short and 3 in deep" in said or "norms stand on its stream, so it is no sum of increments" in said


class Curved(nn.Module):
    """A branch behind a curve beside a stream, with a factor of some kind or none: where it is, trunks part."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.head, self.norm = nn.Linear(6, 8), nn.Linear(8, 3), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 8)
        self.kind, self.factor = kind, nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = torch.tanh(self.down(nn.functional.gelu(self.up(self.norm(x)))))
        found: Tensor = self.head(x + branch * {"learnt": self.factor, "fixed": 0.5, "none": 1.0}[self.kind])
        return found


@pytest.mark.parametrize("kinds", [("fixed", "learnt"), ("none", "fixed")])
def test_a_stream_may_go_on_into_heads_of_their_own(kinds: tuple[str, str]) -> None:
    x = torch.randn(24, 6)
    parents = [
        fxmerge.capture(Curved(kind, k).eval(), (x[:4],), task=task)
        for k, (kind, task) in enumerate(zip(kinds, "ab", strict=True))
    ]
    for k, parent in enumerate(parents):
        merged = fxmerge.merge(parents, data=x, method="average", like=k)
        assert any("is another one than that of" in note for note in merged.result["notes"])
        assert merged(x)[parent.task].shape == (24, 3) and merged.result["checks"]["fold_max_abs"] < 1e-5
