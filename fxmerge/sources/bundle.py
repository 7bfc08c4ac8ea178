"""Bundles: a program, its weights and its samples in one file that holds data only.

A zip of `bundle.json` (ports, graph, names), `weights.safetensors` and `samples.safetensors`. Reading one parses
JSON and safetensors; it never unpickles, evaluates or imports anything.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fxmerge.capturing import LARGEST
from fxmerge.capturing.state import quiet
from fxmerge.errors import SourceError
from fxmerge.io.archives import Archive
from fxmerge.io.files import atomic_write, check_output, parse_json
from fxmerge.io.guard import reading
from fxmerge.ir.program import Port, Program
from fxmerge.messages import damaged, field, printable, reason
from fxmerge.samples.pretrained_cfg import asset_of
from fxmerge.sources import graphs
from fxmerge.sources.halves import capture_in_float32
from fxmerge.sources.limits import check_values
from fxmerge.sources.operators import DTYPES
from fxmerge.sources.said import SAID, with_said
from fxmerge.sources.tokenizers import CONFIG as TOKENIZER_CONFIG
from fxmerge.sources.tokenizers import longest_in, with_longest

FORMAT, VERSION = "fxmerge bundle", 1
GRAPH, WEIGHTS, SAMPLES, ASSETS = "bundle.json", "weights.safetensors", "samples.safetensors", "assets/"
INPUT_ASSETS = ("tokenizer.json", "preprocessor_config.json")
"""What turns text or images into inputs."""
KNOWN_ASSETS = (*INPUT_ASSETS, "config.json", TOKENIZER_CONFIG, "special_tokens_map.json")
MOST_SAMPLES = 1 << 29
MOST_LABELS = 1 << 17

UNNAMED = "model"
"""The task name of a program that was given none: its file's stem takes the place."""


def save(
    model: nn.Module,
    path: str | Path,
    *,
    inputs: Sequence[Any] | Mapping[str, Any],
    task: str | None = None,
    labels: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    dynamic: str | Sequence[str] = (),
    batch_axis: int | None = None,
    tokenizer: Any = None,
    overwrite: bool = True,
) -> None:
    """Capture `model` on `inputs` and write it as a bundle, named after the file unless `task` says otherwise.

    `dynamic_shapes`, `dynamic` and `batch_axis` are those of `capture`.
    `tokenizer` (a tokenizer.json, or a `tokenizers` or transformers object) lets the bundle read text samples.
    Raises `CaptureError` if the model cannot be traced, `OutputError` if `path` cannot be written.
    """
    check_output(path, overwrite=overwrite)
    program = capture_in_float32(
        model, inputs, task=task or Path(path).stem, labels=labels,
        dynamic_shapes=dynamic_shapes, dynamic=dynamic, batch_axis=batch_axis,
    )  # fmt: skip
    assets = {**asset_of(getattr(model, "pretrained_cfg", None)), **config_of(model)}
    if tokenizer is not None:
        assets["tokenizer.json"] = tokenizer_bytes(tokenizer)
    save_bundle(program.evolve(assets=assets), path, overwrite=overwrite)


