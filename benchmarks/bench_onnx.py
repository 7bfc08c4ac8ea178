"""How much of what exporters write is read: ONNX's own operator tests, and a zoo of models through three exporters.

    python -m benchmarks.bench_onnx operators
    python -m benchmarks.bench_onnx models --zoo FOLDER

Every file is read back and compared with ONNX Runtime (models) or with the results that tests come with (operators).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.errors import FxmergeError
from fxmerge.from_onnx.file import read_file
from fxmerge.from_onnx.module import OnnxModule
from fxmerge.installed import known
from fxmerge.ir.difference import difference
from fxmerge.output.onnx import export_onnx

RESULTS = Path(__file__).parent / "results"


def operators(_: argparse.Namespace) -> dict[str, Any]:
    """Each of ONNX's own operator tests: read, run on its inputs, compared with its outputs."""
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.loader import load_model_tests

    readers = known().operators
    found: dict[str, str] = {}
    kinds = ("simple", "pytorch-converted", "pytorch-operator")
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        for case in collect_testcases(None):
            found[case.name] = _operator(case.model, case.data_sets or [], path, readers)
        for kind in kinds:
            for case in load_model_tests(kind=kind):
                model = onnx.load(Path(case.model_dir) / "model.onnx")
                found[case.name] = _operator(model, list(_stored_sets(Path(case.model_dir), model)), path, readers)
    return _counted(found)


def _stored_sets(folder: Path, model: Any) -> Iterator[tuple[list[Any], list[Any]]]:
    held = {t.name for t in model.graph.initializer}
    count = sum(v.name not in held for v in model.graph.input)
    for place in sorted(folder.glob("test_data_set_*")):
        sides = (("input", count), ("output", len(model.graph.output)))
        inputs, outputs = ([onnx.load_tensor(str(place / f"{side}_{i}.pb")) for i in range(n)] for side, n in sides)
        yield inputs, outputs


def _operator(model: Any, sets: list[Any], path: Path, readers: Mapping[str, Any]) -> str:
    """What became of one test; inputs that say axes and sizes are stored where they must be known."""
    found = [_set(model, inputs, outputs, path, readers) for inputs, outputs in sets]
    return next((each for each in found if each != "equal"), "equal")


def _set(model: Any, inputs: list[Any], outputs: list[Any], path: Path, readers: Mapping[str, Any]) -> str:
    found = _run(model, inputs, outputs, path, readers)
    if "is computed from data" not in found:
        return found
    names = [v.name for v in model.graph.input]
    stored = type(model)()
    stored.CopyFrom(model)
    skip = len(names) > 1
    for name, value in zip(names[skip:], inputs[skip:], strict=False):
        if isinstance(value, np.ndarray | np.generic) and np.ndim(value) <= 1:
            stored.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return _run(stored, inputs, outputs, path, readers)


def _run(model: Any, inputs: list[Any], outputs: list[Any], path: Path, readers: Mapping[str, Any]) -> str:
    onnx.save(model, path)
    try:
        file = read_file(path)
        module = OnnxModule(file, readers)
        names = [v.name for v in model.graph.input]
        given = {n: _torch(v) for n, v in zip(names, inputs, strict=False) if n in file.inputs}
        got = module(**given)
        for value, wanted in zip(got.values(), outputs, strict=True):
            gap = difference(_torch(wanted), value)
            half = value.dtype in (torch.float16, torch.bfloat16)
            if not gap.relative <= (0.02 if half else 1e-4) or value.dtype != _torch(wanted).dtype:
                return f"differs by {gap.relative:.2g} ({value.dtype} for {_torch(wanted).dtype})"
    except FxmergeError as error:
        what = error.what.replace(str(path), "")
        return f"operator not read: {what.partition('read: ')[2]}" if "does not read" in what else f"refused: {what}"
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "equal"


