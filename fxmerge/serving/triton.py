"""A model repository for Triton: the merged model whole, and an entry for every task."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from fxmerge.errors import OutputError, SourceError
from fxmerge.io.files import unwritten, weights_beside
from fxmerge.ir.program import Port
from fxmerge.messages import printable
from fxmerge.output.parts import only
from fxmerge.serving.batching import Limits
from fxmerge.serving.engine import Engine, datatype

CONFIG = "config.pbtxt"


class Word(str):
    """A value of an enumeration, which has no quotation marks."""


def package(path: Path, repository: Path, limits: Limits, *, overwrite: bool = False) -> list[str]:
    """Write the model repository of a merged model; what was written, a line an entry.

    The entry of the file's name is the model itself: all tasks in one pass. The entry "NAME_TASK" gives one task's
    outputs: an ensemble over the model, so that requests for all tasks share batches, or, where a task has inputs of
    its own, the model cut to that task. Nothing is written unless all of it can be.
    Raises `SourceError` for a model that cannot be opened and `OutputError` where the repository cannot be written.
    """
    engine = Engine(path)
    entries = _entries(path.stem, engine.tasks)
    _check(repository, [path.stem, *entries.values()], overwrite)
    writer = _Writer(engine, limits, path.stem)
    told, is_new = [], not repository.exists()
    try:
        repository.mkdir(exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fxmerge-", dir=repository))
        try:
            told.append(writer.whole(scratch / path.stem))
            told += [writer.task(task, scratch / name) for task, name in entries.items()]
            for made in sorted(scratch.iterdir()):
                _move(made, repository / made.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if is_new:
            with suppress(OSError):  # it is not there, or another program has written into it
                repository.rmdir()
        raise unwritten(repository, error) from error
    return told


class _Writer:
    """Writes the entries of one model."""

    def __init__(self, engine: Engine, limits: Limits, name: str) -> None:
        self.engine, self.limits, self.name = engine, limits, name
        self.batch = limits.max_batch if engine.batched else 0
        self.labels, self.weights = engine.metadata.labels, _weights(engine.path)

    def whole(self, folder: Path) -> str:
        """The model as it is, with the files of its weights."""
        path = self.engine.path
        version = _version(folder)
        for file in [path, *self.weights]:
            shutil.copyfile(file, version / file.name)
        self._config(folder, [*self.engine.inputs], [*self.engine.outputs], **self._runs(path.name))
        how = f"batches of up to {self.batch} rows" if self.batch else "one request at a time"
        return f"{folder.name}: all tasks, {how}"

    def task(self, task: str, folder: Path) -> str:
        """One task: steps of an ensemble where it reads what all read, else a model of its own."""
        outputs = self.engine.tasks[task]
        inputs = self.engine.inputs_of(outputs)
        version = _version(folder)
        if len(inputs) < len(self.engine.inputs):
            _save(only(self.engine.path, inputs, outputs), version / "model.onnx", beside=bool(self.weights))
            self._config(folder, inputs, outputs, **self._runs("model.onnx"))
            return f"{folder.name}: {task} alone, with inputs of its own"
        (version / ".keep").touch()  # Triton wants the folder, which git and stores of objects would forget
        step = {
            "model_name": self.name, "model_version": -1, "input_map": _same(inputs), "output_map": _same(outputs),
        }  # fmt: skip
        self._config(folder, inputs, outputs, platform="ensemble", ensemble_scheduling={"step": [step]})
        return f"{folder.name}: {task}, an ensemble over {self.name}"

    def _runs(self, file: str) -> dict[str, Any]:
        """What an entry says that holds a model; requests wait for others as they do in `fxmerge serve`."""
        found: dict[str, Any] = {"platform": "onnxruntime_onnx", "default_model_filename": file}
        if self.batch:
            policy = {"max_queue_size": self.limits.max_queue}
            waits = {"max_queue_delay_microseconds": round(self.limits.max_wait * 1e6), "default_queue_policy": policy}
            found["dynamic_batching"] = waits
        return found

    def _config(self, folder: Path, inputs: Sequence[str], outputs: Sequence[str], **more: Any) -> None:
        plain = more["platform"] != "ensemble"
        told_in = [self._port(self.engine.inputs[name], reshape=plain) for name in inputs]
        told_out = [
            self._port(self.engine.outputs[name], reshape=plain) | self._named(name, folder) for name in outputs
        ]
        config = {"name": folder.name, "max_batch_size": self.batch, "input": told_in, "output": told_out} | more
        (folder / CONFIG).write_text("\n".join(lines(config)) + "\n", encoding="utf-8")

    def _port(self, port: Port, *, reshape: bool) -> dict[str, Any]:
        """An input or output; its batch axis, which comes first, is not among its sizes where there are batches."""
        shape = [size if isinstance(size, int) else -1 for size in port.shape][1 if self.batch else 0 :]
        told: dict[str, Any] = {"name": port.name, "data_type": Word(f"TYPE_{datatype(port)}"), "dims": shape or [1]}
        return told if shape or not reshape else told | {"reshape": {"shape": []}}

    def _named(self, name: str, folder: Path) -> dict[str, Any]:
        """The file of the class names of an output, which Triton's classification extension reads."""
        labels, shape = self.labels.get(self.engine.task_of[name]), self.engine.outputs[name].shape
        labels = self.engine.metadata.tasks if name == self.engine.gate else labels
        if not labels or len(shape) != 2 or shape[1] != len(labels):
            return {}
        file = f"labels_{list(self.engine.outputs).index(name)}.txt"
        (folder / file).write_text("\n".join(labels) + "\n", encoding="utf-8")
        return {"label_filename": file}


def lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A protobuf message in its text format; lists are repeated fields."""
    for key, value in values.items():
        many = value if isinstance(value, list) else [value]
        for one in many:
            if isinstance(one, Mapping):
                yield f"{indent}{key} {{"
                yield from lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {_scalar(one)}"


def _scalar(value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, Word):
        return str(value)
    quoted = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03o}" for b in value.encode())
    return f'"{"".join(quoted)}"'


def _same(names: Sequence[str]) -> list[dict[str, str]]:
    return [{"key": name, "value": name} for name in names]


def _entries(stem: str, tasks: Mapping[str, Any]) -> dict[str, str]:
    """By task the name of its entry, which is that of a folder."""
    found: dict[str, str] = {}
    for task in tasks:
        name = f"{stem}_{_plain(task)}"
        while name in found.values():
            name += "_"
        found[task] = name
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)


def _check(repository: Path, names: Sequence[str], overwrite: bool) -> None:
    if not repository.parent.is_dir():
        raise OutputError(
            f"the folder {repository.parent} does not exist", f"create it: mkdir -p {quote(str(repository.parent))}"
        )
    if repository.exists() and not repository.is_dir():
        raise OutputError(f"{repository} is a file", "give a folder")
    for found in (repository / name for name in names):
        if found.exists() and not (found / CONFIG).is_file():
            raise OutputError(f"{found} is there, and no model of Triton's", "choose another folder")
        if found.exists() and not overwrite:
            raise OutputError(f"{found} exists already", "add --overwrite to replace it, or choose another folder")


def _version(folder: Path) -> Path:
    """The folder of the only version of an entry."""
    (folder / "1").mkdir(parents=True)
    return folder / "1"


def _weights(path: Path) -> list[Path]:
    """The files beside a model that hold its weights. Raises `SourceError` for one that is not beside it."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    graph = onnx.load(str(path), load_external_data=False).graph
    kept = {e.value for t in graph.initializer if uses_external_data(t) for e in t.external_data if e.key == "location"}
    for name in kept:
        if name != Path(name).name or not (path.parent / name).is_file():
            raise SourceError(
                f"{path} has weights in {printable(name)!r}, which is no file beside it", "save it with them beside it"
            )
    return [path.parent / name for name in sorted(kept)]


def _save(model: Any, path: Path, *, beside: bool) -> None:
    """The model, its weights in a file beside it if they were beside the model it comes from."""
    import onnx

    onnx.save(model, str(path), save_as_external_data=beside, location=weights_beside(path).name if beside else None)


def _move(made: Path, path: Path) -> None:
    """Put an entry in its place, and what was there away."""
    if path.exists():
        os.replace(path, made.parent / f"{made.name}.before")
    os.replace(made, path)
