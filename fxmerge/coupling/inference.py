"""Runs coupling rules over a program: axes are coupled, and what each call demands of them is written down."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxmerge.coupling.axes import ONE, Axis, Coupler, leaf, product, twin
from fxmerge.coupling.call import Call, RuleRefusal, operator_name
from fxmerge.coupling.constants import Constants
from fxmerge.coupling.law import RESULT
from fxmerge.coupling.move import Move
from fxmerge.coupling.rule import Rule, RuleSet
from fxmerge.coupling.signature import Signature, labels_of
from fxmerge.coupling.views import Held, View, redeem
from fxmerge.ir.program import Program
from fxmerge.ir.reach import behind


@dataclass(frozen=True)
class Lawful:
    """One call under a law: the occurrences of each label by slot (operand name, or the result)."""

    node: fx.Node
    signature: Signature
    absent: frozenset[str]
    zero: frozenset[str]
    labels: Mapping[str, Mapping[str, Axis]]


@dataclass(frozen=True)
class Pin:
    """Axes that tolerate nothing, and why."""

    axis: Axis
    reason: str
    opaque: fx.Node | None = None


class Inference:
    """The axes of every value of a program, coupled as the rules say."""

    def __init__(
        self, program: Program, rules: RuleSet, pin_outputs: bool = True, tables: frozenset[str] = frozenset()
    ) -> None:
        self.program, self.rules, self.pin_outputs = program, rules, pin_outputs
        self.coupler = Coupler(self.equate, self.pin)
        self.tables = tables
        """Fixed tensors that move with the space of their last axis, as parameters do."""
        self.transformed = program.parameters | _states(program, rules) | tables
        self.constants = Constants(program, rules, self.transformed)
        self.tensors: dict[str, tuple[Axis, ...]] = {}
        self.values: dict[fx.Node, Any] = {}
        self.trained: set[fx.Node] = set()
        """Nodes made from parameters."""
        self.fed: set[fx.Node] = set()
        """Nodes made from inputs."""
        self.lawful: list[Lawful] = []
        self.equal: list[tuple[Axis, Axis]] = []
        self.stiff: list[Axis] = []
        self.pins: list[Pin] = []
        live = _live(program)
        for node in program.graph.nodes:
            if node in live:
                self._visit(node)
        for node in program.graph.nodes:
            if node.op == "get_attr" and node.target in self.transformed:
                self._tensor(str(node.target))  # unused: its axes are coupled with nothing
        self.unused = frozenset(self.tensors) - {str(node.target) for node in live if node.op == "get_attr"}

    # -- what rules report -------------------------------------------------------------------------

    def equate(self, a: Axis, b: Axis) -> None:
        """Two coupled axes scale alike."""
        if a is not b:
            self.equal.append((a, b))

    def rigid(self, axis: Axis) -> None:
        """An axis tolerates no scale and no mixing."""
        self.stiff.append(axis)

    def pin(self, axis: Axis, reason: str) -> None:
        """An axis tolerates nothing."""
        self.pins.append(Pin(axis, reason))

    def follow(self, node: fx.Node, law: str, labels: Mapping[str, Mapping[str, Axis]]) -> None:
        """A call follows a law along the coupled axes of each label."""
        form = Signature(operands=(), results=(), law=law)
        self.lawful.append(Lawful(node, form, frozenset(), frozenset(), labels))

    def held(self, node: fx.Node) -> tuple[Held, ...]:
        """The axes of a tensor value, promises included."""
        if node not in self.values:
            self.values[node] = self._constant(node)
        value: tuple[Held, ...] = self.values[node]
        return value

    def number(self, node: fx.Node) -> Tensor | None:
        """The numbers of a constant; None for any other value, and where a constant has no numbers."""
        return self.constants.value(node)

    # -- one node ----------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            for result in self.program.result:
                for axis in self.held(result):
                    plain = redeem(axis, self.coupler)
                    if self.pin_outputs:
                        self.pin(plain, "output")
            return
        value = node.meta.get("val")
        if node.op == "placeholder" or any(argument in self.fed for argument in node.all_input_nodes):
            self.fed.add(node)
        if node.op == "placeholder":
            self.values[node] = self._pinned(node.meta["val"].shape, "input")
        elif node.op == "get_attr":
            if node.target in self.transformed:
                self.values[node] = self._tensor(str(node.target))
                self.trained.add(node)
        elif isinstance(value, Tensor | tuple | list) and not self.constants.holds(node):
            if any(argument in self.trained for argument in node.all_input_nodes):
                self.trained.add(node)
            self.values[node] = self._call(node)

    def _tensor(self, name: str) -> tuple[Axis, ...]:
        if name not in self.tensors:
            self.tensors[name] = tuple(leaf(size) for size in self.program.tensors[name].shape)
            for axis in self.tensors[name][:-1] if name in self.tables else ():
                self.pin(axis, f"the rows of a fixed table, {name}")
        return self.tensors[name]

    def _pinned(self, shape: Sequence[int], reason: str) -> tuple[Axis, ...]:
        axes = tuple(leaf(size) if isinstance(size, int) else ONE for size in shape)
        for axis in axes:
            self.pin(axis, reason)
        return axes

    def _constant(self, node: fx.Node) -> tuple[Axis, ...]:
        """Axes of a constant: free where all slices are equal (rigid, unless all is zero), pinned where they differ."""
        value, axes = self.constants.value(node), []
        for dim, size in enumerate(node.meta["val"].shape):
            axis = leaf(size)
            if size > 1:
                if value is None or not _equal_along(value, dim):
                    self.pin(
                        axis, f"a constant that varies, from {Call.of(node) if node.op != 'get_attr' else node.target}"
                    )
                elif not self.constants.zero(node):
                    self.rigid(axis)
            axes.append(axis)
        return tuple(axes)

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            arguments: tuple[Any, ...] = node.args
            return self.values[arguments[0]][arguments[1]]
        if any(map(_sized_by_data, (node, *node.all_input_nodes))):
            return self._unknown(node, f"a size that depends on data, at {Call.of(node)}")
        rule = self.rules.find(node)
        if rule is None:
            return self._unknown(node, f"no rule for {operator_name(node)}")
        try:
            return self._couple(node, rule) if rule.moves is None else self._move(node, rule.moves)
        except Exception as error:  # whatever goes wrong in a rule costs this one call, and is reported
            said = str(error) if isinstance(error, RuleRefusal) else f"it raised {type(error).__name__}: {error}"
            return self._unknown(node, f"the rule of {Call.of(node)} does not know this call: {said.splitlines()[0]}")

    def _move(self, node: fx.Node, moves: Callable[[Move], Any]) -> Any:
        return _checked(moves(Move(node, Call.of(node).arguments, self)), node)

    def _unknown(self, node: fx.Node, reason: str) -> Any:
        """Without a rule that knows it, everything the call touches tolerates nothing."""
        opaque = node if node in self.trained else None
        if opaque is not None:
            for argument in node.all_input_nodes:
                if isinstance(argument.meta.get("val"), Tensor):
                    for axis in self.held(argument):
                        self.pins.append(Pin(redeem(axis, self.coupler), reason, opaque))
        value = node.meta["val"]
        if isinstance(value, Tensor):
            return self._pinned(value.shape, reason)
        return tuple(self._pinned(v.shape, reason) if isinstance(v, Tensor) else () for v in value)

    def _couple(self, node: fx.Node, rule: Rule) -> Any:
        call = Call.of(node)
        form = rule.signature(call)
        if form is None:
            raise RuleRefusal("it only fills tensors, and this call reads one that is no constant")
        labels: dict[str, dict[str, Axis]] = {}
        operands = dict(call.operands)
        for name, axes in zip(form.names, form.operands, strict=True):
            if axes is not None:
                held = self.held(operands[name])  # type: ignore[arg-type]
                for text, axis in zip(axes, held, strict=True):
                    self._occur(labels, form, text, name, redeem(axis, self.coupler))
        for slots in labels.values():
            first, *others = slots.values()
            for other in others:
                self.coupler.unify(first, other)
        results = [tuple(self._result(labels, form, text, i) for text in axes) for i, axes in enumerate(form.results)]
        for label in form.pinned:
            for axis in labels.get(label, {}).values():
                self.pin(axis, str(call))
        self._demand(node, call, form, labels)
        return results[0] if isinstance(node.meta["val"], Tensor) else _pad(results, node)

    def _occur(self, labels: dict[str, dict[str, Axis]], form: Signature, text: str, slot: str, axis: Axis) -> None:
        """Note which labels an axis of an operand holds; a product of labels splits it."""
        names = labels_of(text)
        if not names:
            return
        for label, part in zip(names, View(axis, [form.sizes[n] for n in names]).redeem(self.coupler), strict=True):
            slots = labels.setdefault(label, {})
            if slot in slots:  # one operand carries it twice: a diagonal is read
                self.coupler.unify(slots[slot], part)
                self.stiff += [slots[slot], part]
            slots.setdefault(slot, part)

    def _result(self, labels: dict[str, dict[str, Axis]], form: Signature, text: str, number: int) -> Axis:
        parts = []
        slot = RESULT if number == 0 else f"{RESULT}{number}"
        for label in labels_of(text):
            slots = labels.setdefault(label, {})
            if slot not in slots:
                first = next(iter(slots.values()), None)
                slots[slot] = twin(first) if first is not None else leaf(form.sizes[label])
            parts.append(slots[slot])
        return product(parts)

    def _demand(self, node: fx.Node, call: Call, form: Signature, labels: dict[str, dict[str, Axis]]) -> None:
        if not form.law:
            self.stiff += [axis for slots in labels.values() for axis in slots.values()]
            return
        absent: set[str] = set()
        zero: set[str] = set()
        for name, operand in call.operands:
            if operand is None:
                (absent if call.arguments.get(name) is None else set()).add(name)
            elif self.constants.zero(operand):
                zero.add(name)
        for name, value in call.arguments.items():
            if value is None:
                absent.add(name)
            elif isinstance(value, int | float) and value == 0:
                zero.add(name)
        self.lawful.append(Lawful(node, form, frozenset(absent), frozenset(zero), labels))


def _states(program: Program, rules: RuleSet) -> frozenset[str]:
    """Tensors that are running statistics wherever they are used."""
    found: dict[str, bool] = {}
    for node in program.graph.nodes:
        rule = rules.find(node) if node.op == "call_function" else None
        states = {n for name, n in Call.of(node).operands if name in rule.state} if rule and rule.state else set()
        for argument in node.all_input_nodes:
            if argument.op == "get_attr":
                name = str(argument.target)
                found[name] = found.get(name, True) and argument in states
    return frozenset(name for name, state in found.items() if state and name in program.tensors)


def _live(program: Program) -> set[fx.Node]:
    """The nodes on which an output depends, and the outputs themselves."""
    return behind([next(iter(reversed(program.graph.nodes)))])


def _sized_by_data(node: fx.Node) -> bool:
    """Whether a size of a value depends on the data, so that nobody knows it."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(v, Tensor) and not all(isinstance(n, int) for n in v.shape) for v in values)


def _equal_along(value: Tensor, dim: int) -> bool:
    first = value.narrow(dim, 0, 1)
    return bool(((value == first) | (value.isnan() & first.isnan())).all())


def _checked(moved: Any, node: fx.Node) -> Any:
    """The axes a rule returned, which must fit the result's shape."""
    value = node.meta["val"]
    if isinstance(value, Tensor):
        return _fitting(moved, value)
    if len(moved) != len(value):
        raise RuleRefusal(f"it gives {len(moved)} results, the call {len(value)}")
    return tuple(map(_fitting, moved, value))


def _fitting(axes: Sequence[Held], value: Tensor) -> tuple[Held, ...]:
    sizes = tuple(axis.size for axis in axes)
    if sizes != tuple(value.shape):
        raise RuleRefusal(f"it gives axes of sizes {list(sizes)}, the result is {list(value.shape)}")
    return tuple(axes)


def _pad(results: list[tuple[Axis, ...]], node: fx.Node) -> tuple[tuple[Axis, ...], ...]:
    """Axes of results the signature does not mention: empty ones have none."""
    if len(results) != len(node.meta["val"]):
        raise RuleRefusal(f"its signature has {len(results)} results, the call {len(node.meta['val'])}")
    return tuple(results)
