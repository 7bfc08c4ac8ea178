"""Trace a PyTorch model into a `Program` with torch.export, batch (and sequence) sizes kept dynamic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fxmerge.capturing import plans
from fxmerge.capturing.assemble import Names, from_exported
from fxmerge.capturing.bounds import bounded
from fxmerge.capturing.inputs import Call, bind, flatten, left_out
from fxmerge.capturing.numbers import Axis, follow
from fxmerge.capturing.plans import ROWS, Plan, Shapes
from fxmerge.capturing.refuse import (
    Refusal,
    differ,
    masks_as_given,
    refuse_random,
    refuse_state,
    run_error,
    trace_error,
    without_packing,
)
from fxmerge.capturing.rows import MANY, Rows, by_position, close, find_rows
from fxmerge.capturing.state import at_rest, forgetting, quiet
from fxmerge.errors import CaptureError
from fxmerge.installed import tracing
from fxmerge.ir.module import any_part_names
from fxmerge.ir.program import Program

FIXED = 32
"""Rows of a fixed batch at most, where the model does not say how many it wants."""

CLOSE = 1e-3
"""How far a trace may be from the model, as a share of the largest output (half-precision kernels differ)."""


def capture(
    model: nn.Module,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    task: str = "model",
    labels: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    dynamic: str | Sequence[str] = (),
    batch_axis: int | None = None,
) -> Program:
    """Trace `model` in eval mode on `inputs`: positional or keyword values, tensors in them nested as they like.

    Values that are no tensors are bound as constants. All rows given are kept as the program's samples.
    The batch axis is found by running the model, or said by `batch_axis`; programs have it first, and a note says so
    where the model has not. The batch, and the second axis of integer (token) inputs, stay dynamic unless the model
    forbids it; a note says so, and the program then runs in blocks of the batch it was captured with.
    `dynamic` names more axes ("time", "height", "width"); `dynamic_shapes`, by input as in torch.export, says all.
    Raises `CaptureError` if the model cannot be traced, draws random numbers, keeps state or branches on data.
    """
    call = bind(model, inputs)
    with at_rest(model), quiet(), any_part_names():
        run = _Run(model, call)
        rows, unsteady = _look(run, call, dynamic_shapes, batch_axis)
        tracer = _Tracer(run, call, rows)
        if unsteady:
            tracer.refuse()
        program = tracer.trace(dynamic_shapes, (dynamic,) if isinstance(dynamic, str) else tuple(dynamic))
    turned = {n: a for n, a in rows.inputs.items() if a}
    return program.evolve(task=task, labels=tuple(labels) if labels else None, samples=tracer.tensors, turned=turned)


def capture_graph(graph: nn.Module, inputs: Mapping[str, Tensor], dynamic_shapes: Mapping[str, Any]) -> Program:
    """Trace what runs a graph of a file, rows first in it; it is never run on real tensors, only on their shapes."""
    call = bind(graph, inputs)
    first = {n: t.shape[0] for n, t in inputs.items() if t.ndim}
    dynamic = {n: size for n, size in first.items() if dynamic_shapes.get(n, {}).get(0) is not None}
    count = max((dynamic or first).values(), default=1)
    axes = {n: 0 if n in dynamic or (not dynamic and first.get(n) == count) else None for n in inputs}
    with at_rest(graph), quiet():
        tracer = _Tracer(_Run(graph, call), call, Rows(axes, None, count, fixed=not dynamic), dry=True)
        return tracer.trace(dynamic_shapes, ())


class _Run:
    """Calls the model itself; remembers the names of what it gave."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        self.model, self.call = model, call
        self.names: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Outputs on copies of the tensors: a model may write into its inputs."""
        return self.flat({name: t.detach().clone() for name, t in tensors.items()})

    def flat(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        args, kwargs = self.call.arguments(tensors)
        with forgetting(self.model):
            result = self.model(*args, **kwargs)
        found = list(flatten(result))
        self.names, self.left_out = tuple(name for name, _ in found), tuple(left_out(result))
        return [value for _, value in found]


class _Bound(nn.Module):
    """The model as a function of its tensors alone, rows first in all of them, returning a flat tuple of tensors."""

    def __init__(self, run: _Run, rows: Rows) -> None:
        super().__init__()
        self.model = run.model
        self._run, self._rows = [run], rows  # in a list: no module of this one

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        own = {n: _last(t, a) for (n, a), t in zip(self._rows.inputs.items(), args, strict=True)}
        values = self._run[0].flat(own)
        axes = self._rows.outputs or (None,) * len(values)
        return tuple(_first(value, axis) for value, axis in zip(values, axes, strict=True))


def _first(value: Tensor, axis: int | None) -> Tensor:
    return value.movedim(axis, 0) if axis else value


def _last(value: Tensor, axis: int | None) -> Tensor:
    return value.movedim(0, axis) if axis else value


def _look(run: _Run, call: Call, dynamic_shapes: Any, batch_axis: int | None) -> tuple[Rows, bool]:
    """Which axes count the rows, and whether the outputs change from call to call."""
    said = batch_axis if batch_axis is not None else plans.said_axis(dynamic_shapes, call.tensors)
    first, again = _twice(run, call.tensors)
    if differ(first, again):
        return by_position(call.tensors, first, said), True
    return find_rows(run, call.tensors, said), False


def _twice(run: _Run, tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of two calls on a few rows, or on all where the model takes no few."""
    few = {n: t[:MANY] if t.ndim else t for n, t in tensors.items()}
    try:
        return run(few), run(few)
    except Exception:  # whatever the model's own code raises: the first axis may be another, or the batch fixed
        try:
            return run(tensors), run(tensors)
        except Exception as error:
            raise run_error(error) from error


