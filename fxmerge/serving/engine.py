"""A merged model ready to answer: what it takes and gives, and rows of several requests run as one batch."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fxmerge.errors import FxmergeError, SourceError
from fxmerge.from_onnx.metadata import read_metadata, task_of
from fxmerge.from_onnx.runtime import OnnxModel, onnx_session
from fxmerge.io.files import sha256, weights_beside
from fxmerge.ir.program import Port
from fxmerge.messages import listed, nearest, printable, reason
from fxmerge.output.parts import Part, behind, cut
from fxmerge.serving.protocol import NAMES, Array, InferRequest, RequestError

TRIED = (8, 32, 64, 224)
"""Sizes of dynamic axes a model is tried at, the first that it can be run with."""


@dataclass(frozen=True)
class Asked:
    """A request that fits its model: rows, their inputs, the outputs wanted, and how long its dynamic axes are."""

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    rows: int
    sizes: Mapping[str, int]


class Runner:
    """A part of a model, or all of it, in ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())

    def run(self, values: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """The wanted outputs by name."""
        fed = {name: values[name] for name in self.inputs}
        return dict(zip(wanted, self.session.run(list(wanted), fed), strict=True))


class Engine:
    """An ONNX file opened for serving. Raises `SourceError` if it cannot be opened or is no merged model."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        whole = OnnxModel(path, device=device, strange=True)
        self.path, self.inputs, self.outputs = (
            path,
            {p.name: p for p in whole.inputs},
            {p.name: p for p in whole.outputs},
        )
        strange = [p.name for p in (*whole.inputs, *whole.outputs) if numpy_name(p) not in NAMES]
        if strange:
            raise SourceError(
                f"{path}: the protocol has no data type for {printable(listed(strange))}", "merge it as float32"
            )
        self.properties = whole.metadata
        self.metadata = read_metadata(whole.metadata, whole.outputs, path)
        self.task_of = {name: task_of(name, self.metadata.tasks) or "" for name in self.outputs}
        self.gate = self.metadata.gate
        self.tasks = {t: [n for n, of in self.task_of.items() if of == t] for t in self.metadata.tasks}
        self.providers: list[str] = whole.session.get_providers()
        beside = weights_beside(path)
        self.version = sha256(path)[:12] + (f"-{sha256(beside)[:12]}" if beside.is_file() else "")
        self.notes: list[str] = []
        self._whole = self._trunk = Runner(whole.session)
        self._heads: dict[str, Runner] = {}
        self._answers: Runner | None = None
        self._cut(path, device)
        self.batched, self.padded = self._one_batch(), self._padded()
        self._check_rows()

    # -- what a request must be

    def accept(self, request: InferRequest) -> Asked:
        """The request, checked against the model. Raises `RequestError` where it does not fit."""
        check_outputs(request.outputs, self.outputs)
        wanted = tuple(dict.fromkeys(request.outputs)) or tuple(self.outputs)
        for name in request.inputs:
            if name not in self.inputs:
                raise RequestError(
                    f"the model has no input {name!r}{nearest(name, self.inputs)}", f"send {listed(self.inputs)}"
                )
        needed = self.inputs_of(wanted)
        lacking = [name for name in needed if name not in request.inputs]
        if lacking:
            raise RequestError(f"the input {lacking[0]!r} is missing", f"send {listed(needed)}")
        inputs = {name: request.inputs[name] for name in needed}
        sizes: dict[str, int] = {}
        for name, value in inputs.items():
            self._check(self.inputs[name], value, sizes)
        rows = {len(value) for value in inputs.values() if value.ndim}
        if self.batched and len(rows) > 1:
            raise RequestError("the inputs have different numbers of rows", "send as many rows of each input")
        return Asked(inputs, wanted, max(rows, default=1), sizes)

    def key(self, asked: Asked) -> Hashable:
        """Requests with equal keys may share a batch."""
        if not self.batched:
            return id(asked)
        kept = [(name, size) for name, size in asked.sizes.items() if name not in self.padded]
        fixed = [(name, value.shape[1:]) for name, value in asked.inputs.items() if not self._pads(name)]
        return tuple(asked.inputs), tuple(sorted((n, s) for n, s in kept if n != self._batch)), tuple(fixed)

    def _check(self, port: Port, value: Array, sizes: dict[str, int]) -> None:
        if value.dtype.name != numpy_name(port):
            raise RequestError(
                f"the input {port.name!r} is {NAMES[value.dtype.name]}, the model takes {datatype(port)}",
                f"send it as {datatype(port)}",
            )
        fits = value.ndim == len(port.shape) and value.size > 0
        for size, found in zip(port.shape, value.shape, strict=False):
            fits = fits and found == (size if isinstance(size, int) else sizes.setdefault(size, found))
        if not fits:
            shown = f"[{', '.join(map(str, port.shape))}]"
            raise RequestError(
                f"the input {port.name!r} has the shape {list(value.shape)}, the model takes {shown}",
                f"send it in the shape {shown}, where names are sizes you choose",
            )
        if value.dtype.kind == "f" and np.isnan(value).any():
            row = int(np.isnan(value.reshape(len(value), -1) if value.ndim else value).any(axis=-1).argmax())
            raise RequestError(f"row {row} of the input {port.name!r} holds NaN", "send numbers")

    # -- running

    def run(self, asked: Sequence[Asked]) -> list[dict[str, Array]]:
        """The wanted outputs of requests with one key, run as one batch. Raises `RequestError` if it cannot be run."""
        longest = {s: max(a.sizes[s] for a in asked) for s in asked[0].sizes}
        fed = {
            name: np.concatenate([self._pad(name, one.inputs[name], longest) for one in asked])
            if len(asked) > 1
            else asked[0].inputs[name]
            for name in asked[0].inputs
        }
        wanted = list(dict.fromkeys(name for one in asked for name in one.outputs))
        try:
            made = self._values(fed, wanted)
        except Exception as error:  # ONNX Runtime has one exception class per status, with no common base
            shown = ", ".join(f"{name} {list(value.shape)}" for name, value in fed.items())
            why = printable(reason(error).rsplit("Status Message: ", 1)[-1])
            raise RequestError(
                f"the model cannot be run on {shown}: {why}",
                "check ids and lengths against what the model was made for",
            ) from error
        if len(asked) == 1:
            return [made]
        ends = np.cumsum([one.rows for one in asked])
        return [
            {name: self._unpad(name, made[name][end - one.rows : end], one.sizes) for name in one.outputs}
            for one, end in zip(asked, ends, strict=True)
        ]

    def _values(self, fed: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        if self._answers is not None and (last := [name for name in wanted if name in self._answers.outputs]):
            values = self._values(fed, self._read(wanted))
            values |= self._answers.run({**fed, **values}, last)
            return {name: values[name] for name in wanted}
        heads: dict[Runner, list[str]] = {}
        for name in wanted:
            runner = self._runner(name)
            heads.setdefault(runner, []).append(name)
        between = {name for runner in heads for name in runner.inputs} & set(self._trunk.outputs)
        between |= set(heads.pop(self._trunk, ()))
        values = dict(fed)
        if between:
            values |= self._trunk.run(values, sorted(between))
        for runner, names in heads.items():
            values |= runner.run(values, names)
        return {name: values[name] for name in wanted}

    def _read(self, wanted: Sequence[str]) -> list[str]:
        """The outputs that these are made of: an answer, of those of all tasks."""
        if self._answers is None or not any(name in self._answers.outputs for name in wanted):
            return list(wanted)
        plain = [name for name in wanted if name not in self._answers.outputs]
        return list(dict.fromkeys([*plain, *(name for name in self._answers.inputs if name in self.outputs)]))

    def _runner(self, output: str) -> Runner:
        head = self._heads.get(self.task_of.get(output, ""))
        return head if head is not None and output in head.outputs else self._trunk

    def inputs_of(self, wanted: Sequence[str]) -> list[str]:
        """The inputs that these outputs are computed from, as far as the model could be cut."""
        read: set[str] = set()
        for runner in {self._runner(name) for name in self._read(wanted)}:
            read |= set(runner.inputs)
            if runner is self._trunk or read & set(self._trunk.outputs):
                read |= set(self._trunk.inputs)
        return [name for name in self.inputs if name in read]

    def _pads(self, name: str) -> bool:
        return any(size in self.padded for size in self.inputs[name].shape)

    def _pad(self, name: str, value: Array, longest: Mapping[str, int]) -> Array:
        shape = self.inputs[name].shape
        grown = [(0, longest[s] - n if s in self.padded else 0) for s, n in zip(shape, value.shape, strict=True)]
        return np.pad(value, grown) if any(more for _, more in grown) else value

    def _unpad(self, name: str, value: Array, sizes: Mapping[str, int]) -> Array:
        cuts = [slice(sizes[str(s)]) if s in self.padded else slice(None) for s in self.outputs[name].shape]
        return np.ascontiguousarray(value[tuple(cuts)])

    # -- opening

    def _cut(self, path: Path, device: str) -> None:
        """Open trunk and heads for themselves where the model can be cut, and gives the same so."""
        if len(self.tasks) < 2:
            return
        try:
            answers = self.metadata.answers
            alone = [name for name, task in self.task_of.items() if not task and name not in answers]  # a gate's
            trunk, heads = cut(path, {**self.tasks, "": alone} if alone else self.tasks)
            self._heads = {task: self._open(part, device) for task, part in heads.items()}
            if answers:
                given = [name for name in self.outputs if name not in answers]
                self._answers = self._open(behind(path, list(answers), given), device)
            if trunk is not None:
                self._trunk = self._open(trunk, device)
            probe = next(self._probes({}, (3,)))
            if not _equal(self._values(probe.inputs, probe.outputs), self._whole.run(probe.inputs, probe.outputs)):
                raise ValueError("trunk and heads give something else than the whole model")
        except Exception as error:
            self._trunk, self._heads, self._answers = self._whole, {}, None
            self.notes.append(f"all outputs are computed whatever is asked for: {reason(error)}")
        finally:
            del self._whole

    def _open(self, part: Part, device: str) -> Runner:
        return Runner(onnx_session(part.model.SerializeToString(), device=device, folder=self.path.parent))

    def _one_batch(self) -> bool:
        """Whether the first axis of every input and output is one dynamic size, which is no size of another axis."""
        ports = [*self.inputs.values(), *self.outputs.values()]
        first = {port.shape[0] if port.shape else 1 for port in ports}
        self._batch = str(next(iter(first)))
        inner = {size for port in ports for size in port.shape[1:]}
        return len(first) == 1 and isinstance(next(iter(first)), str) and self._batch not in inner

    def _padded(self) -> frozenset[str]:
        """Lengths of token rows: the second axis of two of whole numbers; outputs have it as it is or not at all."""
        ports = [*self.inputs.values(), *self.outputs.values()]
        found = {p.shape[1] for p in self.inputs.values() if _is_tokens(p) and str(p.shape[1]).isidentifier()}
        for port in ports:
            for axis, size in enumerate(port.shape):
                taken = {name for name in found if str(name) in str(size)}
                as_is = port.name in self.outputs or (axis == 1 and _is_tokens(port))
                found -= taken if size not in taken or not as_is else set()
        return frozenset(str(name) for name in found)

    def _check_rows(self) -> None:
        """Batch, and pad, only where rows are shown to get what they get alone."""
        if self.batched and self.padded and not self._same_together({0: 1.0, 1: 1.0, 2: 0.6}):
            self.padded = frozenset()
            self.notes.append("rows of different lengths are not batched: padding changes what the model gives")
        if self.batched and not self._same_together({0: 1.0, 1: 1.0, 2: 1.0}):
            self.batched = False
            self.notes.append("requests are not batched: a row together with others gives something else than alone")

    def _same_together(self, shares: Mapping[int, float]) -> bool:
        try:
            asked = list(self._probes(shares, tuple(1 for _ in shares)))
            alone = [self.run([one])[0] for one in asked]
            return all(_equal(*pair) for pair in zip(alone, self.run(asked), strict=True))
        except FxmergeError:
            return False

    def probe(self) -> Asked:
        """A request of random rows that the model can be run on. Raises `RequestError` if none was found."""
        return next(self._probes({}, (8,)))

    def _probes(self, shares: Mapping[int, float], rows: Sequence[int]) -> Iterator[Asked]:
        """Requests of random values at the first sizes that the model can be run at, token rows of these shares."""
        for most, mask in product(TRIED, (1, 0)):
            generator = np.random.default_rng(0)
            made = [self._probe(generator, most, shares.get(k, 1.0), count, mask) for k, count in enumerate(rows)]
            try:
                [found] = self.run(made[:1])
            except RequestError:
                continue
            if all(np.isfinite(value).all() for value in found.values()):
                yield from made
                return
        raise RequestError("the model gives no numbers at any size that was tried", "send it one request at a time")

    def _probe(self, generator: np.random.Generator, most: int, share: float, rows: int, mask: int) -> Asked:
        inputs: dict[str, Array] = {}
        sizes: dict[str, int] = {}
        for port in self.inputs.values():
            shape = []
            for axis, size in enumerate(port.shape):
                length = int(most * share) if size in getattr(self, "padded", ()) else most
                shape.append(size if isinstance(size, int) else rows if axis == 0 else length)
                sizes |= {size: shape[-1]} if isinstance(size, str) else {}
            kind = np.dtype(numpy_name(port))
            if kind.kind == "f":
                inputs[port.name] = generator.standard_normal(shape).astype(kind)
            elif "mask" in port.name:
                inputs[port.name] = np.full(shape, mask, kind)  # some say what is real, some what is padding
            else:
                inputs[port.name] = generator.integers(0, 2, shape).astype(kind)  # legal as token and flag
        return Asked(inputs, tuple(self.outputs), rows, sizes)


def check_outputs(asked: Sequence[str], known: Collection[str]) -> None:
    """Raise `RequestError` if an output is asked for that is not there."""
    for name in asked:
        if name not in known:
            raise RequestError(
                f"the model has no output {name!r}{nearest(name, known)}",
                f"ask for some of {listed(known)}, or leave outputs out to get all",
            )


def datatype(port: Port) -> str:
    """The protocol's word for the numbers of an input or output."""
    return NAMES[numpy_name(port)]


def numpy_name(port: Port) -> str:
    """What numpy calls the numbers of an input or output."""
    return str(port.dtype).removeprefix("torch.")


def _is_tokens(port: Port) -> bool:
    return len(port.shape) == 2 and not port.dtype.is_floating_point


def _equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """Whether two answers are the same up to the rounding of their numbers."""
    for name, left in one.items():
        right = other[name]
        if left.shape != right.shape:
            return False
        if left.dtype.kind != "f":
            if not np.array_equal(left, right):
                return False
            continue
        close = float(np.finfo(left.dtype).eps) ** 0.5
        spread = float(np.nanmax(np.abs(left), initial=0.0, where=np.isfinite(left))) or 1.0
        if not np.allclose(left, right, rtol=close, atol=close * spread, equal_nan=True):
            return False
    return True
