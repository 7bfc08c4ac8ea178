"""Write a program as ONNX, run it in ONNX Runtime, and measure how far the two are apart."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from fxmerge.errors import OptionError, OutputError, SourceError, VerificationError
from fxmerge.ir.program import Port, Program

OPSET = 20
"""Default operator set: the first with a single Gelu node, and one that older runtimes still read."""

OPSETS = range(18, 24)
"""Operator sets the exporter of PyTorch can write and ONNX Runtime can run."""

SMALL = 256
"""A constant of at most this many numbers may be copied to save a node; a larger one is stored once."""

LARGE = 1_500_000_000
"""Bytes of weights above which they go into a file beside the model: one protobuf message holds 2 GiB."""


def export_onnx(
    program: Program,
    path: str | Path,
    *,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `program` to `path` as ONNX; inputs, outputs and dynamic axes carry the names of the ports.

    Constants are folded, tied tensors stored once, `metadata` becomes `metadata_props`.
    Above 1.5 GB the weights go to `PATH.data` beside the model.
    Raises `OptionError` for an operator set that cannot be written and `OutputError` for an operator that ONNX lacks.
    """
    if opset is not None and opset not in OPSETS:
        raise OptionError(f"--opset {opset} cannot be written", f"choose one from {OPSETS.start} to {OPSETS.stop - 1}")
    with _quiet():
        model = _translate(program, opset or OPSET)
        _optimize(model)
        _name(model, program)
        model.metadata_props.update(metadata or {})
        model.producer_name = "fxmerge"
        _save(model, Path(path))


def run_onnx(path: str | Path, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name of the model at `path` on `inputs`, in ONNX Runtime on the CPU."""
    return OnnxModel(path).run(inputs)


class OnnxModel:
    """An ONNX file opened in ONNX Runtime."""

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors are raised as well
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CUDAExecutionProvider"] * (device == "cuda") + ["CPUExecutionProvider"]
        if not Path(path).is_file():
            raise SourceError(f"{path}: no such file", "give the path of an ONNX model")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime has one exception class per status, with no common base
            raise SourceError(f"{path}: ONNX Runtime cannot open it: {_line(error)}", "give an ONNX model") from error
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    @property
    def inputs(self) -> tuple[Port, ...]:
        return tuple(_port(value) for value in self.session.get_inputs())

    @property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(_port(value) for value in self.session.get_outputs())

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name; entries of `inputs` that the model does not take are ignored."""
        fed = {port.name: inputs[port.name].detach().cpu().numpy() for port in self.inputs}
        names = [port.name for port in self.outputs]
        try:
            values = self.session.run(names, fed)
        except Exception as error:  # see above
            shown = ", ".join(f"{name} {list(value.shape)}" for name, value in fed.items())
            raise RuntimeFailure(f"ONNX Runtime cannot run the model on {shown}: {_line(error)}") from error
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


class RuntimeFailure(VerificationError):
    """ONNX Runtime stopped while running a model."""


def _line(error: BaseException) -> str:
    """The part of an ONNX Runtime error that speaks of the model, on one line."""
    text = " ".join(str(error).split())
    return (text.rsplit("Status Message: ", 1)[-1].rsplit("was false. ", 1)[-1] or type(error).__name__)[:300]


def compare_onnx(path: str | Path, program: Program, inputs: Mapping[str, Tensor] | None = None) -> float:
    """Largest absolute difference between the ONNX file and `program` over several batch sizes and lengths.

    `inputs` (rows first) gives realistic values; random ones are made where it is absent or lacks an input.
    Infinite where one side is not a number and the other is, or where shapes differ.
    Raises `RuntimeFailure` (exit code 3) if ONNX Runtime cannot run the model at one of the sizes.
    """
    model = OnnxModel(path)
    worst = 0.0
    with torch.no_grad():
        for sizes in _probe_sizes(program):
            fed = {port.name: _values(port, program, sizes, inputs or program.samples) for port in program.inputs}
            expected, got = program.run(fed), model.run(fed)
            worst = max(worst, *(_distance(expected[port.name], got[port.name]) for port in program.outputs))
    return worst


# -- writing -----------------------------------------------------------------------------------------


def _translate(program: Program, opset: int) -> Any:
    """The unoptimised ONNX model of a program, as an `onnx_ir.Model`."""
    exported = retrace(program)
    try:
        made = torch.onnx.export(exported, (), dynamo=True, opset_version=opset, optimize=False, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise OutputError(_reason(error), "write it as .pt2 or .safetensors instead, or try another --opset") from error
    assert made is not None
    return made.model


def retrace(program: Program) -> ExportedProgram:
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
                if isinstance(size, str)
            }
        )
    with _quiet(), torch.no_grad():
        return torch.export.export(program.module, tuple(args), dynamic_shapes=tuple(shapes), strict=False)


def _device(program: Program) -> torch.device:
    return next((t.device for t in program.tensors.values()), torch.device("cpu"))


