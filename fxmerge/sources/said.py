"""What a merged model says of itself, in formats that have no place for it: a small file inside the archive.

With it, names of inputs and outputs that a format cannot hold (`TASK.OUTPUT`) and the metadata of ONNX files come back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fxmerge.io.files import parse_json
from fxmerge.ir.program import Port, Program
from fxmerge.messages import damaged, printable

SAID = "merged.json"
"""Name of the file, among the assets of a program too."""


def said_of(program: Program, metadata: Mapping[str, str]) -> bytes:
    """Names of a program's inputs and outputs, and its metadata, as the file holds them."""
    names = {kind: [port.name for port in ports] for kind, ports in _ports(program).items()}
    return json.dumps({**names, "metadata": dict(metadata)}).encode()


def with_said(program: Program, data: bytes) -> Program:
    """`program` with the names that the file gives, and the file among its assets. Raises `SourceError`."""
    found = parse_json(data, SAID)
    metadata = found.get("metadata") if isinstance(found, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(f"{SAID} is not what fxmerge writes")
    inputs, outputs = (_named(ports, found.get(kind)) for kind, ports in _ports(program).items())
    new = {old.name: port.name for old, port in zip(program.inputs, inputs, strict=True)}
    samples = {new[name]: value for name, value in program.samples.items()}
    return program.evolve(inputs=inputs, outputs=outputs, samples=samples, assets={**program.assets, SAID: data})


def metadata_in(program: Program) -> dict[str, str]:
    """The metadata of a merged model that was read from such a format; none of any other model."""
    data = program.assets.get(SAID)
    return dict(parse_json(data, SAID)["metadata"]) if data is not None else {}


def _ports(program: Program) -> dict[str, tuple[Port, ...]]:
    return {"inputs": program.inputs, "outputs": program.outputs}


def _named(ports: Sequence[Port], names: object) -> tuple[Port, ...]:
    texts = isinstance(names, list) and all(isinstance(n, str) and n and n == printable(n) for n in names)
    if not texts or not isinstance(names, list) or len(names) != len(ports) or len(set(names)) != len(names):
        raise damaged(f"{SAID} names other inputs or outputs than it has")
    return tuple(replace(port, name=name) for port, name in zip(ports, names, strict=True))
