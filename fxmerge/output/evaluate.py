"""Measure a merged ONNX model on labeled or unlabeled samples, alone or against its parents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxmerge.errors import DataError
from fxmerge.from_onnx.metadata import read_metadata, task_of
from fxmerge.from_onnx.runtime import OnnxModel
from fxmerge.io.files import sha256
from fxmerge.ir.program import Port, Program
from fxmerge.messages import unknown
from fxmerge.output.assets import unpack
from fxmerge.output.readings import as_sign, holds_numbers, metric_of, reading
from fxmerge.output.scores import Score, real_places
from fxmerge.samples.load import Reading, load_samples
from fxmerge.samples.load import Samples as Loaded
from fxmerge.sources.load import load
from fxmerge.stages import Stages

CHUNK = 256
"""Rows run at a time; a quarter of that for outputs at every token."""

Samples = Mapping[str, Tensor]


def evaluate(
    model: str | Path,
    data: Mapping[str, str],
    *,
    parents: Sequence[str | Path | Program] = (),
    device: str = "cpu",
    limit: int | None = None,
    strict_data: bool = False,
    allow_pickle: bool = False,
    metric: Mapping[str, str] | None = None,
    stages: Stages | None = None,
) -> dict[str, Any]:
    """Figures per task of the merged model at `model`, run by ONNX Runtime: what `eval --json` prints.

    `data`: a path of samples by task; the key "" serves every task. With labels there is an accuracy, of the output
    that holds class scores; with the task's parent there are figures of every output, and an agreement, the share of
    samples in which both choose the same class, where an output holds class scores (`metric` says so where nothing
    else does). With a gate there is a `gate_accuracy`, the share of samples whose task it names, and, with labels, a
    `routed_accuracy`, in which a sample that it takes for another task's counts as wrong; `answer_accuracy` is that of
    what it mixes of all tasks. A decoder, whose output at a
    token depends on no later one, has a perplexity in place of an accuracy.
    """
    metric = metric or {}
    stages = stages or Stages()
    with stages("load"):
        merged = _Model(model, device)
        loaded = [p if isinstance(p, Program) else load(p, allow_pickle=allow_pickle) for p in parents]
        teachers = {program.task: program for program in loaded}
    for name in {**data, **teachers}:
        if name and name not in merged.tasks:
            raise unknown("task", name, merged.tasks)
    names = [port.name for port in merged.onnx.outputs]
    for name in metric:
        if name and name not in (*merged.tasks, *names):
            raise unknown("task or output", name, [*merged.tasks, *names])
    notes = [note for given, program in zip(parents, loaded, strict=True) if (note := merged.stranger(given, program))]
    rows = []
    for task in merged.tasks:
        path = data.get(task, data.get(""))
        if path is None:
            continue
        with stages(f"eval {task}") as tell:
            parent = teachers.get(task)
            samples = _read(path, parent, merged.shell(task), Reading(limit, strict=strict_data))
            notes += samples.notes
            truth = _truth(merged, task, parent, samples, metric)
            compared: dict[str, Score] = {}
            for first, part in _chunks(samples.inputs, merged.rows_at_once(task)):
                ours, named, mixed = merged.answer(task, part)
                theirs = None if parent is None else _run(parent, part)
                if parent is not None and theirs is not None:
                    _compare(compared, parent, part, ours, theirs, metric)
                truth.add(part, ours, theirs, first, named, mixed)
                tell(first + _rows(part), samples.rows, "")
            rows.append(
                {
                    "task": task,
                    "samples": samples.rows,
                    **_skipped(samples),
                    **_agreement(compared),
                    **truth.figures(),
                }
            )
            notes += [note for score in compared.values() for note in score.notes(task)]
    return {"model": str(model), "device": device, "tasks": rows, "notes": list(dict.fromkeys(notes))}


class _Model:
    """A merged ONNX file, task by task."""

    def __init__(self, path: str | Path, device: str) -> None:
        self.onnx = OnnxModel(path, device=device, strange=True)
        said = read_metadata(self.onnx.metadata, self.onnx.outputs, path)
        self.tasks, self.labels, self.hashes, self.turned = said.tasks, said.labels, said.parents, said.turned
        self.gate, self.answers = said.gate, said.answers
        self.assets = unpack(self.onnx.metadata, path)

    def inputs(self, task: str) -> list[Port]:
        """The inputs of a task, by the parent's own names."""
        own = [port for port in self.onnx.inputs if task_of(port.name, self.tasks) in (None, task)]
        return [Port(port.name.removeprefix(f"{task}."), port.shape, port.dtype) for port in own]

    def shell(self, task: str) -> Program:
        """A program with the inputs of a task and nothing in it: what reading samples needs to know."""
        graph, ports = fx.Graph(), self.inputs(task)
        fixed = {p.shape[0] for p in self.onnx.outputs if p.shape and isinstance(p.shape[0], int)}
        ranges = {"batch": (count := int(fixed.pop()), count)} if len(fixed) == 1 else {}
        for place, port in enumerate(ports):
            if ranges and port.shape and port.shape[0] == ranges["batch"][0]:
                ports[place] = replace(port, shape=("batch", *port.shape[1:]))
        graph.output(tuple(graph.placeholder(f"input{number}") for number, _ in enumerate(ports)))
        labels = self.labels.get(task)
        return Program(
            graph=graph, tensors={}, inputs=tuple(ports), outputs=tuple(ports), parameters=frozenset(), task=task,
            labels=tuple(labels) if labels else None, turned=self.turned.get(task, {}),
            ranges=ranges, assets=self.assets.get(task, {}),
        )  # fmt: skip

    def outputs(self, task: str) -> tuple[Port, ...]:
        """The outputs of a task, by the parent's own names."""
        own = [port for port in self.onnx.outputs if task_of(port.name, self.tasks) == task]
        return tuple(Port(port.name.removeprefix(f"{task}."), port.shape, port.dtype) for port in own)

    def run(self, task: str, samples: Samples) -> dict[str, Tensor]:
        """The outputs of a task, by the parent's own names."""
        return self.answer(task, samples)[0]

    def answer(self, task: str, samples: Samples) -> tuple[dict[str, Tensor], Tensor | None, dict[str, Tensor]]:
        """The outputs of a task by the parent's own names; per row whether the gate names it (None without one); and
        what the gate mixes of all tasks for each of these outputs.

        Inputs that only other tasks read are filled with ones.
        """
        samples = self._renamed(task, samples)
        sizes: dict[str, int] = {}
        for port in self.inputs(task):
            sizes |= {s: n for s, n in zip(port.shape, samples[port.name].shape, strict=True) if isinstance(s, str)}
        fed = {}
        for port in self.onnx.inputs:
            own = samples.get(port.name.removeprefix(f"{task}."))
            shape = [sizes.get(s, 1) if isinstance(s, str) else s for s in port.shape]
            fed[port.name] = torch.ones(shape, dtype=port.dtype) if own is None else own
        found = self.onnx.run(fed)
        named = found[self.gate].argmax(-1) == self.tasks.index(task) if self.gate else None
        ours = {port.name: found[f"{task}.{port.name}"] for port in self.outputs(task)}
        mixed = [each for each in self.answers.values() if each.how == "mix"]
        answers = {name: found[each.output] for each in mixed for name in ours if f"{task}.{name}" in each.of}
        return ours, named, answers

    def _renamed(self, task: str, samples: Samples) -> Samples:
        """Samples by the merged model's names: a parent may call its inputs otherwise, in the same order."""
        names = [port.name for port in self.inputs(task)]
        if set(names) <= samples.keys():
            return samples
        if len(names) != len(samples):
            raise DataError(
                f"{task} takes {', '.join(names)}, not {', '.join(samples)}", "give the parent's own samples"
            )
        return dict(zip(names, samples.values(), strict=True))

    def rows_at_once(self, task: str) -> int:
        return CHUNK if all(len(port.shape) <= 2 for port in self.outputs(task)) else CHUNK // 4

    def is_causal(self, task: str, output: Port, samples: Samples) -> bool:
        """True if a class is chosen for every token of one token input, and depends on no later token."""
        part = {name: value[:2] for name, value in samples.items()}
        ids = _ids(part)
        if ids is None or len(output.shape) != 3 or part[ids].shape[1] < 2:
            return False
        before = self.run(task, part)[output.name]
        if before.shape[:2] != part[ids].shape or int(samples[ids].max()) >= before.shape[2]:
            return False
        changed = part[ids].clone()
        changed[:, -1] = torch.where(changed[:, -1] == 0, 1, 0)
        after = self.run(task, {**part, ids: changed})[output.name]
        return bool(torch.allclose(before[:, :-1], after[:, :-1], atol=1e-4))

    def stranger(self, given: object, program: Program) -> str:
        """A note if a parent is not the file that was merged."""
        known = self.hashes.get(program.task)
        if known is None or isinstance(given, Program) or not Path(str(given)).is_file() or sha256(str(given)) == known:
            return ""
        return f"{given} is not the file that was merged as {program.task}"


