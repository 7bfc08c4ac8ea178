"""A bias of zeros or a scale of ones that one parent leaves out: exact, and only where another parent has it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import passes
from fxmerge.capturing import capture
from fxmerge.coupling import couples
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from fxmerge.pipeline.passes import Use
from passes.depth.line_up_deep import line_up_deep
from passes.line_up.further import line_up_all, unwatched
from passes.operators import Operators
from passes.rewrites import REWRITES
from passes.rules import BUILTIN

X = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A strided convolution, a residual block with norms, a transposed convolution, a head."""

    def __init__(self, seed: int, without: str = "", width: int = 6, depth: int = 1) -> None:
        """`without`: letters of the parts that have no bias; in capitals, of the norms that have no scale either."""
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(4, width, 3, stride=2, bias="c" not in without)
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, bias="n" not in without, elementwise_affine="N" not in without) for _ in range(depth)
        )
        self.up = nn.ModuleList(nn.Linear(width, 2 * width, bias="u" not in without) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(2 * width, width, bias="d" not in without) for _ in range(depth))
        self.turned = nn.ConvTranspose2d(width, width, 2, bias="t" not in without)
        self.head = nn.Linear(width, 3 + seed, bias="h" not in without)
        for value in self.parameters():
            value.data.add_(torch.randn_like(value))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).movedim(1, -1)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(torch.relu(up(norm(x))))
        out: Tensor = self.head(self.turned(x.movedim(-1, 1)).mean((2, 3)))
        return out


@cache
def parent(seed: int, without: str = "", width: int = 6, depth: int = 1) -> Program:
    model = Net(seed, without, width, depth).double().eval()
    return passes.cleanup(passes.normalize(capture(model, (X,), task=f"t{seed}")))


def operands(program: Program) -> list[int]:
    return [len(node.all_input_nodes) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("template", [0, 2])
def test_what_parents_leave_out_is_filled_in_and_changes_nothing(template: int) -> None:
    given = [parent(0, "cd", 5), parent(1, "nht"), parent(2, "Nu")]
    lined = line_up_all(given, template)
    assert operands(lined[0]) == operands(lined[1]) == operands(lined[2])
    for before, after in zip(given, lined, strict=True):
        torch.testing.assert_close(after(X), before(X), rtol=0, atol=1e-12)
        assert "that its calls leave out" in after.notes[-1]
    added = [sorted(after.parameters - before.parameters) for before, after in zip(given, lined, strict=True)]
    assert added[0] == ["down.0.bias", "stem.bias"]
    assert added[1] == ["head.bias", "norms.0.bias", "turned.bias"]
    assert lined[0].tensors["stem.bias"].shape == (5,)


def test_what_no_parent_has_is_not_made() -> None:
    given = [parent(0, "cu"), parent(1, "cu")]
    assert all(a is b for a, b in zip(line_up_all(given), given, strict=True))
    lined = line_up_all([parent(0, "cu"), parent(1, "c")])
    assert not any("stem.bias" in program.parameters for program in lined)


def test_parents_of_other_depths_are_filled_in_before_their_blocks_are_matched() -> None:
    given = [parent(0, "", 6, 3), parent(1, "nud", 6, 2)]
    lined = line_up_deep(given, 0, Use(BUILTIN, REWRITES), unwatched)
    assert [len(operands(program)) for program in lined] == [len(operands(given[0]))] * 2
    torch.testing.assert_close(lined[1](X), given[1](X), rtol=0, atol=1e-12)
    assert lined[1].teacher is None


def test_where_more_parts_the_first_difference_is_named() -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(super().forward(x))

    other = passes.cleanup(passes.normalize(capture(Other(1, "cn").double().eval(), (X,), task="t1")))
    with pytest.raises(LineUpError, match=r"aten\.tanh\.default"):
        line_up_all([parent(0), other])


def test_an_operator_of_an_extension_says_by_its_rule_what_it_can_do_without() -> None:
    with torch.library._scoped_library("fill", "DEF") as library:
        library.define("shifted(Tensor x, Tensor? shift=None) -> Tensor")
        library.impl("shifted", lambda x, shift=None: x + (0 if shift is None else shift), "CompositeExplicitAutograd")
        rule = couples("fill.shifted.default", "... d, d -> ... d", "x + shift")

        class Shifts(nn.Module):
            def __init__(self, has: bool) -> None:
                super().__init__()
                self.first = nn.Linear(4, 5)
                self.shift = nn.Parameter(torch.randn(5)) if has else None

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = torch.ops.fill.shifted(self.first(x), self.shift)
                return out

        x = torch.randn(3, 4)
        given = [capture(Shifts(has), (x,), task=str(has)) for has in (True, False)]
        lined = line_up_all(given, operators=Operators(BUILTIN + rule))
        torch.testing.assert_close(lined[1](x), given[1](x), rtol=0, atol=0)
        assert operands(lined[0]) == operands(lined[1])
