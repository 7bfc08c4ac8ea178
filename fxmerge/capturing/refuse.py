"""What no graph can hold, found at capture: random numbers, state from call to call, branches on data."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.nn.modules import transformer
from torch.nn.utils import rnn

from fxmerge.capturing.assemble import source_of
from fxmerge.errors import CaptureError
from fxmerge.ir.program import Program, target_name

NOT_THEIRS = (str(Path(__file__).parent), sysconfig.get_path("stdlib") + "/", "<")
SITE = "-packages/"


class Refusal(CaptureError):
    """A model that no other way to trace it would help."""


class _Watch(fx.Interpreter):
    """Runs a program and keeps the values of what may be random."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.module, graph=program.graph)
        self.kept: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if _may_be_random(n):
            first = value[0] if isinstance(value, tuple | list) else value
            assert isinstance(first, Tensor)
            self.kept[n] = first
        return value


def refuse_random(program: Program, inputs: Mapping[str, Tensor]) -> None:
    """Raise `CaptureError` if the program draws random numbers, naming the first call that does."""
    if not any(_may_be_random(node) for node in program):
        return
    kept = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        watch = _Watch(program)
        watch.run(*(inputs[port.name] for port in program.inputs), enable_io_processing=False)
        kept.append(watch.kept)
    for node, value in kept[0].items():
        if not torch.equal(value.nan_to_num(), kept[1][node].nan_to_num()):
            raise Refusal(
                f"the model draws random numbers in eval mode: {target_name(node.target)}{_at(source_of(node))}",
                "switch it off in eval mode (if self.training: …), or take the random numbers as an input",
            )


def refuse_state(exported: ExportedProgram, *, matters: bool) -> tuple[str, ...]:
    """A note for every buffer that forward changes; a `CaptureError` if a second call `matters` to the outputs."""
    returned = list(exported.graph.nodes)[-1].args[0]
    assert isinstance(returned, tuple | list)
    changed = [
        (str(spec.target).removeprefix("model."), source_of(value) if isinstance(value, fx.Node) else "")
        for value, spec in zip(returned, exported.graph_signature.output_specs, strict=True)
        if spec.kind is OutputKind.BUFFER_MUTATION
    ]
    if matters:
        name, place = changed[0] if changed else ("an attribute of the model", "")
        what = f"the buffer {name}" if changed else name
        raise Refusal(
            f"the outputs change from call to call: {what} keeps state{_at(place)}",
            "keep state out of forward in eval mode, or take it as an input and return it",
        )
    return tuple(
        f"forward changes the buffer {name}{_at(place)}; it keeps the value it had at capture"
        for name, place in changed
    )


class _Packed(Exception):
    """Sequences were packed while a model was traced."""


@contextmanager
def without_packing() -> Iterator[None]:
    """Inside, a model that packs sequences raises: how its layers run then depends on data."""

    def refuse(*_: object) -> None:
        raise _Packed

    module: Any = rnn
    before = module._packed_sequence_init
    module._packed_sequence_init = refuse
    try:
        yield
    finally:
        module._packed_sequence_init = before


@contextmanager
def masks_as_given() -> Iterator[None]:
    """Inside, torch's Transformer layers use a mask as it is; to find out whether it is causal they read its numbers.

    That is a hint for speed alone: with the mask, the result is the same.
    """

    def given(mask: object = None, is_causal: bool | None = None, size: int | None = None) -> bool:
        return is_causal is True

    module: Any = transformer
    before = module._detect_is_causal_mask
    module._detect_is_causal_mask = given
    try:
        yield
    finally:
        module._detect_is_causal_mask = before


def trace_error(error: Exception) -> CaptureError:
    """What to say of an error that came out of torch.export, or out of the model's own code while it was traced."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    place = _at(user_frame(error))
    name = type(error).__name__
    if isinstance(error, _Packed):
        return Refusal(
            f"the model packs sequences (pack_padded_sequence){place}: how its layers run then depends on data",
            "run them on the padded batch, and take the last states with gather or a mask",
        )
    if "DataDependent" in name or "data-dependent" in first:
        return CaptureError(
            f"the model branches on data{place}: {first.partition('(unhinted')[0].strip()}",
            "compute both sides and choose with torch.where, or keep the branch out of forward",
        )
    return CaptureError(
        f"the model cannot be traced{place}: {first}",
        "keep branches on data out of forward; torch.export.export(model, inputs, strict=False) must work alone",
    )


def run_error(error: Exception) -> CaptureError:
    """What to say of a model that does not run on its sample inputs."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return CaptureError(
        f"the model does not run on the sample inputs{_at(user_frame(error))}: {first}",
        "give inputs that model(*inputs) takes, on the model's device and in its type",
    )


def user_frame(error: BaseException) -> str:
    """The deepest frame of the error in the user's own files, as "file.py:line"."""
    found, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        theirs = SITE in file or not file.startswith(NOT_THEIRS)
        if theirs and "/torch/" not in file:
            found = f"{file.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def differ(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether two calls on the same inputs gave different outputs."""
    return any(
        x.shape != y.shape or not torch.equal(x.nan_to_num() if x.is_floating_point() else x, _plain(y))
        for x, y in zip(before, after, strict=True)
    )


def _plain(value: Tensor) -> Tensor:
    return value.nan_to_num() if value.is_floating_point() else value


def _may_be_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags


def _at(place: str) -> str:
    return f" (at {place})" if place else ""
