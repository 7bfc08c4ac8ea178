"""Trace a PyTorch model into a `Program` with torch.export, batch (and sequence) sizes kept dynamic."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from fxmerge.errors import CaptureError
from fxmerge.ir.program import Port, Program

ROWS = 3
"""Rows of the sample used for tracing: with one row, torch.export takes the batch for a constant."""

LARGEST = 1 << 30
"""Upper bound of a dynamic size that the model does not bound."""


def capture(
    model: nn.Module,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    task: str = "model",
    labels: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
) -> Program:
    """Trace `model` in eval mode on `inputs` (positional values or keyword values; rows first).

    Values that are no tensors are bound as constants. All rows given are kept as the program's samples.
    The batch, and the second axis of integer (token) inputs, stay dynamic unless the model forbids it; a note says so.
    `dynamic_shapes` overrides that: a dict from input name to the form torch.export takes.
    Raises `CaptureError` if the model cannot be traced.
    """
    names, tensors, constants = _bind(model, inputs)
    rows = _rows(tensors)
    bound = _Bound(model, names, constants)
    with _eval(model), torch.no_grad(), _quiet():
        program, notes = _trace(bound, {n: rows[n] for n in names}, dynamic_shapes)
    samples = {n: t.detach() for n, t in tensors.items()}
    return program.evolve(task=task, labels=tuple(labels) if labels else None, samples=samples, notes=notes)


def from_exported(
    exported: ExportedProgram,
    *,
    names: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    prefix: str = "",
) -> Program:
    """A program from a decomposed `ExportedProgram`: state becomes `get_attr` nodes, mutated buffers are not returned.

    Dynamic sizes that were equal in the sample are taken for one size only if the program does not run otherwise.
    Raises `CaptureError` if it runs at no sizes but those of the sample.
    """
    try:
        return _assemble(exported, _Sizes(exported), names, outputs, prefix)
    except RuntimeError:
        pass
    try:
        return _assemble(exported, _Sizes(exported, merge=True), names, outputs, prefix)
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise CaptureError(
            f"the traced model does not run at other sizes than those of the sample: {first}",
            "trace it with fixed sizes (dynamic_shapes), or remove what depends on one size",
        ) from error


def _assemble(
    exported: ExportedProgram, sizes: _Sizes, names: Sequence[str] | None, outputs: Sequence[str] | None, prefix: str
) -> Program:
    signature = exported.graph_signature
    state = {**exported.state_dict, **exported.constants}
    canonical = _untie({k: v for k, v in state.items() if isinstance(v, Tensor)})
    graph = fx.Graph()
    where: dict[fx.Node, fx.Node] = {}
    tensors: dict[str, Tensor] = {}
    parameters: set[str] = set()
    ports: list[Port] = []
    user_inputs = 0
    made: dict[str, fx.Node] = {}
    attributes: list[tuple[fx.Node, str]] = []
    nodes = list(exported.graph.nodes)
    for node, spec in zip((n for n in nodes if n.op == "placeholder"), signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                continue  # a constant the export burnt in
            name = names[user_inputs] if names else node.name
            user_inputs += 1
            where[node] = graph.placeholder(re.sub(r"\W", "_", name))
            ports.append(Port(name, sizes.shape(value), value.dtype))
        elif spec.target is not None and spec.target in canonical:
            target = canonical[spec.target]
            name = target.removeprefix(prefix)
            tensors[name] = state[target].detach()
            if spec.kind is InputKind.PARAMETER:
                parameters.add(name)
            attributes.append((node, name))
    for node, name in attributes:
        made[name] = made.get(name) or graph.get_attr(name)
        where[node] = made[name]
    for node in nodes:
        if node.op == "call_function":
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                raise CaptureError(
                    f"the traced model branches on data: {node.target} at {source_of(node) or 'an unknown line'}",
                    "merge the part of the model without it, or write it with ordinary operators",
                )
            where[node] = graph.node_copy(node, lambda n: where[n])
            where[node].meta = {"source": source_of(node)} if source_of(node) else {}
        elif node.op == "get_attr":
            raise CaptureError(
                f"the traced model refers to a graph of its own ({node.target})", "trace it without control flow"
            )
    results, result_ports = [], []
    kept = 0
    returned: Any = nodes[-1].args[0]
    for value, spec in zip(returned, signature.output_specs, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT or not isinstance(value, fx.Node):
            continue
        fake = value.meta["val"]
        name = outputs[kept] if outputs else ("logits" if kept == 0 else f"output{kept}")
        kept += 1
        results.append(where[value])
        result_ports.append(Port(name, sizes.shape(fake), fake.dtype))
    if not results:
        raise CaptureError("the model returns no tensor", "return at least one tensor, or a dict of tensors")
    graph.output(tuple(results))
    aliases = {k.removeprefix(prefix): v.removeprefix(prefix) for k, v in canonical.items() if k != v}
    return Program(
        graph=graph,
        tensors=tensors,
        inputs=tuple(ports),
        outputs=tuple(result_ports),
        parameters=frozenset(parameters),
        aliases={a: n for a, n in aliases.items() if n in tensors},
        ranges=sizes.ranges,
    ).evolve()


def source_of(node: fx.Node) -> str:
    """The user's own source line of a node as "file.py:line", or ""."""
    if "source" in node.meta:
        return str(node.meta["source"])
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [f for f in frames if "/torch/" not in f[0] and not f[0].startswith("<")] or frames
    return f"{own[-1][0].replace(chr(92), '/').rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""