def config_of(model: nn.Module) -> dict[str, bytes]:
    """The config.json of a transformers model, by its name; nothing for other models."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_json_string"):
        return {}
    described = {**json.loads(config.to_json_string(use_diff=False)), "architectures": [type(model).__name__]}
    return {"config.json": json.dumps(described, indent=2).encode()}


def tokenizer_bytes(tokenizer: Any) -> bytes:
    """A tokenizer as the text of a tokenizer.json."""
    if isinstance(tokenizer, str | Path):
        return with_longest(Path(tokenizer).read_bytes(), longest_in(Path(tokenizer).parent))
    plain = getattr(tokenizer, "backend_tokenizer", tokenizer)
    text: str = plain.to_str()
    return with_longest(text.encode(), getattr(tokenizer, "model_max_length", None))


def save_bundle(program: Program, path: str | Path, *, overwrite: bool = True) -> None:
    """Write `program` to `path`, whole or not at all; equal programs give equal bytes."""
    assert not program.maps, "a SuperNet is folded before it is saved"
    description = {
        "format": FORMAT,
        "version": VERSION,
        "fxmerge": _version(),
        "torch": torch.__version__,
        "task": program.task,
        "labels": list(program.labels) if program.labels else None,
        "inputs": [_port(p) for p in program.inputs],
        "outputs": [_port(p) for p in program.outputs],
        "parameters": sorted(program.parameters),
        "aliases": dict(program.aliases),
        "turned": dict(program.turned),
        "ranges": {name: list(bounds) for name, bounds in program.ranges.items()},
        "notes": list(program.notes),
        **graphs.encode(program.graph),
    }
    with atomic_write(path, overwrite=overwrite) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(
            archive,
            GRAPH,
            json.dumps(description, separators=(",", ":"), allow_nan=False).encode(),
            zipfile.ZIP_DEFLATED,
        )
        _add(archive, WEIGHTS, safetensors.torch.save(_apart(program.tensors)))
        _add(archive, SAMPLES, safetensors.torch.save(_apart(program.samples)))
        for name, data in sorted(program.assets.items()):
            _add(archive, ASSETS + name, data)


def load_bundle(path: str | Path) -> Program:
    """The program of a bundle.

    Raises `SourceError` if the file is damaged, `UnsafeFileError` if it holds anything that is not data.
    """
    path = Path(path)
    with reading(path, todo="capture the model again", how="is damaged"), Archive(path) as archive, quiet():
        assets = [ASSETS + name for name in (*KNOWN_ASSETS, SAID) if ASSETS + name in archive.names]
        archive.only({GRAPH, WEIGHTS, SAMPLES, *assets})
        _check_samples_size(archive)
        description = parse_json(archive.read(GRAPH), f"{path}: {GRAPH}")
        weights, samples = (_tensors(archive, member) for member in (WEIGHTS, SAMPLES))
        files = {name.removeprefix(ASSETS): archive.read(name) for name in assets}
        program = _program(description, weights, samples, path).evolve(assets=files)
        return with_said(program, files[SAID]) if SAID in files else program


def _program(description: Any, weights: Mapping[str, Tensor], samples: Mapping[str, Tensor], path: Path) -> Program:
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise SourceError("not a bundle", "capture the model with `fxmerge capture` or `fxmerge.save`")
    if description.get("version") != VERSION:
        raise SourceError(
            f"a bundle of version {printable(str(description.get('version')))}, this fxmerge reads version {VERSION}",
            "update fxmerge, or capture the model again",
        )
    labels = description.get("labels")
    if isinstance(labels, list) and len(labels) > MOST_LABELS:
        raise damaged(f"{len(labels)} labels, more than any model tells apart")
    task = _text(description.get("task"))
    graph = graphs.decode(description)
    inputs, outputs = (tuple(_read_port(p) for p in field(description, key, list)) for key in ("inputs", "outputs"))
    if sum(n.op == "placeholder" for n in graph.nodes) != len(inputs) or len(description["results"]) != len(outputs):
        raise damaged("graph and ports do not agree")
    program = Program(
        graph=graph,
        tensors={graphs.tensor_name(name): weights[name] for name in _in_order(weights, description)},
        inputs=inputs,
        outputs=outputs,
        parameters=frozenset(_text(n) for n in field(description, "parameters", list)),
        task=path.stem if task == UNNAMED else task,
        labels=None if labels is None else tuple(_text(name) for name in field(description, "labels", list)),
        samples={name: samples[name] for name in sorted(samples)},
        aliases={graphs.tensor_name(a): graphs.tensor_name(n) for a, n in description["aliases"].items()},
        notes=tuple(_text(note) for note in field(description, "notes", list)),
        turned={_text(name): _size(axis) for name, axis in description.get("turned", {}).items()},
        ranges={_text(name): _range(bounds) for name, bounds in description["ranges"].items()},
    )
    _check(program)
    program.module.graph.lint()  # also generates its code, where a bad name would show
    return program


def _check_samples_size(archive: Archive) -> None:
    """Samples are read whole; for more than a few hundred MiB of them there is --data, which reads in part."""
    size = archive.size(SAMPLES)
    if size > max(MOST_SAMPLES, archive.size(WEIGHTS)):
        raise SourceError(
            f"its samples take {size >> 20} MiB, more than {MOST_SAMPLES >> 20} and than its weights",
            "capture the model with fewer rows, and give the others with --data",
        )


def _in_order(weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> list[str]:
    """Names as the graph first mentions them: safetensors gives them in another order every time."""
    nodes = description.get("nodes")
    named = [str(n.get("target")) for n in nodes if isinstance(n, dict)] if isinstance(nodes, list) else []
    place = {name: number for number, name in reversed(list(enumerate(named)))}
    return sorted(weights, key=lambda name: (place.get(name, len(named)), name))


def _check(program: Program) -> None:
    """The parts of the file agree with each other: names, ports and the values the graph gives."""
    used = {str(node.target) for node in program if node.op == "get_attr"}
    for missing in sorted(used - program.tensors.keys()):
        raise damaged(f"the weight {missing} is missing")
    if not program.parameters | set(program.aliases.values()) <= program.tensors.keys():
        raise damaged("it names parameters it does not hold")
    for port, node in zip(program.outputs, program.result, strict=True):
        value = node.meta["val"]
        if not isinstance(value, Tensor) or value.ndim != len(port.shape) or value.dtype != port.dtype:
            raise damaged(f"the graph does not give the output {port.name}")
    check_values(program)


def _tensors(archive: Archive, member: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(archive.read(member))
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise SourceError(f"{archive.path} is damaged: {member}: {reason(error)}", "capture the model again") from error
    return tensors


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own, on the CPU, as safetensors wants them."""
    apart = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        own = plain.numel() * plain.element_size() == plain.untyped_storage().nbytes()
        apart[name] = plain if own else plain.clone()
    return apart


def _add(archive: zipfile.ZipFile, name: str, data: bytes, how: int = zipfile.ZIP_STORED) -> None:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = how
    with archive.open(entry, "w", force_zip64=True) as stream:
        stream.write(data)


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "shape": list(port.shape), "dtype": str(port.dtype).removeprefix("torch.")}


def _read_port(value: Any) -> Port:
    shape = tuple(_text(s) if isinstance(s, str) else _size(s) for s in field(value, "shape", list))
    dtype = DTYPES.get(value.get("dtype"))
    if dtype is None:
        raise damaged(f"unknown type {printable(str(value.get('dtype')))}")
    return Port(_text(value.get("name")), shape, dtype)


def _range(bounds: Any) -> tuple[int, int]:
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise damaged("a range is not a pair of sizes")
    return _size(bounds[0]), _size(bounds[1])


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise damaged(f"{printable(str(value))} is not a size")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or value != printable(value):
        raise damaged(f"{printable(str(value))!r} is not a line of text")
    return value


def _version() -> str:
    try:
        return metadata.version("fxmerge")
    except metadata.PackageNotFoundError:
        return "unknown"
