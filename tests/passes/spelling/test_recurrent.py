"""Recurrent layers: one operator a layer, spaces of their own, merged inside the loop, and torch's own at the end."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

import fxmerge
import passes
from benchmarks.planted import plant
from fxmerge.errors import CaptureError
from fxmerge.from_onnx.runtime import run_onnx
from fxmerge.ir.program import Program, target_name
from passes.rules.recurrent import LAST_CELL, LAYERS, STACKS
from passes.spelling.join_recurrent import join_recurrent
from tests.passes.spelling.recurrent_nets import INPUTS, NETS, TIMES, Classifier, inputs, net

FAST = ("lstm-cells", "gru-both", "tanh-3-both", "relu-last")


@cache
def program(name: str, width: int = 6, seed: int = 0, task: str = "a") -> Program:
    return fxmerge.capture(net(name, width, seed), (inputs(),), task=task)


def normal(of: Program) -> Program:
    return of.get(_normal)


def _normal(of: Program) -> Program:
    return passes.cleanup(passes.normalize(of))


def called(of: Program) -> list[str]:
    return [target_name(node.target) for node in of if node.op == "call_function"]


def difference(a: Program, b: Program, x: dict[str, Tensor], outputs: list[str]) -> float:
    """Largest difference of these outputs, each as a share of its largest entry."""
    with torch.no_grad():
        one, two = a.run(x), b.run(x)
    return max(float((one[o] - two[o]).abs().max() / one[o].abs().max()) for o in outputs)


# -- one layer as an operator ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_one_layer_and_its_gradients_are_torchs(kind: str, reverse: bool) -> None:
    torch.manual_seed(0)
    own: nn.RNNBase = {"lstm": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)(
        3, 4, **({"nonlinearity": kind[4:]} if kind.startswith("rnn") else {})
    )
    own.double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind == "lstm"))]
    w, v, b, c = own.parameters()
    wanted, ends = own(x.flip(0) if reverse else x, tuple(states) if kind == "lstm" else states[0])
    layer = getattr(torch.ops.fxmerge, kind)
    found = layer(nn.functional.linear(x, w, b), v, c, *(s[0] for s in states), reverse)
    wanted = wanted.flip(0) if reverse else wanted
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
    leaves = [x, *states, *own.parameters()]
    mine, theirs = (torch.autograd.grad(out.square().sum(), leaves) for out in (found, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    if kind == "lstm":
        cell = torch.ops.fxmerge.lstm_cell_state(nn.functional.linear(x, w, b), v, c, *(s[0] for s in states), reverse)
        torch.testing.assert_close(cell, ends[1][0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NETS)
def test_layers_apart_and_together_again_are_one_function(name: str) -> None:
    given = program(name)
    apart = normal(given)
    together = passes.cleanup(join_recurrent(apart))
    assert set(called(apart)) & {*LAYERS, LAST_CELL} and not set(called(apart)) & set(STACKS)
    assert set(called(together)) & set(STACKS) and not set(called(together)) & {*LAYERS, LAST_CELL}
    for other in (apart, together):
        assert difference(given, other, {"x": inputs(7)}, ["logits"]) < 1e-6


def test_states_that_are_not_all_read_do_not_tie_layers() -> None:
    spaces = passes.describe(normal(program("lstm-2-both-grid")))["spaces"].values()
    assert sum(space["size"] == 6 for space in spaces) == 4  # two layers in two directions
    assert "aten.stack.default" not in called(normal(program("tanh-3-both")))
    assert "aten.stack.default" in called(normal(program("gru-2-sum")))


def test_both_directions_are_one_call_again() -> None:
    found = called(passes.cleanup(join_recurrent(normal(program("lstm-2-both-grid")))))
    assert found.count("aten.lstm.input") == 2 and "aten.flip.default" not in found


def test_gates_that_no_linear_call_made_are_read_through_the_identity() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.ops.fxmerge.rnn_tanh(x.relu(), self.weight, None, None, True))

    given = fxmerge.capture(Bare(), (torch.randn(3, 2, 4),))
    found = join_recurrent(given)
    assert "aten.rnn_tanh.input" in called(found) and "fxmerge.rnn_tanh.default" not in called(found)
    assert difference(given, found, {"x": torch.randn(3, 2, 4)}, ["logits"]) < 1e-6


def test_a_projected_state_is_opaque_and_says_so() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(INPUTS, 6, proj_size=4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0])

    given = fxmerge.capture(Projected(), (inputs(),))
    described = passes.describe(given)
    assert described["coverage"] < 1.0
    assert "proj_size" in str(described["opaque"])
    assert "aten.lstm.input" in called(normal(given))


# -- spaces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_hidden_units_are_free(name: str) -> None:
    for of in (program(name), normal(program(name))):
        described = passes.describe(of)
        assert described["coverage"] == described["free_axes"] == 1.0
        report = passes.check(of)
        assert report.ok and report.moved > 0.8, report.first_bad


@pytest.mark.parametrize(
    ("name", "tolerates", "signs", "scales"),
    [
        ("lstm-all", "permutation", 1, 0),
        ("gru-time-first", "permutation", 1, 0),
        ("tanh-3-both", "signed_permutation", 1, 0),
        ("relu-last", "permutation", 0, 1),
    ],
)
def test_what_units_tolerate(name: str, tolerates: str, signs: int, scales: int) -> None:
    """Gates keep the rows of a unit that changes its sign, so only layers without gates flip as a whole."""
    spaces = passes.describe(normal(program(name)))["spaces"].values()
    units = [space for space in spaces if space["size"] == 6]
    assert units and all((s["tolerates"], s["signs"], s["scales"]) == (tolerates, signs, scales) for s in units)


@pytest.mark.parametrize("name", FAST)
def test_a_planted_order_and_signs_are_undone_by_the_maps(name: str) -> None:
    found = plant(program(name))
    assert max(found.twin, found.undone, found.weights, found.outputs) < 1e-10
    assert found.moved > 0.8 and found.plain > 1e-3


# -- merging -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm-cells", "gru-both"])
def test_written_hoisted_and_folded_are_one_function_with_one_gradient(name: str) -> None:
    programs = [program(name, 6, 0, "a"), program(name, 8, 1, "b")]
    net_ = passes.insert_merge([normal(p) for p in programs], passes.BUILTIN.rules).start([1.0, 1.0], "full")
    generator = torch.Generator().manual_seed(1)
    for _, block in net_.maps():
        for parameter in block.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    written = net_.program.evolve(
        tensors={n: t.double() for n, t in net_.program.tensors.items()},
        inputs=tuple(fxmerge.ir.program.Port(p.name, p.shape, torch.float64) for p in net_.program.inputs),
    )
    written.module.double()
    hoisted = passes.hoist(written)
    x = {"x": inputs(5).double()}
    outputs = ["a.logits", "b.logits"]
    folded = passes.fold_merge(hoisted.only(outputs), net_.tasks, 0)
    assert not folded.maps
    assert difference(written, hoisted, x, outputs) < 1e-12
    assert difference(written, folded, x, outputs) < 1e-12
    gradients = []
    for of in (written, hoisted):
        of.module.zero_grad()
        torch.autograd.backward(sum(of.run(x)[o].square().sum() for o in outputs))
        gradients.append({n: p.grad.clone() for n, p in of.module.named_parameters() if n.startswith("maps")})
    for n, gradient in gradients[0].items():
        assert float(gradient.abs().max()) > 0, f"no gradient reached {n}"
        torch.testing.assert_close(gradients[1][n], gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm-cells", "relu-last"])
def test_the_whole_way(name: str, tmp_path: Path) -> None:
    for task, width in (("a", 6), ("b", 8)):
        fxmerge.save(net(name, width, width), tmp_path / f"{task}.pt", inputs=(inputs(12),), task=task)
    merged = fxmerge.merge(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        method="foldable",
        steps=5,
        batch_size=8,
        augment="none",
        out=str(tmp_path / "m.onnx"),
    )
    written = onnx.load(tmp_path / "m.onnx").graph.node
    assert {"LSTM", "GRU", "RNN"} & {n.op_type for n in written} and not {"Loop", "Scan"} & {n.op_type for n in written}
    for rows in (1, 2, 7):
        x = {"x": inputs(rows, rows)}
        for output, value in run_onnx(tmp_path / "m.onnx", x).items():
            torch.testing.assert_close(value, merged.program.run(x)[output], rtol=1e-5, atol=1e-5)
    assert merged.result["merged"]["opaque_axes"] == 0


def test_merged_with_itself_it_is_itself() -> None:
    for name in ("encoder", "between"):
        given = program(name)
        merged = fxmerge.merge([given, given.evolve(task="twin")], method="average", data=inputs(8))
        wanted = net(name)(inputs(5))
        for value in merged(inputs(5)).values():
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


def test_a_text_classifier_reads_texts_of_any_length(tmp_path: Path) -> None:
    for number, task in enumerate("ab"):
        torch.manual_seed(number)
        ids = torch.randint(0, 20, (6, TIMES))
        fxmerge.save(Classifier(6).eval(), tmp_path / f"{task}.pt", inputs=(ids,), task=task)
    merged = fxmerge.merge([tmp_path / "a.pt", tmp_path / "b.pt"], method="average", out=str(tmp_path / "m.onnx"))
    assert merged.program.inputs[0].dynamic == ("batch", "sequence")
    for rows, length in ((1, 1), (3, 11)):
        x = {"ids": torch.randint(0, 20, (rows, length))}
        for output, value in run_onnx(tmp_path / "m.onnx", x).items():
            torch.testing.assert_close(value, merged.program.run(x)[output], rtol=1e-5, atol=1e-5)


# -- packed sequences ------------------------------------------------------------------------------------------


class Packing(nn.Module):
    def __init__(self, packs: bool) -> None:
        super().__init__()
        self.packs, self.lstm, self.head = packs, nn.LSTM(INPUTS, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.packs:
            packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.lstm(packed)[1][0][-1])
        place = (lengths - 1)[:, None, None].expand(-1, 1, self.lstm.hidden_size)
        return self.head(self.lstm(x)[0].gather(1, place)[:, 0])


def test_packing_is_refused_and_the_advice_works() -> None:
    lengths = torch.tensor([6, 4, 2, 5])
    with pytest.raises(CaptureError, match=r"packs sequences .*test_recurrent.py:\d+.*") as refused:
        fxmerge.capture(Packing(True), (inputs(), lengths))
    assert "take the last states with gather" in str(refused.value.args)
    torch.manual_seed(0)
    packing = Packing(True).eval()
    padded = Packing(False).eval()
    padded.load_state_dict(packing.state_dict())
    given = fxmerge.capture(padded, (inputs(), lengths))
    torch.testing.assert_close(given(inputs(), lengths), packing(inputs(), lengths))
    assert passes.describe(given)["coverage"] == 1.0


def test_a_packed_input_is_refused() -> None:
    packed = rnn.pack_padded_sequence(inputs(), [6, 5, 5, 2], batch_first=True)
    with pytest.raises(CaptureError, match="the input input is a packed sequence"):
        fxmerge.capture(nn.LSTM(INPUTS, 6, batch_first=True), (packed,))
