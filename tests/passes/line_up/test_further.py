"""Every step of writing a parent further keeps its function, at other sizes too, and changes only what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passes
from fxmerge.capturing import capture_graph
from fxmerge.coupling import Call
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program, target_name
from passes.line_up.carry_moves.carry import carry_moves
from passes.line_up.further import FURTHER, unwatched
from passes.line_up.masks import plain_masks
from passes.line_up.order_sums import order_sums
from passes.line_up.pairs import line_up
from passes.line_up.split_parameters import own_tensors
from tests.passes.random_nets import RandomNet, inputs

FREE = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}


def write_further(program: Program) -> Program:
    return unwatched(FURTHER[-1], program)


STEPS: tuple[Callable[[Program], Program], ...] = (carry_moves, order_sums, own_tensors, write_further)


class Function(nn.Module):
    """A function of x (batch, tokens, 12) and keep (batch, tokens), and of some weights."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.w = nn.Parameter(torch.randn(24, 12, dtype=torch.float64))
        self.table = nn.Parameter(torch.randn(9, 12, dtype=torch.float64))
        self.register_buffer("places", torch.arange(64)[None])

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.function(self, x, keep)


def captured(model: nn.Module) -> Program:
    program = capture_graph(
        model, inputs(3, 5), {"x": FREE, "keep": FREE}
    )  # a net may do other things when it is traced
    assert all(len(port.dynamic) == 2 for port in program.inputs)
    return passes.cleanup(passes.normalize(program))


def made(function: Any) -> Program:
    return captured(Function(function))


def called(program: Program) -> list[str]:
    return [target_name(node.target) for node in program.graph.nodes if node.op == "call_function"]


def same(before: Program, after: Program, sizes: tuple[tuple[int, int], ...] = ((2, 6), (5, 9), (4, 18))) -> None:
    for rows, tokens in sizes:
        given = inputs(rows, tokens)
        wanted, found = before.run(given), after.run(given)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("seed", [24, 49, *range(100, 110)])
def test_random_networks_stay_what_they_are(seed: int) -> None:
    program = captured(RandomNet(seed))
    for step in STEPS:
        same(program, step(program))


FUNCTIONS: dict[str, Any] = {
    "a value with itself": lambda m, x, k: (y := x.transpose(0, 1)) + y,
    "rows and columns of one axis": lambda m, x, k: (y := x.transpose(0, 1).unflatten(2, (3, 4))) @ y.mT,
    "a weight used whole and in part": lambda m, x, k: F.linear(x, m.w)[..., :12] + F.linear(x, m.w[:12]),
    "overlapping parts": lambda m, x, k: F.linear(x, m.w[:16]).sum(-1) + F.linear(x, m.w[8:]).sum(-1),
    "broadcast over rows": lambda m, x, k: x.permute(2, 1, 0) + x.mean(0).T[:, :, None],
    "a remainder of a size": lambda m, x, k: x * (x.shape[1] % 2 + 1),
    "both sizes added": lambda m, x, k: x / (x.shape[0] + x.shape[1]),
    "a transposed mask": lambda m, x, k: x.transpose(0, 1).masked_fill(k.T[..., None] == 0, 0.0),
    "rows of a table": lambda m, x, k: x.transpose(0, 1) + m.table[k.T],
    "sizes in a new order": lambda m, x, k: x.reshape(-1, 12).reshape(x.shape[1], x.shape[0], 12).transpose(0, 1),
    "positions": lambda m, x, k: x + F.embedding(m.places[:, : x.shape[1]] % 9, m.table),
    "copies": lambda m, x, k: x[:, None].expand(-1, 3, -1, -1).transpose(0, 2).flatten(1, 2),
    "integers": lambda m, x, k: (k.T * 2 - k.T.roll(1, 0)).float().double() + x.sum(-1).T,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_awkward_functions_stay_what_they_are(name: str) -> None:
    program = made(FUNCTIONS[name])
    for step in STEPS:
        same(program, step(program))


# -- tensors of their own --------------------------------------------------------------------------------------


def test_parts_of_a_weight_become_weights() -> None:
    program = made(lambda m, x, k: F.linear(x, m.w[:12]).tanh() + F.linear(x, m.w[12:]))
    after = own_tensors(program)
    same(program, after)
    assert after.parameters == {"w_0", "w_1"} and "aten.slice.Tensor" not in called(after)


@pytest.mark.parametrize("name", ["a weight used whole and in part", "overlapping parts"])
def test_a_weight_whose_parts_are_shared_stays_one(name: str) -> None:
    assert own_tensors(made(FUNCTIONS[name])).parameters == {"w"}


def test_a_fused_projection_is_taken_apart_only_where_all_readers_take_parts() -> None:
    parts = made(lambda m, x, k: (y := F.linear(x, m.w))[..., :12] * y[..., 12:].sigmoid())
    whole = made(lambda m, x, k: (y := F.linear(x, m.w))[..., :12] * y.sum(-1, True))
    assert called(write_further(parts)).count("aten.linear.default") == 2
    assert called(write_further(whole)).count("aten.linear.default") == 1


def test_sums_in_one_order() -> None:
    one = made(lambda m, x, k: x + (m.table[k] + m.w[0]))
    two = made(lambda m, x, k: (m.w[0] + x) + m.table[k])
    with pytest.raises(LineUpError):
        line_up(one, two)
    assert line_up(order_sums(one), order_sums(two))


# -- masks -----------------------------------------------------------------------------------------------------


def attention(mask: Callable[[Any, Tensor, Tensor], Tensor]) -> Program:
    return made(lambda m, x, k: F.scaled_dot_product_attention(*[x.unflatten(2, (3, 4)).transpose(1, 2)] * 3,
                                                               attn_mask=mask(m, x, k)))  # fmt: skip


def mask_of(program: Program) -> tuple[Any, Any]:
    (node,) = (n for n in program.graph.nodes if "scaled_dot_product" in str(n.target))
    given = Call.of(node)
    return given.arguments["attn_mask"], given["is_causal"]


def positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device)