def _compare(
    found: dict[str, Score],
    parent: Program,
    part: Samples,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    metric: Mapping[str, str],
) -> None:
    """Add a part of the samples to the figures of every output that both have."""
    real = real_places(part)
    for port in parent.outputs:
        if port.name not in ours:
            continue
        if port.name not in found:
            how = reading(parent, port, theirs[port.name], metric_of(metric, parent.task, port.name))
            found[port.name] = Score(port.name, how)
        found[port.name].add(ours[port.name], theirs[port.name], real)


def _skipped(samples: Loaded) -> dict[str, int]:
    """How many broken parts of the samples were left out, where some were."""
    return {"skipped": samples.skipped} if samples.skipped else {}


def _agreement(compared: Mapping[str, Score]) -> dict[str, Any]:
    """The agreement of a task, None where no output holds class scores, and the figures of every output."""
    if not compared:
        return {}
    shares = [score.agreement for score in compared.values() if score.agreement is not None]
    found = sum(shares) / len(shares) if shares else None
    return {"agreement": found, "outputs": [score.figures() for score in compared.values()]}


def _truth(merged: _Model, task: str, parent: Program | None, samples: Loaded, metric: Mapping[str, str]) -> _Truth:
    """What is counted about the labels of the samples, or about the tokens that follow."""
    ports = [p for p in merged.outputs(task) if metric_of(metric, task, p.name) not in ("regression", "none")]
    causal = next((p for p in ports if merged.is_causal(task, p, samples.inputs)), None)
    if causal is not None:
        return _Truth(causal, causal=True)
    names = (parent or merged.shell(task)).labels
    scores = next((p for p in ports if len(p.shape) == 2 and p.shape[1] != 1 and not holds_numbers(p)), None)
    logit = next((p for p in ports if len(p.shape) == 1 or p.shape[1:] == (1,)), None)
    if scores is not None:
        return _Truth(scores, _by_name(samples.labels, scores, names))
    two = samples.labels is not None and set(samples.labels.tolist()) <= {0, 1}
    return _Truth(logit, samples.labels) if logit is not None and two else _Truth(None)