class _Sizes:
    """Names the symbolic sizes of an exported program: the batch, the sequence, then others.

    With `merge`, sequences that were equally long in the sample are one size.
    """

    def __init__(self, exported: ExportedProgram, merge: bool = False) -> None:
        self.merge = merge
        self.lengths: dict[int, str] = {}
        self.names: dict[str, str] = {}
        self.ranges: dict[str, tuple[int, int]] = {}
        self.rows: int | None = None
        for node in exported.graph.nodes:
            value = node.meta.get("val")
            if node.op != "placeholder" or not isinstance(value, Tensor):
                continue
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt) and str(size) not in self.names:
                    self._name(size, "batch" if axis == 0 else "sequence", exported)

    def _name(self, size: torch.SymInt, wish: str, exported: ExportedProgram) -> None:
        name, number = wish, 2
        rows = size.node.hint if wish == "batch" else None
        if rows is not None and self.rows in (None, rows):  # one batch: first axes of one length are one size
            self.rows = rows
            self.names[str(size)] = wish
            return self._bound(size, wish, exported)
        length = size.node.hint if wish != "batch" and self.merge else None
        if length in self.lengths:
            self.names[str(size)] = self.lengths[length]
            return self._bound(size, self.lengths[length], exported)
        while name in self.names.values():
            name, number = f"{wish}{number}", number + 1
        self.names[str(size)] = name
        if length is not None:
            self.lengths[length] = name
        self._bound(size, name, exported)

    def _bound(self, size: torch.SymInt, name: str, exported: ExportedProgram) -> None:
        bounds = exported.range_constraints.get(size.node.expr)
        if bounds is not None:
            low = int(bounds.lower) if bounds.lower.is_Integer else 0
            high = int(bounds.upper) if bounds.upper.is_Integer else LARGEST
            before = self.ranges.get(name, (0, LARGEST))
            self.ranges[name] = (max(low, before[0]), min(high, before[1]))

    def shape(self, value: Tensor) -> tuple[int | str, ...]:
        return tuple(self.names.get(str(s), str(s)) if isinstance(s, torch.SymInt) else int(s) for s in value.shape)


class _Seen:
    """A name list that survives tracing: torch.export puts attributes of the module itself back as they were."""

    names: tuple[str, ...] = ()


