"""Write a merged model in the form its path asks for, whole or not at all, and compare what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from fxmerge.errors import VerificationError
from fxmerge.io.bundle import save_bundle
from fxmerge.io.files import atomic_write, weights_beside
from fxmerge.output.onnx import compare_onnx, export_onnx, retrace

if TYPE_CHECKING:
    from fxmerge.output.merged import Merged


def save_merged(
    merged: Merged,
    out: str | Path,
    *,
    opset: int | None = None,
    overwrite: bool = False,
    samples: Mapping[str, Tensor] | None = None,
    tolerance: float = 1e-4,
    suffix: str | None = None,
) -> float | None:
    """Write `merged` to `out` by its suffix; the largest difference between ONNX Runtime and the model, for `.onnx`.

    `suffix` is taken in place of the path's own. Weights that lie in a file of their own are said in the notes.

    Raises `VerificationError` if that exceeds `tolerance` (relative to outputs above one); then nothing is written.
    """
    path = Path(out)
    suffix = path.suffix if suffix is None else suffix
    gap = None
    with atomic_write(path, overwrite=overwrite) as part:
        if suffix == ".onnx":
            export_onnx(merged.program, part, opset=opset, metadata=merged.metadata())
            gap = _check_onnx(part, merged, samples, tolerance)
        elif suffix == ".pt2":
            torch.export.save(retrace(merged.program), part)
        elif suffix == ".pt":
            save_bundle(merged.program, part)
        elif suffix == ".safetensors":
            save_file(_contiguous(merged), part, metadata=merged.metadata())
        else:
            part.mkdir(exist_ok=True)
            save_file(_contiguous(merged), part / "model.safetensors", metadata={"format": "pt", **merged.metadata()})
            for name, data in merged.program.assets.items():
                (part / name).write_bytes(data)
            (part / "fxmerge.json").write_text(json.dumps(merged.result, indent=2), encoding="utf-8")
    if suffix == ".onnx" and weights_beside(path).is_file():
        large = weights_beside(path)
        merged.result["notes"].append(f"the weights are in {large}: {path.name} needs that file beside it")
    return gap


def _check_onnx(path: Path, merged: Merged, samples: Mapping[str, Tensor] | None, tolerance: float) -> float:
    gap = compare_onnx(path, merged.program, samples)
    scale = 1.0
    if samples:
        with torch.no_grad():
            outputs = merged.program.run({name: value[:32] for name, value in samples.items()})
        scale = max(1.0, *(float(v[v.isfinite()].abs().max()) for v in outputs.values() if v.isfinite().any()))
    if not gap <= tolerance * scale:
        raise VerificationError(
            f"ONNX Runtime is not the folded model: outputs differ by {gap:.3g} (tolerance {tolerance * scale:.3g})",
            "nothing was written; try another --opset, and please report it",
        )
    return gap


def _contiguous(merged: Merged) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in merged.state_dict().items()}
