"""What a merge gives back: the merged model, and the figures that `--result` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fxmerge.coupling import RuleSet
from fxmerge.from_onnx.metadata import GATE, task_of
from fxmerge.io.files import weights_beside
from fxmerge.ir.difference import Difference, largest
from fxmerge.ir.program import Program, by_name
from fxmerge.output.formats import ONNX, format_of, save_model
from fxmerge.output.insight import Insight
from fxmerge.pipeline.format import Content, Format, check_suffix
from fxmerge.result import Result
from fxmerge.samples.fit import check_samples


@dataclass
class Merged:
    """One model that does the work of all its parents.

    `merged(x)["mnist"]` is the task's output tensor, or a dict by output name where a parent has several;
    `merged(x)["task"]` the probabilities of the tasks, in the order of `tasks`, if it was merged with a gate, and
    `merged(x)["logits"]` the answer for a row whose task is not known, if parents give `logits` and one was asked for.
    """

    program: Program
    """The folded network; its outputs are "TASK.OUTPUT"."""
    facts: Result
    """What the merge found out about itself."""
    tasks: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    parents: tuple[Program, ...] = ()
    """The programs that were merged, as they were given."""
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    """A few inputs, to compare with what is written."""
    formats: tuple[Format, ...] = ()
    """What it can be written as, beside the built-in ways."""
    rules: RuleSet | None = None
    """Those of the run, which also say how operators are written as ONNX."""
    insight: Insight | None = None
    """What a report looks at; kept for one with `report` alone."""

    @property
    def result(self) -> dict[str, Any]:
        """What `--result` writes, key by key as documented."""
        return self.facts.as_dict()

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Any]:
        """Run on positional or named inputs; raises `DataError` that says what the model takes if these do not fit."""
        inputs = by_name(self.program.inputs, args, kwargs)
        try:
            return self.by_task(self.program.run(inputs))
        except (RuntimeError, IndexError, TypeError, AttributeError):
            check_samples(inputs, self.program, "the inputs")
            raise

    def by_task(self, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Outputs named "TASK.OUTPUT" as one tensor, or one dict, for each task."""
        found: dict[str, dict[str, Tensor]] = {task: {} for task in self.tasks}
        for name, value in outputs.items():
            task = task_of(name, self.tasks)
            if task is None:  # the gate's
                found[name] = {name: value}
                continue
            found[task][name.removeprefix(f"{task}.")] = value
        return {task: next(iter(v.values())) if len(v) == 1 else v for task, v in found.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights by name: the trunk's carry the template parent's names, a head's "TASK.NAME"."""
        return {name: tensor.detach() for name, tensor in self.program.tensors.items()}

    def export_onnx(self, path: str | Path, *, opset: int | None = None) -> float:
        """Write the model as ONNX to exactly this path, whole or not at all; the largest difference of an output.

        Differences are relative to the output's spread. Weights over 1.5 GB go to `PATH.data`, which a note says.
        """
        return largest(self.write(path, opset=opset, chosen=ONNX))

    def save(self, path: str | Path, *, opset: int | None = None, overwrite: bool = True) -> None:
        """Write by suffix: `.onnx`, `.pt2`, `.pt` (bundle), `.safetensors`, or a folder with the weights."""
        check_suffix(str(path), self.formats)
        self.write(path, opset=opset, overwrite=overwrite)

    def write(
        self,
        path: str | Path,
        *,
        opset: int | None = None,
        overwrite: bool = True,
        tolerance: float = 1e-4,
        chosen: Format | None = None,
    ) -> dict[str, Difference]:
        """`save`, with what reading back differs in, by output. Raises `VerificationError` beyond the tolerance."""
        assets = {parent.task: parent.assets for parent in self.parents}
        content = Content(self.program, self.metadata(), self.result, assets, self.samples, rules=self.rules)
        found = save_model(
            content, path, opset=opset, overwrite=overwrite, samples=self.samples or None, tolerance=tolerance,
            chosen=chosen or format_of(path, self.formats),
        )  # fmt: skip
        notes, large = content.notes, weights_beside(path)
        if (chosen or format_of(path)) is ONNX and large.is_file():
            notes.append(f"the weights are in {large}: {Path(path).name} needs that file beside it")
        self.facts = replace(self.facts, notes=(*self.facts.notes, *notes))
        return found

    def metadata(self) -> dict[str, str]:
        """What the written model says of itself: version, method, tasks, labels, parents' hashes, seed."""
        facts = self.facts
        gate: dict[str, Any] = {}
        if facts.gate:
            gate = {"output": facts.gate.output, "tasks": facts.gate.tasks, "after": facts.gate.after}
            if facts.gate.answers:
                gate["answers"] = {each.output: {"how": each.how, "of": each.of} for each in facts.gate.answers}
        return {
            **({GATE: json.dumps(gate)} if gate else {}),
            "fxmerge.version": facts.fxmerge,
            "fxmerge.method": facts.method,
            "fxmerge.init": facts.init,
            "fxmerge.seed": str(facts.seed),
            "fxmerge.tasks": json.dumps(list(self.tasks)),
            "fxmerge.labels": json.dumps({t: list(names) if names else None for t, names in self.labels.items()}),
            "fxmerge.turned": json.dumps({p.task: dict(p.turned) for p in self.parents if p.turned}),
            "fxmerge.parents": json.dumps({parent.task: parent.sha256 for parent in facts.parents}),
        }
