"""A traced model as a value: an fx graph of functional operators, its tensors and its ports."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, fx, nn

from fxmerge.errors import DataError
from fxmerge.ir.fresh_head import FreshHead
from fxmerge.ir.module import module_of
from fxmerge.ir.port import Port as Port
from fxmerge.ir.row_blocks import Block, block_of, in_blocks
from fxmerge.ir.shapes import choose, keep, kept, propagate

T = TypeVar("T")

INTEGER_CALLS: frozenset[Callable[..., Any]] = frozenset(
    {
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.mod,
        operator.neg,
        operator.getitem,
        operator.eq,
        operator.ge,
        operator.gt,
        operator.le,
        operator.lt,
        operator.ne,
        operator.pow,
        operator.truediv,
        torch.sym_max,
        torch.sym_min,
        torch.sym_int,
        torch.sym_float,
        torch.sym_ite,
        torch.sym_not,
    }
)
"""Plain Python callables that may stand in a graph: arithmetic on sizes."""


_TAKEN: WeakSet[fx.Graph] = WeakSet()
"""The graphs that a program has: their values are not written over."""


class Origin(NamedTuple):
    """Whose a tensor of a SuperNet is, and what that parent calls it."""

    owner: int
    name: str
    trained: bool = True
    """Whether the parent trained it; a fixed table is one of its buffers."""


@dataclass(frozen=True)
class Teacher:
    """The model that a program stands for. Outputs correspond by position, inputs by name."""

    program: Program
    why: str
    """Why it cannot stand there itself."""
    heads: tuple[FreshHead, ...] = ()
    """Where nothing of its own is in the program that stands for it."""

    @property
    def only(self) -> bool:
        """Whether it only teaches: none of its weights is merged."""
        return bool(self.heads)


@dataclass(frozen=True)
class Program:
    """What every pass takes and returns. Never edited in place: `evolve` makes the next one.

    `graph` holds `placeholder` nodes (one per input port, in order), `get_attr` nodes that name an entry of
    `tensors` or of `maps`, `call_function` nodes and one `output` node with a tuple (one entry per output port).
    Every node's `meta["val"]` is its value on fake tensors at concrete sizes, `meta["source"]` the user's
    source line ("model.py:42") where one is known, `meta["by"]` the pass or rule that made the node.
    """

    graph: fx.Graph
    tensors: Mapping[str, Tensor]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: frozenset[str]
    """Names of the tensors that were trained; the others are buffers and constants."""
    maps: Mapping[str, nn.Module] = field(default_factory=dict)
    """Merge and unmerge maps of a SuperNet, by name."""
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Of a SuperNet: the origin of each tensor that is a parent's own, by its name here."""
    task: str = "model"
    labels: tuple[str, ...] | None = None
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    """Sample inputs by input name, rows first."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Second names of tied tensors: alias -> name in `tensors`."""
    assets: Mapping[str, bytes] = field(default_factory=dict)
    """Small files that travel with the model, by file name: "tokenizer.json", "config.json"."""
    notes: tuple[str, ...] = ()
    """What capture or a pass had to decide and the user should know."""
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Smallest and largest value of each dynamic size."""
    turned: Mapping[str, int] = field(default_factory=dict)
    """Inputs that the model itself takes with the batch on another axis than the first, and that axis."""
    hints: Mapping[str, int] = field(default_factory=dict)
    """The concrete sizes at which every node's `meta["val"]` was computed; chosen when empty."""
    teacher: Teacher | None = None
    """The model whose outputs it is to give, where that is another one than itself."""

    def __post_init__(self) -> None:
        self.graph.lint()
        hints = dict(self.hints) or choose(self.graph, self.inputs, self.outputs, self.tensors, self.ranges)
        found = propagate(self.graph, self.inputs, self.tensors, self.maps, hints)
        if self.graph in _TAKEN and not kept(found):  # another program reads it at the sizes of its own
            graph, where = self.copy_graph()
            object.__setattr__(self, "graph", graph)
            found = {where[node]: known for node, known in found.items()}
        keep(found)
        _TAKEN.add(self.graph)
        object.__setattr__(self, "hints", hints)
        object.__setattr__(self, "_cache", {})

    # -- making the next program -------------------------------------------------------------------

    def copy_graph(self) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        """A copy of the graph to edit, and where each node went."""
        graph = fx.Graph()
        where: dict[fx.Node, fx.Node] = {}
        result = graph.graph_copy(self.graph, where)
        last = next(iter(reversed(self.graph.nodes)))
        out = graph.output(result)
        out.meta = dict(last.meta)
        where[last] = out
        return graph, where

    def evolve(self, **changes: Any) -> Program:
        """This program with fields replaced; unused tensors and maps are dropped with the graph that used them."""
        program = replace(self, **changes)
        used = {node.target for node in program.graph.nodes if node.op == "get_attr"}
        tensors = {name: t for name, t in program.tensors.items() if name in used}
        maps = {name: m for name, m in program.maps.items() if name in used}
        if len(tensors) < len(program.tensors) or len(maps) < len(program.maps):
            object.__setattr__(program, "tensors", tensors)
            object.__setattr__(program, "maps", maps)
            object.__setattr__(program, "origins", {n: o for n, o in program.origins.items() if n in tensors})
            object.__setattr__(program, "parameters", program.parameters & tensors.keys())
            aliases = {a: n for a, n in program.aliases.items() if n in tensors}
            object.__setattr__(program, "aliases", aliases)
        return program

    def only(self, names: Iterable[str], *, inputs: bool = False) -> Program:
        """This program with just the named outputs, and no node that they do not need (`inputs`: nor any input)."""
        keep = set(names)
        graph, _ = self.copy_graph()
        last = next(iter(reversed(graph.nodes)))
        results: Any = last.args[0]
        chosen = [(p, n) for p, n in zip(self.outputs, results, strict=True) if p.name in keep]
        last.args = (tuple(n for _, n in chosen),)
        prune(graph)
        ports = self.inputs
        if inputs:
            placeholders = [n for n in graph.nodes if n.op == "placeholder"]
            ports = tuple(p for p, n in zip(ports, placeholders, strict=True) if n.users)
            for node in placeholders:
                if not node.users:
                    graph.erase_node(node)
        return self.evolve(graph=graph, inputs=ports, outputs=tuple(p for p, _ in chosen))

    @property
    def shown(self) -> Program:
        """The model that the outputs are meant to be those of: itself, or its teacher."""
        return self if self.teacher is None else self.teacher.program

    # -- reading -----------------------------------------------------------------------------------

    def get(self, analysis: Callable[[Program], T]) -> T:
        """The result of an analysis, computed once for this program."""
        cache: dict[Any, Any] = self.__dict__["_cache"]
        if analysis not in cache:
            cache[analysis] = analysis(self)
        result: T = cache[analysis]
        return result

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self.graph.nodes)

    @property
    def result(self) -> tuple[fx.Node, ...]:
        """The nodes that are the outputs, one per output port."""
        last = next(iter(reversed(self.graph.nodes)))
        results: Any = last.args[0]
        return tuple(results)

    @property
    def placeholders(self) -> tuple[fx.Node, ...]:
        return tuple(node for node in self.graph.nodes if node.op == "placeholder")

    def count(self) -> int:
        """Number of trained numbers (each tied tensor once)."""
        return sum(self.tensors[name].numel() for name in self.parameters)

    def text(self) -> str:
        """Stable, readable form: one line per node, as golden tests and diffs use it."""
        lines = [f"program {self.task}"]
        number = {node: f"%{i}" for i, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            if node.op == "output":
                lines.append("return " + ", ".join(number[n] for n in node.args[0]))
                continue
            shown = fx.node.map_arg((node.args, node.kwargs), lambda n: _Name(number[n]))
            args = [repr(a) for a in shown[0]] + [f"{k}={v!r}" for k, v in sorted(shown[1].items())]
            what = f"{target_name(node.target)}({', '.join(args)})" if node.op == "call_function" else node.target
            kind = "" if node.op == "call_function" else node.op + " "
            lines.append(f"{number[node]} = {kind}{what}  : {_shape_text(node.meta.get('val'))}")
        return "\n".join(lines) + "\n"

    def only_size(self, size: int | str) -> int | None:
        """The only value that a size has; None for a dynamic one."""
        low, high = self.ranges.get(size, (0, 1)) if isinstance(size, str) else (size, size)
        return low if low == high else None

    # -- running -----------------------------------------------------------------------------------

    @property
    def block(self) -> Block | None:
        """How the rows of a call are cut; None for a program that takes any number of rows."""
        return block_of(self.inputs, self.outputs, self.ranges)

    @property
    def rows(self) -> int | None:
        """The only number of rows that the graph itself takes; None if it takes several."""
        return self.block.rows if self.block is not None and self.block.exact else None

    @cached_property
    def _runnable(self) -> tuple[fx.GraphModule, dict[str, str]]:
        module, names = module_of(self.graph, self.tensors, self.parameters, self.maps)
        if self.block is not None:
            kind: Any = type(module)  # a class of this module alone
            kind.forward = in_blocks(kind.forward, self.block)
        return module, names

    @property
    def module(self) -> fx.GraphModule:
        """The runnable module. Its parameters and buffers are `tensors` (shared, not copied), its maps `maps`.

        They have the same names in it, but for those that no attribute can have ("class.weight"). It takes any number
        of rows, also where the graph takes one number alone.
        """
        return self._runnable[0]

    @property
    def attributes(self) -> Mapping[str, str]:
        """By name of a tensor or map: its name in `module`."""
        return self._runnable[1]

    def run(self, inputs: Mapping[str, Tensor], tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Outputs by name. `tensors` replaces entries of the program's own, for this call only."""
        args = tuple(inputs[port.name] for port in self.inputs)
        if tensors is None:
            values = self.module(*args)
        else:
            module, names = self._runnable
            values = torch.func.functional_call(module, {names[name]: tensor for name, tensor in tensors.items()}, args)
        return {port.name: value for port, value in zip(self.outputs, values, strict=True)}

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run on positional or named inputs: the one output, or a dict of outputs by name."""
        results = self.run(by_name(self.inputs, args, kwargs))
        return next(iter(results.values())) if len(results) == 1 else results


def by_name(ports: Sequence[Port], args: Sequence[Tensor], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Positional and named inputs, by name. Raises `DataError` unless there is one for every port, and no more."""
    names = [port.name for port in ports]
    given = dict(zip(names, args, strict=False)) | dict(named)
    extra = [str(name) for name in named if name not in names or name in names[: len(args)]]
    missing = [name for name in names if name not in given]
    if len(args) > len(names) or extra or missing:
        what = f"{len(args) + len(named)} inputs" + (f", among them {extra[0]!r}," if extra else "")
        raise DataError(
            f"{what} for a program that takes {len(names)}" + (f"; {missing[0]!r} is missing" if missing else ""),
            f"give {', '.join(names)}",
        )
    return given


def prune(graph: fx.Graph) -> None:
    """Erase every node that no output needs (inputs aside): all calls are functional, so unused means unneeded."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


class _Name(str):
    def __repr__(self) -> str:
        return str(self)


def target_name(target: Any) -> str:
    """Name of a call target: "aten.linear.default" for operators, "operator.mul" for Python callables."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "") or ""
    return f"{module.removeprefix('_')}.{target.__name__}"


def _shape_text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_shape_text(v) for v in value) + ")"
    return type(value).__name__