@dataclass
class _Truth:
    """Counts over the labels of one task, or over its next tokens."""

    port: Port | None
    """The output in which a class is chosen."""
    labels: Tensor | None = None
    causal: bool = False
    labeled: int = 0
    right: int = 0
    parent_right: int | None = None
    rows: int = 0
    named: int = 0
    """Rows whose task the gate names."""
    routed: int = 0
    """Labeled rows that are right, and whose task the gate names: a caller who does not know it gets these right."""
    answered: int | None = None
    """Labeled rows that are right in what the gate mixes of all tasks."""
    tokens: int = 0
    loss: float = 0.0
    parent_loss: float | None = None

    def add(
        self,
        samples: Samples,
        ours: Mapping[str, Tensor],
        theirs: Mapping[str, Tensor] | None,
        first: int,
        named: Tensor | None = None,
        mixed: Mapping[str, Tensor] | None = None,
    ) -> None:
        if named is not None:
            self.rows, self.named = self.rows + len(named), self.named + int(named.sum())
        if self.port is None:
            return
        mine = ours[self.port.name]
        other = None if theirs is None else theirs.get(self.port.name)
        if self.causal:
            nats, count = _next_token(samples, mine)
            self.tokens, self.loss = self.tokens + count, self.loss + nats
            if other is not None:
                self.parent_loss = (self.parent_loss or 0.0) + _next_token(samples, other)[0]
        elif self.labels is not None:
            labels = self.labels[first : first + len(mine)]
            self.labeled += len(labels)
            right = self._right(mine, labels)
            self.right += int(right.sum())
            if named is not None:
                self.routed += int((right & named).sum())
            if mixed and self.port.name in mixed:
                self.answered = (self.answered or 0) + int(self._right(mixed[self.port.name], labels).sum())
            if other is not None:
                self.parent_right = (self.parent_right or 0) + int(self._right(other, labels).sum())

    @staticmethod
    def _right(value: Tensor, labels: Tensor) -> Tensor:
        if value.ndim == 1 or value.shape[-1] == 1:
            return as_sign(value).choice(value).reshape(-1) == (labels == 1)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < value.shape[-1]:
            raise DataError(
                f"labels from {int(labels.min())} to {int(labels.max())} for {value.shape[-1]} classes",
                "give class indices from 0, or the names in the order of the bundle's labels",
            )
        return value.argmax(-1) == labels

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.labeled:
            if self.parent_right is not None:
                found["parent_accuracy"] = self.parent_right / self.labeled
            found["merged_accuracy"] = self.right / self.labeled
            if self.rows:
                found["routed_accuracy"] = self.routed / self.labeled
            if self.answered is not None:
                found["answer_accuracy"] = self.answered / self.labeled
        if self.rows:
            found["gate_accuracy"] = self.named / self.rows
        if self.tokens:
            if self.parent_loss is not None:
                found["parent_perplexity"] = math.exp(self.parent_loss / self.tokens)
            found["merged_perplexity"] = math.exp(self.loss / self.tokens)
        return found