class Burnt(CaptureError):
    """A trace holds numbers that are right at its own sizes alone."""


class _Tracer:
    """Traces a model along plans until one gives a program that does what the model does."""

    def __init__(self, run: _Run, call: Call, rows: Rows, *, dry: bool = False) -> None:
        self.run, self.rows, self.dry = run, rows, dry
        self.bound = _Bound(run, rows)
        self.tensors = {n: _first(t.detach(), rows.inputs[n]) for n, t in call.tensors.items()}

    def trace(self, given: Any, dynamic: tuple[str, ...]) -> Program:
        """The program of the first plan that works. Raises the first plan's error if none does."""
        failure: CaptureError | None = None
        fixed_sizes = False
        for plan in plans.plans(self.tensors, self.rows, given, dynamic):
            if plan.numbers and not fixed_sizes:
                continue
            try:
                return self._attempt(plan)
            except Refusal:
                raise
            except CaptureError as error:
                failure = failure or error
                fixed_sizes = isinstance(error, Burnt) or "specialized" in str(error.__cause__)
        assert failure is not None
        raise failure

    def refuse(self) -> None:
        """Raise for a model whose outputs change from call to call."""
        sample = self.sample(self._fixed())
        exported = _export(self.bound, sample, {})
        refuse_random(from_exported(exported, self._names(self._fixed())), sample)
        refuse_state(exported, matters=True)

    def sample(self, count: int) -> dict[str, Tensor]:
        """That many rows of the inputs, repeated where there are fewer."""
        index = torch.arange(count) % max(self.rows.count, 1)
        rows = self.rows.inputs
        return {n: t if rows[n] is None else t.index_select(0, index.to(t.device)) for n, t in self.tensors.items()}

    def _attempt(self, plan: Plan) -> Program:
        fixed = None if plan.batch else self._fixed()
        whole = fixed is None and not self.rows.found
        sample = self.sample(fixed or (max(self.rows.count, ROWS) if whole else ROWS))
        traced = self._numbers(plan, sample) if plan.numbers else self.bound
        exported = _export(traced, sample, plan.shapes)
        notes = refuse_state(exported, matters=False)
        prefix = "traced.model." if plan.numbers else "model."
        program = from_exported(exported, self._names(fixed, prefix, plan.words))
        if not self.dry:
            refuse_random(program, sample)
            self._compare(program, fixed)
            program = bounded(program, sample)
        notes = (*program.notes, *plan.notes, *notes, *self._said(program, fixed))
        return program.evolve(notes=notes)

    def _numbers(self, plan: Plan, sample: Mapping[str, Tensor]) -> nn.Module:
        """The model with the sizes that it takes as Python numbers written as sizes."""
        axes, places = [], []
        if plan.batch:
            axes.append(next(Axis(n, 0, (ROWS, ROWS + 2)) for n, own in plan.shapes.items() if 0 in own))
            places.append([(n, 0) for n, own in plan.shapes.items() if 0 in own])
        lengths: dict[int, list[tuple[str, int]]] = {}
        for name, own in plan.shapes.items():
            for axis in own:
                if axis:
                    lengths.setdefault(sample[name].shape[axis], []).append((name, axis))
        for size, same in lengths.items():
            axes.append(Axis(*same[0], (size, max(size - 2, 2) if size > 3 else size + 2)))
            places.append(same)

        def resized(corner: Sequence[int]) -> dict[str, Tensor]:
            found = dict(sample)
            for size, same in zip(corner, places, strict=True):
                for name, axis in same:
                    index = torch.arange(size) % found[name].shape[axis]
                    found[name] = found[name].index_select(axis, index.to(found[name].device))
            return found

        module = follow(lambda inputs: _export(self.bound, inputs, {}), resized, axes)
        if module is None:
            raise CaptureError("the traces at two sizes differ", "keep what depends on the batch out of forward")
        return module

    def _fixed(self) -> int:
        """Rows of a fixed batch: as many as were given, where they may be what the model wants."""
        return self.rows.count if self.rows.fixed else min(self.rows.count, FIXED)

    def _names(
        self, fixed: int | None, prefix: str = "model.", words: Mapping[tuple[str, int], str] | None = None
    ) -> Names:
        with_rows = frozenset(n for n, a in self.rows.inputs.items() if a is not None)
        follows = None if self.rows.outputs is None else tuple(a is not None for a in self.rows.outputs)
        return Names(tuple(self.tensors), self.run.names, with_rows, follows, fixed, prefix, words or {})

    def _compare(self, program: Program, fixed: int | None) -> None:
        """Raise `CaptureError` unless the program gives what the model gives, at sizes that were not traced."""
        for count in (fixed,) if fixed else (2, 5):
            sample = self.sample(count)
            try:
                expected = self.bound(*(t.clone() for t in sample.values()))
            except Exception:  # the model itself does not run at this size
                continue
            found = program.run({n: t.clone() for n, t in sample.items()})
            for (name, value), wanted in zip(found.items(), expected, strict=True):
                if not close(value, wanted, CLOSE):
                    raise Burnt(
                        f"the trace of the model does not give its output {name} at {count} rows",
                        "keep Python numbers made from sizes or data out of forward",
                    )

    def _said(self, program: Program, fixed: int | None) -> Iterator[str]:
        """Notes on the batch: where it is, and what is fixed."""
        for name, axis in self.rows.inputs.items():
            if axis:
                shape = ", ".join(str(s) for s in next(p.shape for p in program.inputs if p.name == name))
                yield f"axis {axis} of {name} is the batch in the model; it comes first here and once merged: ({shape})"
        if not self.rows.found:
            yield "no axis was found along which rows are independent: the first is taken, batch_axis says another"
        if self.rows.mixed:
            yield "the rows of a batch depend on each other in the model: what it gives depends on how rows are batched"
        if fixed is not None:
            why = "takes no other number" if self.rows.fixed else "does not trace with a dynamic one"
            yield f"the batch is fixed at {fixed} row{'s' * (fixed != 1)}: the model {why}; more are run in blocks"
        for what in self.run.left_out:
            yield f"left out of the outputs, it is no tensor: {what}"


def _export(module: nn.Module, sample: Mapping[str, Tensor], shapes: Shapes) -> ExportedProgram:
    dynamic = (tuple(dict(shapes[n]) if shapes.get(n) else None for n in sample),) if any(shapes.values()) else None
    args = tuple(t.detach().clone() for t in sample.values())  # torch.export leaves marks on the tensors it is given
    try:
        # torch prints the graph it has so far
        with redirect_stderr(StringIO()), tracing(), without_packing(), masks_as_given():
            exported: ExportedProgram = torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)
            exported = exported.run_decompositions({})
        return exported
    except Exception as error:  # torch.export raises whatever the model's own code raised
        raise trace_error(error) from error
