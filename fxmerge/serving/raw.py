"""A model served raw: text and pictures go in, and classes come out by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from fxmerge.errors import FxmergeError, SourceError
from fxmerge.io.files import LARGEST_JSON
from fxmerge.io.guard import read_bytes
from fxmerge.messages import listed, nearest
from fxmerge.output.assets import unpack
from fxmerge.samples.text import LONGEST
from fxmerge.serving.batching import Limits
from fxmerge.serving.engine import Engine, check_outputs
from fxmerge.serving.protocol import FULL, Array, InferRequest, RequestError
from fxmerge.serving.readers import CHILDREN, Reader, reader
from fxmerge.sources.bundle import INPUT_ASSETS
from fxmerge.sources.tokenizers import TOKENIZER, longest_in, with_longest

LABEL, PROBABILITY = "label", "probability"


@dataclass(frozen=True)
class Taken:
    """A request in numbers, the outputs that were asked for, and how many texts were cut to the model's length."""

    request: InferRequest
    outputs: tuple[str, ...]
    cut: int = 0


@dataclass(frozen=True)
class _Named:
    """An output that names the class of another output."""

    source: str
    what: str
    labels: tuple[str, ...]


class Raw:
    """The raw inputs and named classes of an engine. Raises `SourceError` if it can be given neither text nor pictures.

    The raw input is "text" or "image"; "TASK.text" where tasks have inputs of their own, or files to read them with.
    Where a task has class names, "TASK.label" and "TASK.probability" are outputs: the likeliest class of each row.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits, self._pending = engine, limits, 0
        self.notes: list[str] = []
        self.inputs: dict[str, tuple[Reader, tuple[str, ...]]] = {}
        """By raw input what reads it, and the tasks that are computed from it."""
        self._threads = ThreadPoolExecutor(CHILDREN, thread_name_prefix="fxmerge-raw")
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self.named = self._named()
        self._given = self._probabilities()

    # -- opening

    def _open(self) -> None:
        packed, beside = unpack(self.engine.properties, self.engine.path), _beside(self.engine.path)
        groups: dict[tuple[tuple[str, ...], str], tuple[dict[str, bytes], list[str]]] = {}
        for task, outputs in self.engine.tasks.items():
            files = {**beside, **packed.get(task, {})}
            ports = tuple(self.engine.inputs_of(outputs))
            key = ports, _same(files)
            known, tasks = groups.get(key, (files, []))
            groups[key] = min(known, files, key=_cut_at), [*tasks, task]
        for (ports, _), (files, tasks) in groups.items():
            try:
                inputs = [self.engine.inputs[name] for name in ports]
                found = reader(inputs, files, self._runs(tasks), self.limits.most_bytes, tasks[0])
            except SourceError as error:
                if len(groups) == 1:
                    raise SourceError(f"{self.engine.path} cannot be served raw: {error.what}", error.todo) from error
                self.notes.append(f"{listed(tasks)} cannot be asked raw: {error.what}")
                continue
            alone = {found.kind: tasks} if len(groups) == 1 else {f"{task}.{found.kind}": [task] for task in tasks}
            self.inputs |= {name: (found, tuple(of)) for name, of in alone.items()}
        if not self.inputs:
            raise SourceError(f"{self.engine.path} cannot be served raw: {self.notes[0]}", "leave --raw out")

    def _runs(self, tasks: Sequence[str]) -> Callable[[Mapping[str, Array]], bool]:
        outputs = tuple(name for task in tasks for name in self.engine.tasks[task])

        def runs(inputs: Mapping[str, Array]) -> bool:
            try:
                return bool(self.engine.run([self.engine.accept(InferRequest(inputs, outputs))]))
            except RequestError:
                return False

        return runs

    def _named(self) -> dict[str, _Named]:
        named: dict[str, _Named] = {}
        tasks, known, gate = dict(self.engine.tasks), dict(self.engine.metadata.labels), self.engine.gate
        if gate:
            tasks[gate], known[gate] = [gate], tuple(tasks)
        for task, outputs in tasks.items():
            labels = known.get(task) or ()
            fits = [n for n in outputs if labels and self.engine.outputs[n].shape[1:] == (len(labels),)]
            for source in fits:
                base = task if len(fits) == 1 else source
                named |= {f"{base}.{what}": _Named(source, what, labels) for what in (LABEL, PROBABILITY)}
        return {name: value for name, value in named.items() if name not in self.engine.outputs}

    def _probabilities(self) -> set[str]:
        """The outputs that are probabilities as they are: at random rows, all of their numbers lie in 0..1."""
        sources = {value.source for value in self.named.values()}
        try:
            found = self.engine.run([self.engine.probe()])[0]
        except FxmergeError:
            return set()
        return {name for name in sources if found[name].min() >= 0 and found[name].max() <= 1}

    # -- answering

    async def take(self, request: InferRequest, seconds: float) -> Taken:
        """The request in numbers, its raw inputs read. Raises `RequestError` where they cannot be, or too many wait."""
        for name in request.inputs:
            if name not in self.inputs and name not in self.engine.inputs:
                known = [*self.inputs, *self.engine.inputs]
                raise RequestError(f"the model has no input {name!r}{nearest(name, known)}", f"send {listed(known)}")
        wanted = self._wanted(request)
        plain = tuple(dict.fromkeys(self.named[n].source if n in self.named else n for n in wanted))
        if not any(name in self.inputs for name in request.inputs):
            return Taken(replace(request, outputs=plain), wanted)
        if self._pending >= self.limits.max_queue:
            raise RequestError(f"{self._pending} requests wait to be read already", "send it again in a moment", FULL)
        self._pending += 1
        try:
            until = monotonic() + seconds
            read = asyncio.get_running_loop().run_in_executor(self._threads, self._read, request, until)
            inputs, cut = await read
        finally:
            self._pending -= 1
        return Taken(replace(request, inputs=inputs, outputs=plain), wanted, cut)

    def answer(self, values: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """The outputs that were asked for, classes by name among them."""
        return {name: self._class(self.named[name], values) if name in self.named else values[name] for name in outputs}

    def told_inputs(self) -> list[dict[str, Any]]:
        """The raw inputs as the protocol's metadata tells them."""
        return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in self.inputs]

    def told_outputs(self) -> list[dict[str, Any]]:
        """The named classes as the protocol's metadata tells them."""
        kinds = {LABEL: "BYTES", PROBABILITY: "FP32"}
        return [{"name": n, "datatype": kinds[value.what], "shape": [-1]} for n, value in self.named.items()]

    def close(self) -> None:
        """End what reads, when what it does is done."""
        self._threads.shutdown()
        for found in {id(found): found for found, _ in self.inputs.values()}.values():
            found.close()

    def _wanted(self, request: InferRequest) -> tuple[str, ...]:
        """The outputs that were asked for: by default all of the tasks that are computed from what was sent."""
        check_outputs(request.outputs, [*self.engine.outputs, *self.named])
        tasks = set(self.engine.tasks)
        if request.inputs and all(name in self.inputs for name in request.inputs):
            tasks = {task for name in request.inputs for task in self.inputs[name][1]}
        tasks |= {""}  # what belongs to no task, a gate
        for name in request.outputs:
            if self._task(name) not in tasks:
                raise RequestError(
                    f"the output {name!r} is not computed from {listed(request.inputs)}",
                    f"send {listed(n for n, (_, of) in self.inputs.items() if self._task(name) in of)}",
                )
        every = [*self.engine.outputs, *self.named]
        return tuple(dict.fromkeys(request.outputs)) or tuple(name for name in every if self._task(name) in tasks)

    def _task(self, output: str) -> str:
        return self.engine.task_of.get(self.named[output].source if output in self.named else output, "")

    def _read(self, request: InferRequest, until: float) -> tuple[dict[str, Array], int]:
        inputs: dict[str, Array] = {}
        cut = 0
        for name, value in request.inputs.items():
            found, count = {name: value}, 0
            if name in self.inputs:
                found, count = self.inputs[name][0].read(name, _rows(name, value, self.inputs[name][0]), until)
            twice = next((port for port in found if port in inputs), None)
            if twice is not None:
                raise RequestError(f"the input {name!r} fills {twice!r} once more", "send one of them")
            inputs |= found
            cut += count
        return inputs, cut

    def _class(self, named: _Named, values: Mapping[str, Array]) -> Array:
        scores: Array = values[named.source].astype(np.float64)
        best = scores.argmax(axis=1)
        if named.what == LABEL:
            return np.array([named.labels[k].encode() for k in best], object)
        if named.source not in self._given:
            with np.errstate(invalid="ignore"):  # what is no number stays none
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        chosen: Array = scores[np.arange(len(best)), best]
        return chosen.astype(np.float32)