def _reason(error: BaseException) -> str:
    """One line: the operator that has no ONNX form, where the exporter names one."""
    text, cause = "", error
    while cause is not None:
        text += str(cause) + "\n"
        cause = cause.__cause__  # type: ignore[assignment]
    found = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'", text)
    if found:
        return f"ONNX has no form of the operator {found[1].replace('::', '.')}.{found[2]}"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"the model cannot be written as ONNX: {first}"


def _optimize(model: Any) -> None:
    """Fold constants, but never store a second copy of a tensor; drop what only debugging needs."""
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import optimize_ir
    from onnxscript.rewriter.onnx_fusions import fuse

    def should_fold(node: Any) -> bool | None:
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.const_value.size > SMALL:
                if len(value.uses()) > 1:
                    return False
        return None

    optimize_ir(model, should_fold=should_fold, output_size_limit=16 * SMALL)
    fuse(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)


def _name(model: Any, program: Program) -> None:
    """Give inputs, outputs and dynamic axes the names of the program's ports."""
    import onnx_ir
    import onnx_ir.passes.common as common

    common.OutputFixPass()(model)
    symbols: dict[str, str] = {}
    for value, port in zip(model.graph.inputs, program.inputs, strict=True):
        for axis, size in enumerate(port.shape):
            if isinstance(size, str) and not isinstance(value.shape[axis], int):
                symbols.setdefault(str(value.shape[axis].value), size)
    _rename_symbols(model, symbols)
    taken = {port.name for port in (*program.inputs, *program.outputs)}
    for value in _values_of(model):
        if value.name in taken:  # an inner value that happens to be called like a port
            value.name = f"{value.name}__inner"
    for value, port in zip(model.graph.inputs, program.inputs, strict=True):
        value.name = port.name
    for value, port in zip(model.graph.outputs, program.outputs, strict=True):
        value.name = port.name
        value.shape = onnx_ir.Shape(port.shape)


def _values_of(model: Any) -> Iterator[Any]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs


def _rename_symbols(model: Any, symbols: Mapping[str, str]) -> None:
    import onnx_ir

    if not symbols:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b")
    for value in _values_of(model):
        if value.shape is not None and not all(isinstance(size, int) for size in value.shape):
            named = [s if isinstance(s, int) else pattern.sub(lambda m: symbols[m[1]], str(s.value)) for s in value.shape]
            value.shape = onnx_ir.Shape(named)


def _save(model: Any, path: Path) -> None:
    import onnx_ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if weights > LARGE else None)


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


# -- comparing ---------------------------------------------------------------------------------------

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def _port(value: Any) -> Port:
    return Port(value.name, tuple(value.shape), _DTYPES[value.type])


def _probe_sizes(program: Program) -> list[dict[str, int]]:
    """Sizes of the dynamic axes to compare at: the traced ones, one row, and others inside the ranges."""
    names = list(dict.fromkeys(size for port in program.inputs for size in port.dynamic))
    traced = {name: program.hints[name] for name in names if name in program.hints}
    tried = [traced]
    for wish in ({"batch": 1}, {"batch": 5, "others": 3}, {"batch": 2, "others": 17}):
        sizes = dict(traced)
        for name in traced:
            low, high = program.ranges.get(name, (1, 1 << 30))
            size = wish.get("batch" if name.startswith("batch") else "others", traced[name])
            # one row is tried although tracing itself needs two: the written model promises any batch
            sizes[name] = min(max(size, 1 if name.startswith("batch") else low), high)
        if sizes not in tried:
            tried.append(sizes)
    return tried


def _values(port: Port, program: Program, sizes: Mapping[str, int], given: Mapping[str, Tensor]) -> Tensor:
    """Values of one input at these sizes: cut or tiled from `given`, else random but legal."""
    node = next(n for n, p in zip(program.placeholders, program.inputs, strict=True) if p.name == port.name)
    shape = [sizes.get(s, t) if isinstance(s, str) else s for s, t in zip(port.shape, node.meta["val"].shape, strict=True)]
    sample = given.get(port.name)
    if sample is not None and sample.ndim == len(shape) and all(sample.shape):
        return _tile(sample.detach().to(device="cpu", dtype=port.dtype), shape)
    generator = torch.Generator().manual_seed(0)
    if port.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(port.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(port.dtype)  # 0 and 1: legal as token, mask and flag


def _tile(sample: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape):
        if sample.shape[axis] != size:
            sample = sample.index_select(axis, torch.arange(size) % sample.shape[axis])
    return sample.contiguous()


def _distance(expected: Tensor, got: Tensor) -> float:
    if expected.shape != got.shape:
        return float("inf")
    left, right = expected.detach().cpu().double(), got.double()
    same = (left == right) | (left.isnan() & right.isnan())  # equal infinities have no difference to take
    if bool(same.all()):
        return 0.0
    worst = float((left - right).abs()[~same].max())
    return float("inf") if worst != worst else worst
