"""Write a program as ONNX."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from fxmerge.coupling import RuleSet
from fxmerge.errors import OptionError, OutputError
from fxmerge.from_onnx.runtime import OnnxModel, compare_onnx, run_onnx
from fxmerge.installed import tracing, translations
from fxmerge.io.files import weights_beside
from fxmerge.ir.program import Program

__all__ = ["OPSET", "OPSETS", "OnnxModel", "compare_onnx", "export_onnx", "retrace", "run_onnx"]

OPSET = 20
"""Default operator set: the first with a single Gelu node, and one that older runtimes still read."""

OPSETS = range(18, 24)
"""Operator sets the exporter of PyTorch can write and ONNX Runtime can run."""

SMALL = 256
"""A constant of at most this many numbers may be copied to save a node; a larger one is stored once."""

HIDDEN = "fxmerge.hidden"
"""A set of operators that no rule of the optimizer knows."""

LARGE = 1_500_000_000
"""Bytes of weights above which they go into a file beside the model: one protobuf message holds 2 GiB."""


def export_onnx(
    program: Program,
    path: str | Path,
    *,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
    rules: RuleSet | None = None,
) -> None:
    """Write `program` to `path` as ONNX; inputs, outputs and dynamic axes carry the names of the ports.

    Constants are folded, tied tensors stored once, `metadata` becomes `metadata_props`; `rules` (those installed, if
    they are left out) say how operators are written that the exporter does not know.
    Above `LARGE` bytes the weights go to `PATH.data` beside the model.
    Raises `OptionError` for an operator set that cannot be written and `OutputError` for an operator that ONNX lacks.
    """
    if opset is not None and opset not in OPSETS:
        raise OptionError(f"--opset {opset} cannot be written", f"choose one from {OPSETS.start} to {OPSETS.stop - 1}")
    with _quiet():
        model = _translate(program, opset or OPSET, rules)
        _optimize(model)
        _name(model, program)
        model.metadata_props.update(metadata or {})
        model.producer_name = "fxmerge"
        _save(model, Path(path))


def _translate(program: Program, opset: int, rules: RuleSet | None) -> Any:
    """The unoptimised ONNX model of a program, as an `onnx_ir.Model`."""
    exported = retrace(program, rules)
    try:
        with tracing(rules):
            made = torch.onnx.export(
                exported, (), dynamo=True, opset_version=opset, optimize=False, verbose=False,
                custom_translation_table=translations(rules),
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise OutputError(_reason(error), "write it as .pt2 or .safetensors instead, or try another --opset") from error
    assert made is not None
    return made.model


def retrace(program: Program, rules: RuleSet | None = None) -> ExportedProgram:
    """The program as a `torch.export` program, its dynamic sizes kept dynamic."""
    args, shapes = [], []
    for port, node in zip(program.inputs, program.placeholders, strict=True):
        size = tuple(node.meta["val"].shape)
        args.append(torch.zeros(size, dtype=port.dtype, device=_device(program)))
        # an expression such as "2*sequence" is derived from another size: left for torch.export to find
        shapes.append(
            {
                axis: Dim.DYNAMIC if size.isidentifier() else Dim.AUTO
                for axis, size in enumerate(port.shape)
                if isinstance(size, str) and program.only_size(size) is None
            }
        )
    with _quiet(), torch.no_grad(), tracing(rules):
        return torch.export.export(program.module, tuple(args), dynamic_shapes=tuple(shapes), strict=False)


def _device(program: Program) -> torch.device:
    return next((t.device for t in program.tensors.values()), torch.device("cpu"))


def _reason(error: BaseException) -> str:
    """One line: the operator that has no ONNX form where the exporter names one, else the innermost cause."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        found = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'", str(cause))
        if found:
            return f"ONNX has no form of the operator {found[1].replace('::', '.')}.{found[2]}"
    first = next((line.strip() for line in str(causes[-1]).splitlines() if line.strip()), type(causes[-1]).__name__)
    return f"the model cannot be written as ONNX: {first}"


