"""Grouped matrix products written as plain ones give the same numbers, and ONNX takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn, ops

import fxmerge
from fxmerge.capturing import capture
from fxmerge.coupling import operator_name
from fxmerge.ir.program import Program
from fxmerge.output.onnx import compare_onnx, export_onnx
from passes.spelling.lower_to_onnx import ATTENTION, GROUPED, lower_to_onnx

EXPERTS = 3


@pytest.fixture(autouse=True, scope="module")
def operator() -> None:
    """A stand-in for the operator where transformers has not registered it."""
    if hasattr(ops.transformers, "grouped_mm_fallback"):
        return

    @torch.library.custom_op("transformers::grouped_mm_fallback", mutates_args=())
    def grouped_mm(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        out, start = input.new_zeros(input.shape[0], weight.shape[2]), 0
        for expert, end in enumerate(offs.tolist()):
            out[start:end] = input[start:end] @ weight[expert]
            start = end
        return out

    @grouped_mm.register_fake
    def _(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        return input.new_empty(input.shape[0], weight.shape[2])


class Experts(nn.Module):
    """Rows sorted by the expert that a router chose; an expert may get none."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.weight = nn.Linear(4, EXPERTS), nn.Parameter(torch.randn(EXPERTS, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(1)
        order = torch.argsort(chosen)
        counts = torch.nn.functional.one_hot(chosen, EXPERTS).sum(0)
        out = ops.transformers.grouped_mm_fallback(x[order], self.weight, counts.cumsum(0).int())
        return out[torch.argsort(order)]


def _experts() -> Program:
    torch.manual_seed(0)
    return capture(Experts(), (torch.randn(11, 4),))


def test_same_numbers_also_for_experts_without_rows() -> None:
    before = _experts()
    after = lower_to_onnx(before)
    assert any(operator_name(node) in GROUPED for node in before if node.op == "call_function")
    assert not any(operator_name(node) in GROUPED for node in after if node.op == "call_function")
    for rows in (1, 2, 11, 40):
        x = {"x": torch.randn(rows, 4)}
        torch.testing.assert_close(after.run(x), before.run(x), atol=1e-6, rtol=0)


def test_onnx_takes_it(tmp_path: Path) -> None:
    program = lower_to_onnx(_experts())
    export_onnx(program, tmp_path / "m.onnx")
    assert compare_onnx(tmp_path / "m.onnx", program) < 1e-5


def test_other_programs_are_left_alone() -> None:
    program = capture(nn.Linear(3, 2), (torch.randn(2, 3),))
    assert lower_to_onnx(program) is program


@pytest.mark.parametrize("sizes", [(4, 7, 6), (4, 2, 3, 7, 6)])
def test_attention_of_other_than_four_axes(sizes: tuple[int, ...], tmp_path: Path) -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mask = q.mean(-1, keepdim=True)[0] if q.ndim == 3 else None
            return nn.functional.scaled_dot_product_attention(q, k, v, mask).tanh()

    torch.manual_seed(0)
    rows = tuple(torch.randn(sizes) for _ in range(3))
    before = capture(Attention(), rows)
    after = lower_to_onnx(before)
    assert [n.args[0].meta["val"].ndim for n in after if operator_name(n) == ATTENTION] == [4]
    assert torch.allclose(after.run(after.samples)["logits"], before.run(before.samples)["logits"], atol=1e-6)
    export_onnx(after, tmp_path / "model.onnx")
    assert compare_onnx(tmp_path / "model.onnx", after) < 1e-5


def test_multihead_attention_that_is_asked_for_its_weights(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(5, 12), nn.Linear(12, 4)
            self.mix = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(x + self.mix(x, x, x)[0])

    torch.manual_seed(0)
    parents = [capture(Net().eval(), (torch.randn(3, 7, 5),), task=task) for task in "ab"]
    merged = fxmerge.merge(parents, method="average", out=str(tmp_path / "m.onnx"))
    assert merged.result["checks"]["onnx_max_abs"] < 1e-5
