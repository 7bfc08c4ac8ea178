"""A SuperNet: several parents joined by merge and unmerge nodes into one runnable program."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap, Form, Map
from fxmerge.ir.merge import NODES
from fxmerge.ir.program import Program
from fxmerge.ir.shown import showing
from fxmerge.ir.space import AxisExpr, Spaces

NAMED = 12
"""So many tensors are named in one note."""


@dataclass(frozen=True)
class Feature:
    """A place where the SuperNet shows what a parent would see: its output `port`, node `node` of parent `parent`."""

    parent: int
    port: str
    node: fx.Node
    final: bool
    """Whether a head (or an output) reads it; the others are inner features."""


@dataclass(frozen=True)
class Place:
    """What a map carries: per parent the value, or the tensor by its name, and its axis there."""

    role: str
    """ "write": the parents write this axis and the map merges it; "read": they read it and the map unmerges it."""
    of: tuple[fx.Node | str, ...]
    axis: int
    merged: AxisExpr
    """The axis in the merged model's spaces (`SuperNet.spaces`): its concatenated parts, groups and factors."""
    parents: tuple[AxisExpr, ...]
    """Per parent: the axis in its own spaces (`SuperNet.parents_spaces`)."""


@dataclass(frozen=True)
class Scale:
    """Learnt factors, one for each unit, of what one linear map alone writes into a stream (LayerScale)."""

    written: fx.Node
    """The template's node that writes."""
    tensor: str
    """The template's name of the factors."""


@dataclass(frozen=True)
class Stream:
    """A residual stream that takes any orthonormal basis once scales and shifts of its norms are read elsewhere."""

    centred: bool
    """Whether a norm subtracts the mean: the vector of ones then stays where it is."""
    places: tuple[fx.Node, ...]
    """The template's nodes at which it is normed."""
    norms: tuple[fx.Node, ...]
    post: tuple[fx.Node, ...] = ()
    """The norms whose result goes on as the stream itself."""
    scales: tuple[Scale, ...] = ()


@dataclass(frozen=True)
class Part:
    """A block of the template: the parameters in it, and whether all tasks share it or each has its own."""

    name: str
    parameters: tuple[str, ...]
    apart: bool = False


@dataclass(frozen=True)
class Own:
    """The parents' versions of a tensor that the SuperNet has as its own (a norm scale), each fitted to its shape.

    `seen[k]` is one where parent k has a coordinate and zero where it has none.
    """

    values: tuple[Tensor, ...]
    seen: tuple[Tensor, ...]
    names: tuple[str, ...] = ()
    """What each parent calls it."""

    def average(self, weights: Sequence[float]) -> Tensor:
        """Weighted mean over the parents that have a coordinate; of all that have it where their weights are zero.

        A coordinate that no parent has (of a wider result) gets the mean of the others.
        """
        total = sum(w * v for w, v in zip(weights, self.values, strict=True))
        count = sum(w * s for w, s in zip(weights, self.seen, strict=True))
        plain = sum(self.values) / torch.clamp_min(_tensor(sum(self.seen)), 1)
        mean = torch.where(_tensor(count) > 0, total / torch.clamp_min(_tensor(count), 1e-30), plain)
        known = _tensor(sum(self.seen)) > 0
        if known.is_meta or bool(known.all()):
            return _tensor(mean)
        return torch.where(known, _tensor(mean), _tensor(mean)[known].mean())