def _rows(name: str, value: Array, read: Reader) -> list[Any]:
    """The entries of a raw input; two columns of text are pairs."""
    pair = read.pairs and value.ndim == 2 and value.shape[1] == 2
    if value.dtype != object or not value.size or not (pair or value.shape in ((value.size,), (value.size, 1))):
        raise RequestError(
            f"the input {name!r} is no row of BYTES, but {list(value.shape)}",
            "send it as BYTES [rows]" + (", or [rows, 2] for pairs of texts" if read.pairs else ""),
        )
    return list(map(tuple, value)) if pair else list(value.reshape(-1))


def _beside(path: Path) -> dict[str, bytes]:
    files = (path.parent / name for name in INPUT_ASSETS)
    found = {file.name: read_bytes(file, most=LARGEST_JSON) for file in files if file.is_file()}
    if TOKENIZER in found:
        found[TOKENIZER] = with_longest(found[TOKENIZER], longest_in(path.parent))
    return found


def _same(files: Mapping[str, bytes]) -> str:
    """Equal for files that read alike; where a tokenizer cuts and how it fills aside: one text is one row for all."""
    found = {}
    for name, data in files.items():
        value = _parsed(data)
        if isinstance(value, dict):
            value = {key: kept for key, kept in value.items() if key not in ("truncation", "padding")}
        found[name] = value
    return json.dumps(found, sort_keys=True)


def _cut_at(files: Mapping[str, bytes]) -> int:
    """Where a tokenizer cuts rows: tasks that share an input take the shortest."""
    value = _parsed(files.get(TOKENIZER, b"{}"))
    truncation = value.get("truncation") if isinstance(value, dict) else None
    longest = truncation.get("max_length") if isinstance(truncation, dict) else None
    return longest if type(longest) is int and longest > 0 else LONGEST


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "replace")
