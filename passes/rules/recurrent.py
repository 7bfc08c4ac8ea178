"""Recurrent layers: the hidden units of a layer are one space, in every gate and in the state that is fed back.

    gate = f(W x + b + V h)         f is rigid where a gate opens and closes, odd or positive where it is the new value

A unit that changes its sign changes the rows of the new value (tanh is odd), the columns that read the unit, and what
reads the layer; gates (sigmoid) keep their rows. With relu a unit may be scaled instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxmerge.coupling import Rule
from fxmerge.coupling.axes import Axis, twin
from fxmerge.coupling.call import RuleRefusal
from fxmerge.coupling.law import RESULT
from fxmerge.coupling.move import Move
from fxmerge.coupling.rule import Inner
from fxmerge.coupling.views import Held
from passes.rules.recurrent_onnx import empty, rnn
from passes.rules.recurrent_onnx import lstm as lstm_onnx

GATES: Mapping[str, tuple[str, ...]] = {
    "lstm": ("rigid", "rigid", "odd", "rigid"),
    "gru": ("rigid", "rigid", "odd"),
    "rnn_tanh": ("odd",),
    "rnn_relu": ("positive",),
}
"""By kind of layer: what its units tolerate in each gate, in the order in which torch stores the gates."""

STACKS = tuple(f"aten.{kind}.input" for kind in GATES)
"""Layers upon layers in one call, as torch.export writes them."""

CELLS = tuple(f"aten.{kind}_cell.default" for kind in GATES)
"""One step of one layer."""

LAYERS = tuple(f"fxmerge.{kind}.default" for kind in GATES)
"""One layer in one direction (see `passes.spelling.recurrent_layer`)."""

LAST_CELL = "fxmerge.lstm_cell_state.default"

INNER: Mapping[str, Inner] = {
    "weight": (("write", "gates", -1), ("read", RESULT, -1)),
    "bias": (("write", "gates", -1),),
    "state": (None, ("write", RESULT, -1)),
    "cell": (None, ("write", RESULT, -1)),
}
"""What the operands of one layer do inside its loop."""

Products = Mapping[str, tuple[str, Axis, Axis | None]]
"""By weight: the name of what it is multiplied with, the axis of the weight and that of the other; None: the state."""


def kind_of(name: str) -> str:
    """The kind of layer: "gru" of "aten.gru.input", "aten.gru_cell.default" and "fxmerge.gru.default"."""
    return "lstm" if name == LAST_CELL else name.split(".")[1].removesuffix("_cell")


def _gates(move: Move, written: Mapping[str, Axis], products: Products) -> Axis:
    """Couple one layer in one direction; its hidden units. `written`: the axis of all gates in each operand."""
    functions = GATES[kind_of(str(move.node.target))]
    size = next(iter(written.values())).size // len(functions)
    terms = " + ".join(f"{products[name][0]} * {name}" if name in products else name for name in written)
    first = next(iter(written.values()))
    hidden = twin(move.plain(move.narrow([first], 0, 0, size)[0]))
    for number, function in enumerate(functions):
        place = (number * size, (number + 1) * size)
        gate = {name: move.narrow([axis], 0, *place)[0] for name, axis in written.items()}
        gate[RESULT] = twin(hidden) if function == "rigid" else hidden
        labels: dict[str, Mapping[str, Held]] = {"unit": gate}
        for weight, (other, axis, held) in products.items():
            labels[other] = {weight: axis, other: hidden if held is None else held}
        move.follow(f"{function}({terms})", labels)
    return hidden


def _vectors(move: Move, *names: str) -> dict[str, Axis]:
    """The only axis of each of these operands that was given."""
    known = {name for name, node in move.operands if node is not None}
    return {name: move.axes(name)[0] for name in names if name in known}


# -- one layer in one direction, its input already mapped to the gates ---------------------------------------


def _layer(move: Move) -> Sequence[Held]:
    time, batch, gates = move.axes("gates")
    rows, columns = move.axes("weight")
    written = {"gates": gates, "weight": rows, **_vectors(move, "bias")}
    hidden = _gates(move, written, {"weight": ("hidden", columns, None)})
    for name in _vectors(move, "state", "cell"):
        _start(move, name, batch, [hidden])
    move.pin(time)
    move.rigid(batch)
    return [time, batch, hidden]


def _last_cell(move: Move) -> Sequence[Held]:
    return _layer(move)[1:]


def _start(move: Move, name: str, batch: Axis, hidden: Sequence[Axis]) -> None:
    """A state that is given has the units of the layers that start with it; one that is zero has none."""
    value = move.value(name)
    if value is None or bool(value.count_nonzero()):
        *rows, own, units = move.axes(name)
        move.same([batch, own])
        move.same([*hidden, units])
        for axis in rows:
            move.pin(axis)


layer = Rule(LAYERS, moves=_layer, inner=INNER, exact=False, owner=__name__)
last_cell = Rule((LAST_CELL,), moves=_last_cell, inner=INNER, exact=False, owner=__name__)


# -- one step of one layer, its input included ---------------------------------------------------------------


def _step(move: Move) -> Sequence[Any]:
    if len(move.axes("input")) != 2:
        raise RuleRefusal("a cell on one row alone has no rule: give it a batch")
    (batch, below), (rows, reads), (fed, columns) = (move.axes(name) for name in ("input", "w_ih", "w_hh"))
    written = {"w_ih": rows, "w_hh": fed, **_vectors(move, "b_ih", "b_hh")}
    hidden = _gates(move, written, {"w_ih": ("input", reads, below), "w_hh": ("hidden", columns, None)})
    for state in (operand for operand, _ in move.operands if operand.startswith("hx")):
        _start(move, state, batch, [hidden])
    move.rigid(batch)
    each = [batch, hidden]
    return [each] * len(move.results) if len(move.results) > 1 else each


cell = Rule(CELLS, moves=_step, exact=False, owner=__name__)


# -- a stack of layers in one or both directions, as torch has it --------------------------------------------


def _stack(move: Move) -> Sequence[Sequence[Held]]:
    directions, each = (2 if move["bidirectional"] else 1), (4 if move["has_biases"] else 2)
    count = move["num_layers"] * directions
    if len(move.arguments["params"]) != count * each:
        raise RuleRefusal("layers that project their state (proj_size) have no rule: leave proj_size out")
    *outer, below = move.axes("input")
    time, batch = reversed(outer) if move["batch_first"] else outer
    name, layers = "input", []
    for number in range(count):
        w, v, *biases = (f"params{number * each + i}" for i in range(each))
        (rows, reads), (fed, columns) = move.axes(w), move.axes(v)
        written = {w: rows, v: fed, **_vectors(move, *biases)}
        layers.append(_gates(move, written, {w: (name, reads, below), v: ("hidden", columns, None)}))
        if (number + 1) % directions == 0:
            name, below = "below", move.concat(layers[-directions:])
    for state in (operand for operand, _ in move.operands if operand.startswith("hx")):
        _start(move, state, batch, layers)
    move.pin(time)
    move.rigid(batch)
    return [[*outer, below], *(_ends(move, i, batch, layers) for i in range(1, len(move.results)))]


def _ends(move: Move, number: int, batch: Axis, layers: Sequence[Axis]) -> list[Held]:
    """The states at the end, layer upon layer: one axis for the units of all layers, where anybody reads them."""
    read = any(user.args[1] == number for user in move.node.users)
    units = move.same(layers) if read else move.blank(layers[0].size)
    return [move.own(len(layers)), batch, units]


lstm, gru, rnn_tanh, rnn_relu = (
    Rule((op,), moves=_stack, empty=empty, onnx=onnx, exact=False, owner=__name__)
    for op, onnx in zip(STACKS, (lstm_onnx, None, rnn("Tanh"), rnn("Relu")), strict=True)
)