class _Bound(nn.Module):
    """The model as a function of its tensor inputs alone, returning a flat tuple of tensors."""

    def __init__(self, model: nn.Module, names: Sequence[str], constants: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.constants = model, tuple(names), dict(constants)
        self.positional = tuple(n for n in self.names if n.startswith("*"))
        self.seen = _Seen()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors the last call returned."""
        return self.seen.names

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, args, strict=True))
        result = self.model(**named, **self.constants)
        flat = list(_flatten(result))
        self.seen.names = tuple(name for name, _ in flat)
        return tuple(value for _, value in flat)


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "logits", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            prefix = name or "output"
            yield from _flatten(item, f"{prefix}{number}")
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            yield from _flatten(getattr(value, key), f"{name}.{key}" if name else key)


def _bind(model: nn.Module, inputs: Any) -> tuple[list[str], dict[str, Tensor], dict[str, Any]]:
    """Input names, tensors by name, and the other values by name."""
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    else:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        known = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
        if len(known) < len(inputs):
            raise CaptureError(
                f"{len(inputs)} positional inputs for a forward with {len(known)} named ones ({', '.join(known)})",
                "give the inputs as a dict of keyword arguments",
            )
        given = dict(zip(known, inputs, strict=False))
    tensors = {k: v for k, v in given.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CaptureError("no tensor among the sample inputs", "give at least one tensor input")
    return list(tensors), tensors, {k: v for k, v in given.items() if k not in tensors}


def _rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`ROWS` rows of every input that has the batch axis, repeating rows where there are fewer."""
    count = max((t.shape[0] for t in tensors.values() if t.ndim), default=0)
    index = torch.arange(ROWS) % max(count, 1)
    return {n: t[index] if t.ndim and t.shape[0] == count else t for n, t in tensors.items()}


def _trace(bound: _Bound, rows: Mapping[str, Tensor], given: Any) -> tuple[Program, tuple[str, ...]]:
    """Trace with as many dynamic sizes as the model allows, and a note for each one it does not."""
    args = tuple(rows.values())
    if given is not None:
        if isinstance(given, Mapping):
            given = tuple(given.get(n) for n in rows)
        return _attempt(bound, args, tuple(given)), ()
    tokens = {n for n, t in rows.items() if t.ndim >= 2 and not t.is_floating_point()}
    length = {t.shape[1] for n, t in rows.items() if n in tokens}
    batch = [{0: Dim.DYNAMIC} if t.ndim and t.shape[0] == ROWS else None for t in args]
    both = [
        {**(b or {}), 1: Dim.DYNAMIC} if n in tokens or (t.ndim >= 2 and t.shape[1] in length) else b
        for (n, t), b in zip(rows.items(), batch, strict=True)
    ]
    plans: list[tuple[Any, tuple[str, ...]]] = []
    if tokens:
        plans.append((tuple(both), ()))
    plans.append(
        (tuple(batch), ("the sequence length is fixed: the model does not trace with a dynamic one",) if tokens else ())
    )
    plans.append((None, ("all sizes are fixed: the model does not trace with a dynamic batch",)))
    failure: Exception | None = None
    for shapes, notes in plans:
        try:
            return _attempt(bound, args, shapes), notes
        except CaptureError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _attempt(bound: _Bound, args: tuple[Tensor, ...], shapes: Any) -> Program:
    dynamic = None if shapes is None else (shapes,)
    args = tuple(t.detach() for t in args)  # torch.export leaves marks on the tensors it is given, also when it fails
    try:
        exported = torch.export.export(bound, args, dynamic_shapes=dynamic, strict=False).run_decompositions({})
    except Exception as error:  # torch.export raises whatever the model's own code raised
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        place = _user_frame(error)
        raise CaptureError(
            f"the model cannot be traced: {first}" + (f" (at {place})" if place else ""),
            "keep branches on data out of forward; torch.export.export(model, inputs, strict=False) must work alone",
        ) from error
    return from_exported(exported, names=bound.names, outputs=bound.outputs, prefix="model.")


def _user_frame(error: BaseException) -> str:
    """The deepest frame of the error outside torch and this file, as "file.py:line"."""
    found, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/torch/" not in file and file != __file__:
            found = f"{file.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """No deprecation warnings inside: torch.export raises them about its own calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _untie(state: Mapping[str, Tensor]) -> dict[str, str]:
    """First name of each stored tensor, by every name it has."""
    first: dict[Any, str] = {}
    canonical = {}
    for name, tensor in state.items():
        where = (
            id(tensor)
            if tensor.device.type == "meta"
            else (tensor.data_ptr(), tensor.stride())
            if tensor.numel()
            else name
        )
        canonical[name] = first.setdefault((where, tuple(tensor.shape), tensor.dtype), name)
    return canonical
