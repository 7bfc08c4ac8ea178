"""Write one model alone, by the exporter and with the checks that merged models have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxmerge.from_onnx.runtime import compare_runs
from fxmerge.installed import knowledge, known
from fxmerge.io.files import check_output, sha256
from fxmerge.ir.difference import floor, largest, require
from fxmerge.ir.program import Program
from fxmerge.output.formats import save_model
from fxmerge.pipeline.format import Content, check_suffix
from fxmerge.pipeline.knowledge import Plan
from fxmerge.sources.load import load
from fxmerge.sources.said import metadata_in
from fxmerge.version import __version__


def export(
    source: Program | str | Path,
    out: str | Path,
    *,
    opset: int | None = None,
    overwrite: bool = False,
    tolerance: float = 1e-4,
    extensions: Sequence[str] = (),
    **options: Any,
) -> float:
    """Write a model in the format of the suffix of `out`; the largest difference of what was written, read back.

    Inputs, outputs and dynamic axes keep the model's own names; a merged model stays one, whatever it was written as.
    `options` are those of `fxmerge.load`.
    Raises `VerificationError`, and writes nothing, if what was written computes something else.
    """
    installed = known(extensions)
    check_suffix(str(out))
    check_output(out, overwrite=overwrite)
    program = source if isinstance(source, Program) else load(source, **options)
    written = knowledge().pipeline(Plan((program.task,))).run("merged", program, installed)
    todo = "nothing was written; write it in another format, and please report it"
    require("the model as it would be written", compare_runs(written, program), max(tolerance, floor(program)), todo)
    said = metadata_in(program)
    metadata = {**said, "fxmerge.version": __version__}
    if not isinstance(source, Program):
        metadata["fxmerge.source"] = sha256(source)
    assets = {} if said else {program.task: program.assets}
    content = Content(written, metadata, {}, assets, rules=installed.rules)
    return largest(save_model(content, out, opset=opset, overwrite=overwrite, tolerance=tolerance))