def _optimize(model: Any) -> None:
    """Fold constants, but never store a second copy of a tensor; drop what only debugging needs."""
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import fold_constants_ir, optimize_ir

    def should_fold(node: Any) -> bool | None:
        for value in node.inputs:
            constant = None if value is None else value.const_value
            if constant is not None and constant.size > SMALL and len(value.uses()) > 1:
                return False
        return None

    limits: Any = {"should_fold": should_fold, "output_size_limit": 16 * SMALL}
    common.InlinePass()(model)
    fold_constants_ir(model, **limits)
    with _kept(model):
        optimize_ir(model, **limits)
    _spread_masks(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)


@contextmanager
def _kept(model: Any) -> Iterator[None]:
    """Hide calls with a number that is nearly 0 or 1 from the optimizer, which takes 1e-8 for zero and drops them."""
    hidden = [node for node in model.graph if any(_is_nearly(value) for value in node.inputs)]
    for node in hidden:
        node.domain = HIDDEN
    if hidden:
        model.graph.opset_imports[HIDDEN] = 1
    try:
        yield
    finally:
        for node in hidden:
            node.domain = ""
        model.graph.opset_imports.pop(HIDDEN, None)


def _is_nearly(value: Any) -> bool:
    """Whether a value is a constant that is next to 0 or 1, and is neither."""
    constant = None if value is None else value.const_value
    if constant is None or constant.size != 1 or not constant.dtype.is_floating_point():
        return False
    number = float(constant.numpy().reshape(()))
    return any(0 < abs(number - whole) <= 1e-4 for whole in (0, 1))


def _spread_masks(model: Any) -> None:
    """Give attention masks of one row a row per query: ONNX Runtime does not broadcast that axis.

    Attention(q, k, v, mask[b,1,1,k])  -->  Attention(q, k, v, Expand(mask, [1, 1, queries, 1]))
    """
    import onnx_ir

    for node in list(model.graph):
        mask = node.inputs[3] if node.op_type == "Attention" and len(node.inputs) > 3 else None
        if mask is None or mask.shape is None or len(mask.shape) < 2 or mask.shape[-2] != 1:
            continue
        length = onnx_ir.Node(
            "", "Shape", [node.inputs[0]], [onnx_ir.AttrInt64("start", 2), onnx_ir.AttrInt64("end", 3)]
        )
        ones = onnx_ir.Node("", "Constant", [], [onnx_ir.AttrInt64s("value_ints", [1])])
        sizes = onnx_ir.Node("", "Concat", [length.outputs[0], ones.outputs[0]], [onnx_ir.AttrInt64("axis", 0)])
        wide = onnx_ir.Node("", "Expand", [mask, sizes.outputs[0]])
        model.graph.insert_before(node, (length, ones, sizes, wide))
        node.replace_input_with(3, wide.outputs[0])


def _name(model: Any, program: Program) -> None:
    """Give inputs, outputs and dynamic axes the names of the program's ports."""
    import onnx_ir
    import onnx_ir.passes.common as common

    common.OutputFixPass()(model)
    taken = {port.name for port in (*program.inputs, *program.outputs)}
    for value in _values_of(model):
        if value.name in taken:  # an inner value that happens to be called like a port
            value.name = f"{value.name}__inner"
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None  # optimizers name inner sizes alike that differ, and ONNX Runtime believes them
    ports = [*zip(model.graph.inputs, program.inputs, strict=True)]
    ports += zip(model.graph.outputs, program.outputs, strict=True)
    for value, port in ports:
        value.name = port.name
        value.shape = onnx_ir.Shape([program.only_size(size) or size for size in port.shape])


def _values_of(model: Any) -> Iterator[Any]:
    yield from model.graph.inputs
    yield from list(model.graph.initializers.values())  # renaming one changes the dict
    for node in model.graph.all_nodes():
        yield from node.outputs


def _save(model: Any, path: Path) -> None:
    import onnx_ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    onnx_ir.save(model, path, external_data=weights_beside(path).name if weights > LARGE else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of the exporter inside: they speak of its inner steps, not of the user's model."""
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "onnxruntime")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