MASKS: dict[str, tuple[str, Any]] = {
    "ones": ("nothing", lambda m, x, k: torch.ones_like(k, dtype=torch.bool)[:, None, None]),
    "counts": ("causal", lambda m, x, k: ((p := positions(x))[:, None] - p[None] >= 0)[None, None]),
    "cumsum": ("causal", lambda m, x, k: (p := torch.ones_like(x[0, :, 0]).cumsum(0))[:, None] >= p),
    "padding": ("padding", lambda m, x, k: (k[:, None, None] != 0).expand(-1, 3, x.shape[1], -1)),
    "padding, added": ("padding", lambda m, x, k: torch.zeros_like(k, dtype=x.dtype)
                       .masked_fill(k == 0, -torch.inf)[:, None, None]),
    "window": ("other", lambda m, x, k: ((p := positions(x))[:, None] >= p) & (p[:, None] - p < 40)),
    "far window": ("other", lambda m, x, k: ((p := positions(x))[:, None] >= p) & (p[:, None] - p < 4096)),
    "ones only": ("other", lambda m, x, k: (k[:, None, None] == 1)),
    "both": ("other", lambda m, x, k: (k[:, None, None] != 0) & torch.ones(x.shape[1], x.shape[1]).tril().bool()),
    "bias": ("other", lambda m, x, k: -(positions(x)[:, None] - positions(x)).abs().to(x.dtype)),
    "learnt": ("other", lambda m, x, k: m.w[:5, :5].mean() * torch.ones_like(x[:, None, :1, 0, None])),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks_by_what_they_hide(name: str) -> None:
    kind, mask = MASKS[name]
    program = attention(mask)
    bare = replace(program, samples={}).evolve()
    after = plain_masks(bare)
    found, causal = mask_of(after)
    known = "causal" if causal else "nothing" if found is None else "other" if after is bare else "padding"
    assert known == kind
    full = {**inputs(4, 50), "keep": torch.ones(4, 50, dtype=torch.long).triu()}
    torch.testing.assert_close(after.run(full)["logits"], program.run(full)["logits"], rtol=1e-8, atol=1e-10)
    assert not after.notes


def test_what_only_the_samples_show_is_noted() -> None:
    low = attention(lambda m, x, k: ((1.0 - k.to(x.dtype)) * -1e9)[:, None, None])
    ones = torch.ones(2, 5, dtype=torch.long)
    samples = [{}, {"keep": ones * 2}, {"keep": torch.tensor([[0] * 5, [1] * 5])}, {"keep": ones}]
    found = [plain_masks(replace(low, samples=s).evolve()) for s in samples]
    assert [bool(program.notes) for program in found] == [False, False, False, True]
    assert found[3].notes == ("keep is taken to hold zeros and ones, and a one for every row",)
    assert mask_of(found[3])[0].meta["val"].dtype is torch.bool


def by_two_indices(m: Any, x: Tensor, k: Tensor) -> Tensor:
    """The mask of a row and a token, read at pairs of indices, as exporters of traced graphs write it."""
    rows, places = torch.arange(x.shape[0])[:, None, None, None], positions(x)[None, None, None]
    pairs = torch.stack(torch.broadcast_tensors(rows, places), -1)
    seen = (k.ne(0) & x[..., 0].isfinite())[pairs[..., 0], pairs[..., 1]] & (positions(x) >= 0)[None, None, :, None]
    return torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, torch.finfo(x.dtype).min)


def test_a_low_number_hides_as_minus_infinity_where_every_row_shows_a_key() -> None:
    low, ones = attention(by_two_indices), torch.ones(2, 5, dtype=torch.long)
    samples = [{}, {"keep": torch.tensor([[0] * 5, [1] * 5])}, {"keep": ones * 2}]
    found = [plain_masks(replace(low, samples=s).evolve()) for s in samples]
    assert [program.notes for program in found] == [note := ("keep is taken to show every row a key",), (), note]
    assert mask_of(found[0])[0].meta["val"].dtype is torch.bool
    full = {**inputs(4, 50), "keep": torch.ones(4, 50, dtype=torch.long).triu()}
    torch.testing.assert_close(found[0].run(full)["logits"], low.run(full)["logits"], rtol=1e-8, atol=1e-10)
