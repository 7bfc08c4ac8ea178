"""The same mathematics in different hands lines up, merges, and is right; what differs is named with both lines."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
import passes
from fxmerge.capturing import capture
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from fxmerge.output.onnx import run_onnx
from passes.line_up.further import line_up_all
from passes.line_up.pairs import line_up
from tests.passes.hands import POSITIONS, Hand, Kind, Style, inputs, weights

KINDS = {name: Kind(name) for name in ("vit", "bert", "gpt")} | {"llama": Kind("llama", heads=4, width=16)}


def normal(model: nn.Module, given: dict[str, Tensor], task: str = "b") -> Program:
    return passes.cleanup(passes.normalize(capture(model, given, task=task)))


@cache
def hand(kind: Kind, style: Style, seed: int = 0, task: str = "b") -> Program:
    return normal(Hand(kind, style, weights(kind, seed)).double(), inputs(kind), task)


def merged(parents: list[Program], template: int = 0) -> Program:
    net = passes.insert_merge(passes.line_up(parents, template), passes.BUILTIN.rules, template)
    outputs = [f"{p.task}.{port.name}" for p in net.parents for port in p.outputs]
    return passes.fold_merge(passes.hoist(net.program.only(outputs)), net.tasks, template)


def same_function(a: Program, b: Program, samples: list[dict[str, Tensor]], tolerance: float = 1e-9) -> None:
    """Averaging two programs that compute one function is that function, at sizes other than those of capture too."""
    result = merged([a, b])
    for given in samples:
        wanted = a.run(given)["logits"]
        scale = float(wanted.abs().max())
        found = result.run(given)
        for value in (b.run(given)["logits"], found[f"{a.task}.logits"], found[f"{b.task}.logits"]):
            assert float((value - wanted).abs().max()) < tolerance * scale


def two_sizes(kind: Kind) -> list[dict[str, Tensor]]:
    return [inputs(kind), inputs(kind, rows=2, tokens=9, seed=5)]


HANDS = {
    "vit": [
        Style(qkv="chunk", linear="addmm", attention="bmm", norm="own", gelu="own", swapped=True),
        Style(qkv="permute", layout="tokens", attention="einsum", stem="unfold"),
        Style(qkv="heads-chunk", linear="matmul", attention="bmm", layout="tokens", stem="linear", swapped=True),
    ],
    "bert": [
        Style(qkv="split", linear="matmul", attention="matmul", norm="own", swapped=True),
        Style(qkv="unbind", layout="tokens", attention="bmm", gelu="own"),
    ],
    "gpt": [
        Style(qkv="slices", linear="addmm", attention="matmul", norm="own"),
        Style(qkv="heads-unbind", linear="einsum", attention="query", gelu="own"),
    ],
    "llama": [
        Style(qkv="split", gated="chunk", repeat="gqa", linear="matmul"),
        Style(qkv="slices", gated="slices", repeat="expand", attention="matmul", norm="own", gelu="own"),
        Style(layout="tokens", attention="bmm", repeat="expand", swapped=True),
    ],
}


@pytest.mark.parametrize(("name", "number"), [(name, i) for name, styles in HANDS.items() for i in range(len(styles))])
def test_one_network_in_two_hands_is_one_network(name: str, number: int) -> None:
    kind = KINDS[name]
    plain, other = hand(kind, Style(), task="a"), hand(kind, HANDS[name][number])
    with pytest.raises(LineUpError):
        line_up(plain, other)
    same_function(plain, other, two_sizes(kind))


def test_neither_hand_needs_to_be_the_plain_one() -> None:
    kind, (one, two) = KINDS["gpt"], HANDS["gpt"]
    same_function(hand(kind, two, task="a"), hand(kind, one), two_sizes(kind))


@pytest.mark.parametrize(
    ("name", "wide", "like"),
    [
        ("vit", Style(qkv="permute", layout="tokens", stem="unfold"), 1),
        ("bert", Style(qkv="heads-chunk", linear="addmm", swapped=True), 0),
        ("llama", Style(qkv="split", gated="chunk", repeat="gqa"), 1),
    ],
)
def test_other_weights_and_widths_through_onnx(name: str, wide: Style, like: int, tmp_path: Path) -> None:
    """Fused beside separate, other widths, numbers of heads and classes: fold = SuperNet = ONNX Runtime."""
    kind = KINDS[name]
    large = replace(kind, width=24, heads=6 if name == "llama" else 4, hidden=28, classes=7)
    parents = []
    for task, each, style in (("a", kind, Style()), ("b", large, wide)):
        given = {n: v.float() if v.is_floating_point() else v for n, v in inputs(each).items()}
        parents.append(capture(Hand(each, style, weights(each, 3)).float(), given, task=task))
    out = tmp_path / "merged.onnx"
    result = fxmerge.merge(parents, method="average", like=like, out=str(out))
    assert result.result["checks"]["fold_max_abs"] < 1e-4 and result.result["checks"]["onnx_max_abs"] < 1e-4
    given = {n: v.float() if v.is_floating_point() else v for n, v in two_sizes(kind)[1].items()}
    mine, found = result.program.run(given), run_onnx(out, given)
    assert found["a.logits"].shape[-1] == 5 and found["b.logits"].shape[-1] == 7
    for task in "ab":
        torch.testing.assert_close(found[f"{task}.logits"], mine[f"{task}.logits"], rtol=1e-4, atol=1e-4)


def test_parts_of_one_task_stay_its_own(tmp_path: Path) -> None:
    """Another vocabulary: stems per task, also where a parent had to be written further."""
    kind = KINDS["gpt"]
    other = replace(kind, vocabulary=31, classes=9)
    parents = [
        capture(Hand(each, style, weights(each)).float(), inputs(each), task=task)
        for task, each, style in (("a", kind, Style()), ("b", other, Style(qkv="split", linear="addmm")))
    ]
    out = tmp_path / "merged.onnx"
    result = fxmerge.merge(parents, method="average", out=str(out))
    assert [port.name for port in result.program.inputs] == ["a.ids", "b.ids"]
    given = {f"{t}.ids": inputs(k, 2, 6)["ids"] for t, k in (("a", kind), ("b", other))}
    found = run_onnx(out, given)
    assert found["a.logits"].shape[-1] == 5 and found["b.logits"].shape[-1] == 9
    for name, value in result.program.run(given).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_parents_that_line_up_are_left_as_they_are() -> None:
    fused = Style(qkv="chunk", layout="tokens")
    parents = [hand(KINDS["gpt"], fused, 0, "a"), hand(KINDS["gpt"], replace(fused, swapped=True), 1)]
    found = line_up_all(parents)
    assert all(a is b for a, b in zip(found, parents, strict=True))


# -- what does not line up -----------------------------------------------------------------------------------


class Two(nn.Module):
    """Two layers; what is done between them is an argument."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.one, self.two, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.between(self.one(x)))


