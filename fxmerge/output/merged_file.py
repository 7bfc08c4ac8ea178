"""A merged ONNX file, task by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx

from fxmerge.errors import DataError
from fxmerge.from_onnx.metadata import read_metadata, task_of
from fxmerge.from_onnx.runtime import OnnxModel
from fxmerge.io.files import sha256
from fxmerge.ir.program import Port, Program
from fxmerge.output.assets import unpack
from fxmerge.output.scores import token_ids

CHUNK = 256
"""Rows run at a time; a quarter of that for outputs at every token."""

Samples = Mapping[str, Tensor]


class MergedFile:
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
        """How many rows are run at a time: fewer where there are outputs at every token."""
        return CHUNK if all(len(port.shape) <= 2 for port in self.outputs(task)) else CHUNK // 4

    def is_causal(self, task: str, output: Port, samples: Samples) -> bool:
        """True if a class is chosen for every token of one token input, and depends on no later token."""
        part = {name: value[:2] for name, value in samples.items()}
        ids = token_ids(part)
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
