"""What a merge gives back: the merged model, and the figures that `--result` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fxmerge.ir.program import Program, by_name


@dataclass
class Merged:
    """One model that does the work of all its parents.

    `merged(x)["mnist"]` is the task's output tensor, or a dict by output name where a parent has several.
    """

    program: Program
    """The folded network; its outputs are "TASK.OUTPUT"."""
    result: dict[str, Any]
    """What `--result` writes, key by key as documented."""
    tasks: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    parents: tuple[Program, ...] = ()
    """The programs that were merged, as they were given."""

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Any]:
        return self.by_task(self.program.run(by_name(self.program.inputs, args, kwargs)))

    def by_task(self, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Outputs named "TASK.OUTPUT" as one tensor, or one dict, for each task."""
        found: dict[str, dict[str, Tensor]] = {task: {} for task in self.tasks}
        for name, value in outputs.items():
            task = next(t for t in sorted(self.tasks, key=len, reverse=True) if name.startswith(f"{t}."))
            found[task][name.removeprefix(f"{task}.")] = value
        return {task: next(iter(v.values())) if len(v) == 1 else v for task, v in found.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights by name: the trunk's carry the template parent's names, a head's "TASK.NAME"."""
        return {name: tensor.detach() for name, tensor in self.program.tensors.items()}

    def export_onnx(self, path: str | Path, *, opset: int | None = None) -> float:
        """Write the model as ONNX to exactly this path, whole or not at all; the largest difference to ONNX Runtime's
        outputs. Weights over 1.5 GB go to `PATH.data`, and a note in the result says so."""
        from fxmerge.output.formats import save_merged

        gap = save_merged(self, path, opset=opset, overwrite=True, suffix=".onnx")
        assert gap is not None
        return gap

    def save(self, path: str | Path, *, opset: int | None = None, overwrite: bool = True) -> None:
        """Write by suffix: `.onnx`, `.pt2`, `.pt` (bundle), `.safetensors`, or a folder with the weights."""
        from fxmerge.config import check_suffix
        from fxmerge.output.formats import save_merged

        check_suffix(str(path))
        save_merged(self, path, opset=opset, overwrite=overwrite)

    def metadata(self) -> dict[str, str]:
        """What the written model says of itself: version, method, tasks, labels, parents' hashes, seed."""
        import json

        result = self.result
        return {
            "fxmerge.version": str(result["fxmerge"]),
            "fxmerge.method": str(result["method"]),
            "fxmerge.init": str(result["init"]),
            "fxmerge.seed": str(result["seed"]),
            "fxmerge.tasks": json.dumps(list(self.tasks)),
            "fxmerge.labels": json.dumps({t: list(names) if names else None for t, names in self.labels.items()}),
            "fxmerge.parents": json.dumps({p["task"]: p["sha256"] for p in result["parents"]}),
        }