def parted(a: Any, b: Any) -> str:
    x = {"x": torch.randn(3, 6)}
    with pytest.raises(LineUpError) as error:
        line_up_all([normal(Two(a), x, "a"), normal(Two(b), x)])
    return str(error.value)


def test_the_first_difference_is_named_with_both_lines() -> None:
    said = parted(lambda v: F.relu(v).tanh(), lambda v: F.gelu(v).tanh())
    assert "a and b do not line up: aten.relu.default (test_pairs.py:" in said
    assert "and aten.gelu.default (test_pairs.py:" in said and "are different operators" in said


def test_depth_is_named_also_where_hands_differ() -> None:
    """Not the first difference of handwriting, but what is left when both are written further."""
    kind = KINDS["gpt"]
    deep = replace(kind, depth=2)
    with pytest.raises(LineUpError) as error:
        line_up_all([hand(kind, Style(), task="a"), hand(deep, Style(qkv="split"))])
    assert "slice" not in str(error.value) and str(error.value).count("(hands.py:") == 2


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (lambda v: (v * v + 1) ** -1, lambda v: (v * v + 1) ** -2),
        (lambda v: v.softmax(-1), lambda v: v.softmax(0)),
        (lambda v: v * v[:, :3].sum(-1, True), lambda v: v * v[:, 2:6].sum(-1, True)),
        (lambda v: v - v.mean(), lambda v: v.mean() - v),
        (lambda v: v * (v.argmax(-1) == 0)[:, None], lambda v: v * (v.argmax(-1) == 1)[:, None]),
        (lambda v: v + v.cumsum(-1), lambda v: v + v.flip(-1).cumsum(-1)),
    ],
)
def test_other_functions_do_not_line_up(a: Any, b: Any) -> None:
    assert "do not line up" in parted(a, b)


def test_numbers_that_depend_on_sizes_may_differ() -> None:
    x = {"x": torch.randn(3, 6)}
    one, two = (normal(Two(lambda v, c=c: (v / c).tanh()), x, t) for t, c in (("a", 2.0), ("b", 3.0)))
    assert len(line_up(one, two)) > 5


# -- libraries -------------------------------------------------------------------------------------------------


class Library(nn.Module):
    """torch.nn.TransformerEncoder between an embedding and a head."""

    def __init__(self, pre: bool, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 20, 0.0, "gelu", batch_first=batch_first, norm_first=pre)
        norm = nn.LayerNorm(12) if pre else None
        self.encoder = nn.TransformerEncoder(layer, 1, norm=norm, enable_nested_tensor=False)
        self.tokens, self.places = nn.Embedding(23, 12), nn.Embedding(POSITIONS, 12)
        self.head, self.batch_first = nn.Linear(12, 5), batch_first
        for parameter in self.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=mask == 0)
        return self.head(x[:, 0] if self.batch_first else x[0])


class ByHand(nn.Module):
    """The same network with the library's weights."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.library = library

    def attention(self, x: Tensor, mask: Tensor) -> Tensor:
        own = self.library.encoder.layers[0].self_attn
        parts = zip(own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, w, b).view(*x.shape[:2], 3, 4).transpose(1, 2) for w, b in parts)
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(mask[:, None, None] == 0, -torch.inf)
        return own.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        net, layer = self.library, self.library.encoder.layers[0]
        x = net.places(torch.arange(ids.shape[1])) + net.tokens(ids)
        if layer.norm_first:
            x = x + self.attention(layer.norm1(x), mask)
            x = net.encoder.norm(x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x)))))
        else:
            x = layer.norm1(self.attention(x, mask) + x)
            x = layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))
        return net.head(x[:, 0])


@pytest.mark.parametrize(("pre", "batch_first"), [(True, False), (False, True)])
def test_encoder_of_torch(pre: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    library = Library(pre, batch_first).double().eval()
    kind = KINDS["bert"]
    one, two = normal(library, inputs(kind), "a"), normal(ByHand(library), inputs(kind))
    same_function(one, two, two_sizes(kind))