def _torch(value: Any) -> Tensor:
    """A value of a test, which may be a tensor message, as a tensor."""
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    value = np.asarray(value)
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.astype(np.float32)).bfloat16()
    return torch.from_numpy(value.copy())


def models(options: argparse.Namespace) -> dict[str, Any]:
    """Each model of a zoo through three exporters, read back and compared with ONNX Runtime."""
    spec = importlib.util.spec_from_file_location("zoo", options.zoo / "zoo.py")
    assert spec is not None and spec.loader is not None
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    found: dict[str, str] = {}
    writers: dict[str, Callable[..., None]] = {"fxmerge": _ours, "dynamo": _dynamo, "torchscript": _script}
    with tempfile.TemporaryDirectory() as folder:
        for entry in zoo.entries():
            if options.only and entry["name"] not in options.only:
                continue
            model, inputs = zoo.build(entry)
            for name in options.exporters or writers:
                path, start = Path(folder) / "model.onnx", time.perf_counter()
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        writers[name](model, inputs, path)
                except Exception as error:
                    found[f"{entry['name']} {name}"] = f"not written: {type(error).__name__}"
                    continue
                key = f"{entry['name']} {name}"
                found[key] = _read_back(path)
                print(f"{time.perf_counter() - start:5.0f} s  {key}: {found[key]}", flush=True)
    return _counted(found)


def _read_back(path: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = fxmerge.load(path)
    except FxmergeError as error:
        return f"refused: {error.what.replace(str(path), '')[:300]}"
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error)[:300]}"
    open_sizes = sorted({str(size) for port in program.inputs for size in port.dynamic})
    return f"equal ({', '.join(open_sizes) or 'fixed'})"


def _ours(model: nn.Module, inputs: Mapping[str, Any], path: Path) -> None:
    export_onnx(fxmerge.capture(model, inputs), path)


def _tensors(inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in inputs.items() if name not in tensors}


class _Bound(nn.Module):
    """A model with its arguments that are no tensors bound."""

    def __init__(self, model: nn.Module, names: list[str], others: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.others = model, names, dict(others)

    def forward(self, *tensors: Tensor) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True)), **self.others)


def _dynamo(model: nn.Module, inputs: Mapping[str, Any], path: Path) -> None:
    tensors, others = _tensors(inputs)
    dynamic = {
        name: {0: torch.export.Dim.DYNAMIC} | ({1: torch.export.Dim.AUTO} if not t.is_floating_point() else {})
        for name, t in tensors.items()
    }
    bound = _Bound(model, list(tensors), others).eval()
    rows = tuple(torch.cat([t, t]) for t in tensors.values())
    torch.onnx.export(
        bound,
        rows,
        path,
        dynamo=True,
        input_names=list(tensors),
        verbose=False,
        dynamic_shapes=(tuple(dynamic.values()),),
    )


def _script(model: nn.Module, inputs: Mapping[str, Any], path: Path) -> None:
    tensors, others = _tensors(inputs)
    axes = {n: {0: "batch"} | ({1: "sequence"} if not t.is_floating_point() else {}) for n, t in tensors.items()}
    bound = _Bound(model, list(tensors), others).eval()
    torch.onnx.export(
        bound, tuple(tensors.values()), path, dynamo=False, input_names=list(tensors), output_names=["logits"],
        dynamic_axes={**axes, "logits": {0: "batch"}}, opset_version=17,
    )  # fmt: skip


def _counted(found: Mapping[str, str]) -> dict[str, Any]:
    equal = sum(value.startswith("equal") for value in found.values())
    rest = {name: value for name, value in found.items() if not value.startswith("equal")}
    return {"equal": equal, "of": len(found), "rest": rest, "all": dict(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["operators", "models"])
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"))
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--exporters", nargs="*", choices=["fxmerge", "dynamo", "torchscript"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {"operators": operators, "models": models}[options.what](options)
    out = options.out or RESULTS / f"onnx_{options.what}.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['equal']} of {found['of']} equal; written: {out}")


if __name__ == "__main__":
    main()