def _read(path: str, parent: Program | None, shell: Program, how: Reading) -> Loaded:
    """Samples as the parent takes them; an older ONNX file knows its inputs, but no tokenizer."""
    try:
        return load_samples(path, parent or shell, how)
    except DataError as error:
        if parent is None and "tokenizer" in error.what:
            raise DataError(
                error.what, f"give --parent SOURCE: the tokenizer of {shell.task} is in its bundle"
            ) from error
        raise


def _by_name(labels: Tensor | None, output: Port, names: Sequence[str] | None) -> Tensor | None:
    """Class indices; numbers too large for one are looked up among the names: 5 is class 0 of "5" to "9"."""
    classes = output.shape[-1]
    if (
        labels is None
        or names is None
        or not isinstance(classes, int)
        or not len(labels)
        or int(labels.max()) < classes
    ):
        return labels
    known = {name: number for number, name in enumerate(names)}
    found = [known.get(str(value)) for value in labels.tolist()]
    return labels if None in found else torch.tensor(found)


def _run(program: Program, samples: Samples) -> dict[str, Tensor]:
    with torch.no_grad():
        return program.run(samples)


def _rows(samples: Samples) -> int:
    return max((value.shape[0] for value in samples.values() if value.ndim), default=0)


def _chunks(samples: Samples, size: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
    rows = _rows(samples)
    for first in range(0, rows, size):
        yield first, {n: v[first : first + size] if v.ndim and len(v) == rows else v for n, v in samples.items()}


def _tokens(samples: Samples) -> dict[str, Tensor]:
    return {name: value for name, value in samples.items() if value.ndim == 2 and not value.is_floating_point()}


def _ids(samples: Samples) -> str | None:
    """The input that holds token ids: the most varied of the integer ones."""
    tokens = _tokens(samples)
    return max(tokens, key=lambda name: len(torch.unique(tokens[name])), default=None)


def _next_token(samples: Samples, output: Tensor) -> tuple[float, int]:
    """Nats and number of tokens predicted from those before them."""
    name = _ids(samples)
    assert name is not None
    real = real_places(samples)
    if real is None or real.shape != output.shape[:2]:
        real = torch.ones(output.shape[:2], dtype=torch.bool)
    wanted = real[:, 1:] & real[:, :-1]
    loss = F.cross_entropy(output[:, :-1][wanted].double(), samples[name][:, 1:][wanted].long(), reduction="sum")
    return float(loss), int(wanted.sum())