@dataclass(frozen=True)
class SuperNet:
    """K parents side by side, as a program whose call order is the one written in the paper or the hoisted one.

    The outputs of `program` are one per task and parent output ("mnist.logits"), then one per feature ("mnist/0").
    Maps are shared by every program made from this one, so training one trains all.
    """

    program: Program
    parents: tuple[Program, ...]
    template: int
    features: tuple[Feature, ...]
    own: Mapping[str, Own]
    places: Mapping[str, Place] = field(default_factory=dict)
    """By name of the map."""
    inputs: tuple[tuple[str, ...], ...] = ()
    """Per parent: the SuperNet's inputs that are its own, in its order."""
    spaces: Spaces | None = None
    """Of the template at the merged model's sizes: sizes, roles, tolerances, and which space is within which."""
    parents_spaces: tuple[Spaces, ...] = ()
    mapless: Mapping[str, str] = field(default_factory=dict)
    """Weights of its own on which maps ought to stand and cannot, and why: no mean of unrelated ones is a weight."""
    streams: Mapping[str, Stream] = field(default_factory=dict)
    """By space: the streams that may be turned."""
    twins: Mapping[str, tuple[fx.Node, ...]] = field(default_factory=dict)
    """By name of a node of the trunk that all tasks share, or of the first task's: the node of every parent that does
    the same."""
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By name of a node of the first task's trunk: per task the node of its own; none where all share one trunk."""
    trunk: Mapping[fx.Node, str] = field(default_factory=dict)
    """Name of the trunk's node for every node of the template."""
    parts: tuple[Part, ...] = ()
    """The blocks in order, from the inputs on; heads aside."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By name of a tensor of the template: what each parent calls its own."""
    lookups: frozenset[str] = frozenset()
    """Operators in it that pick rows of a tensor by whole numbers."""
    partly: frozenset[str] = frozenset()
    """The template's tensors of which some calls read a part alone: only what is read is merged."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """By space: the group of what an alignment did, of which maps hold more, as the scales of norms."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(parent.task for parent in self.parents)

    @property
    def merged(self) -> tuple[int, ...]:
        """The parents whose weights are merged: all but those that teach only."""
        return tuple(k for k, parent in enumerate(self.parents) if parent.teacher is None or not parent.teacher.only)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The tasks' outputs, features aside."""
        return tuple(f"{parent.task}.{port.name}" for parent in self.parents for port in parent.outputs)

    @property
    def shared(self) -> bool:
        """Whether the tasks have anything in common that a method could fill or train."""
        return bool(self.places or self.own)

    @property
    def together(self) -> bool:
        """Whether all parents take the same inputs."""
        return len(set(self.inputs)) == 1

    def is_fresh(self, name: str) -> bool:
        """Whether a parent's own tensor belongs to a head that nothing has trained yet."""
        if name not in self.program.origins:
            return False
        origin = self.program.origins[name]
        teacher = self.parents[origin.owner].teacher
        return teacher is not None and any(origin.name in (head.weight, head.bias) for head in teacher.heads)

    def given(self, k: int, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Samples of parent k, by its own input names, by the SuperNet's."""
        return {ours: samples[port.name] for ours, port in zip(self.inputs[k], self.parents[k].inputs, strict=True)}

    def with_program(self, program: Program) -> SuperNet:
        """The same SuperNet as another program."""
        return replace(self, program=program)

    def maps(self) -> Iterator[tuple[str, Map]]:
        """Every merge and unmerge map once, with the name of the axis map that holds it."""
        seen: set[int] = set()
        for name, module in self.program.maps.items():
            assert isinstance(module, AxisMap)
            for number, block in enumerate(module.blocks):
                if isinstance(block, Map) and id(block) not in seen:
                    seen.add(id(block))
                    yield (name if len(module.blocks) == 1 else f"{name}.{number}"), block

    def unwritten(self) -> int:
        """How many units of the merged model no parent has, in all its spaces."""
        return sum(int(block.bare().sum()) for _, block in self.maps() if block.kind == "merge")

    def nodes_of(self, name: str) -> list[fx.Node]:
        """The merge, unmerge and fold nodes at which the map of this name stands, in order."""
        nodes = self.program.graph.nodes
        return [n for n in nodes if n.target in NODES and any(a.target == name for a in n.all_input_nodes)]

    def averaged(self, *, trained: bool, solved: Collection[str] = ()) -> dict[str, int]:
        """The parameters that are merged as a plain average, and the count of numbers in each.

        Those on which no map stands. Where they are `trained` they only start there, and only those are counted for
        which a mean is no start: `mapless`. What merely scales or shifts along a space, as a norm does, is a start.
        """
        own = self.program.tensors
        names = [name for name in self.own if name in self.program.parameters and name not in solved]
        return {name: own[name].numel() for name in names if not trained or name in self.mapless}

    def averaged_note(self, *, trained: bool, solved: Collection[str] = ()) -> str:
        """What to say of them; empty if there are none."""
        found = self.averaged(trained=trained, solved=solved)
        if not found:
            return ""
        named = [f"{name} ({self.mapless[name]})" if name in self.mapless else name for name in found]
        more = f", and {len(named) - NAMED} more" if len(named) > NAMED else ""
        start = "start from" if trained else "are"
        return f"{sum(found.values())} parameters {start} a plain average: {', '.join(named[:NAMED])}{more}"

    def start(self, weights: Sequence[float], form: Form | None = None, seed: int = 0) -> SuperNet:
        """Set maps and own tensors to the weighted average of the parents; with `form`, trainable in that form."""
        generator = torch.Generator().manual_seed(seed)
        for _, block in self.maps():
            block.average(weights)
            if form is not None:
                with torch.no_grad():
                    matrices = [block.matrix(k) for k in range(len(block.sizes))]
                block.start(matrices, form, generator)
        tensors = dict(self.program.tensors)
        for name, own in self.own.items():
            tensors[name] = own.average(weights).to(tensors[name].dtype)
        return replace(self, program=self.program.evolve(tensors=tensors))

    def teacher(self, k: int, features: Sequence[Feature]) -> Program:
        """Parent k with the given features of its own as outputs; the model it stands for, where that is another."""
        parent = self.parents[k]
        wanted = {f.port: f.node for f in features if f.parent == k}
        if parent.teacher is None:
            return showing(parent, wanted)
        theirs = dict(zip(parent.result, parent.teacher.program.result, strict=True))
        return showing(parent.teacher.program, {port: theirs[node] for port, node in wanted.items()})


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
