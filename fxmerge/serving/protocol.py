"""The Open Inference Protocol v2: requests and answers as JSON with binary parts, tensors from their raw bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxmerge.errors import FxmergeError
from fxmerge.messages import nearest, printable

Array = NDArray[Any]

DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BYTES": "object",
}  # fmt: skip
"""Tensor data types of the protocol, and what numpy calls them; entries of BYTES are `bytes`."""

NAMES = {name: datatype for datatype, name in DATATYPES.items()}

BAD, NO_KEY, UNKNOWN, TOO_LARGE, FULL, BROKEN, STOPPING, LATE = 400, 401, 404, 413, 429, 500, 503, 504


class RequestError(FxmergeError):
    """A request that is not answered with outputs; `status` is the HTTP status."""

    def __init__(self, what: str, todo: str, status: int = BAD) -> None:
        super().__init__(what, todo)
        self.status = status


@dataclass(frozen=True)
class InferRequest:
    """What a client asks: its input tensors, and the names of the outputs it wants (none: all)."""

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ()
    id: str = ""
    binary: bool = False
    """Whether outputs are sent as bytes, where `binary_of` does not say it of one."""
    binary_of: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class InferAnswer:
    """Outputs by name, and the model and version that computed them."""

    model: str
    version: str
    outputs: Mapping[str, Array]
    parameters: Mapping[str, int] = field(default_factory=dict)
    """What else the client should know: how many of its texts were "truncated" to the model's length."""


def parse_request(body: bytes, header: str | None = None) -> InferRequest:
    """The request in an HTTP body; `header` is the length of its JSON part where bytes of tensors follow it."""
    length = _length(header, len(body))
    asked = _object(_json(body[:length]), "the request")
    rest, inputs = memoryview(body)[length:], {}
    for value in _list(asked, "inputs", needed=True):
        name, tensor, rest = _input(_object(value, "an input"), rest)
        if name in inputs:
            raise RequestError(f"the input {name!r} is there twice", "send each input once")
        inputs[name] = tensor
    if len(rest):
        raise RequestError(
            f"{len(rest)} bytes follow the last binary tensor", "make binary_data_size the number of bytes sent"
        )
    outputs = [_object(value, "an output") for value in _list(asked, "outputs")]
    names = tuple(_text(value, "name") for value in outputs)
    wishes = {name: _parameters(value).get("binary_data") for name, value in zip(names, outputs, strict=True)}
    return InferRequest(
        inputs, names, id=str(asked.get("id") or ""), binary=_parameters(asked).get("binary_data_output") is True,
        binary_of={name: wish is True for name, wish in wishes.items() if wish is not None},
    )  # fmt: skip


def format_answer(request: InferRequest, answer: InferAnswer) -> tuple[bytes, int | None]:
    """The HTTP body of an answer, and the length of its JSON part where bytes of tensors follow it."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, tensor in answer.outputs.items():
        told: dict[str, Any] = {"name": name, "datatype": NAMES[tensor.dtype.name], "shape": list(tensor.shape)}
        if request.binary_of.get(name, request.binary):
            parts.append(to_raw(tensor))
            told["parameters"] = {"binary_data_size": len(parts[-1])}
        elif tensor.dtype == object:
            told["data"] = [value.decode("utf-8", "replace") for value in tensor.reshape(-1)]
        else:
            if not np.isfinite(tensor).all():
                raise RequestError(
                    f"the output {name!r} holds NaN or infinity, which JSON has no numbers for",
                    "ask for it with the parameter binary_data", BROKEN,
                )  # fmt: skip
            told["data"] = tensor.reshape(-1).tolist()
        outputs.append(told)
    known: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    known |= {"id": request.id} if request.id else {}
    known |= {"parameters": dict(answer.parameters)} if answer.parameters else {}
    text = json.dumps(known | {"outputs": outputs}).encode()
    return b"".join([text, *parts]), len(text) if parts else None


def to_raw(tensor: Array) -> bytes:
    """The numbers of a tensor as bytes: row by row, the lowest byte first; before each entry of BYTES its length."""
    if tensor.dtype == object:
        return b"".join(len(value).to_bytes(4, "little") + value for value in tensor.reshape(-1))
    return np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes()


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Array:
    """A tensor from its bytes. Raises `RequestError` unless they are as many as its shape needs."""
    kind = _kind(name, datatype)
    if datatype == "BYTES":
        return _entries(name, list(_split(name, raw)), shape)
    need = _count(name, shape) * kind.itemsize
    if len(raw) != need:
        raise RequestError(
            f"the input {name!r} has {len(raw)} bytes, {datatype} {list(shape)} needs {need}", "send all of its bytes"
        )
    if datatype == "BOOL":
        return np.asarray(np.frombuffer(raw, np.uint8) != 0).reshape(shape)
    return np.asarray(np.frombuffer(raw, kind.newbyteorder("<")).astype(kind, copy=False)).reshape(shape)


def from_numbers(name: str, datatype: str, shape: Sequence[int], data: Any) -> Array:
    """A tensor from its numbers, flat or nested. Raises `RequestError` unless they fit its shape and data type."""
    kind, count = _kind(name, datatype), _count(name, shape)
    if datatype == "BYTES":
        return _entries(name, [v.encode("utf-8", "replace") if isinstance(v, str) else v for v in _flat(data)], shape)
    try:
        given = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"the data of the input {name!r} are ragged", "send rows of one length") from error
    if given.size != count or (given.ndim > 1 and given.shape != tuple(shape)):
        raise RequestError(
            f"the input {name!r} has data of the shape {list(given.shape)}, not {list(shape)}",
            "send as many numbers as its shape says",
        )
    made = _exact(given, kind) if given.size else given.astype(kind)
    if made is None:
        raise RequestError(
            f"the data of the input {name!r} are not all {datatype}", f"send numbers that {datatype} holds"
        )
    return made.reshape(shape)


def _exact(given: Array, kind: np.dtype[Any]) -> Array | None:
    """The numbers in another type, floats rounded; None where one is of another kind, or outside of it."""
    if given.dtype.kind not in {"b": "biu", "u": "iu", "i": "iu", "f": "iuf"}[kind.kind]:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        made = given.astype(kind)
    if kind.kind == "f":
        return made if np.array_equal(np.isinf(made), np.isinf(given.astype(float))) else None
    return made if np.array_equal(made, given) else None


def _entries(name: str, values: list[Any], shape: Sequence[int]) -> Array:
    if len(values) != _count(name, shape):
        raise RequestError(
            f"the input {name!r} has {len(values)} entries, not {list(shape)}", "send as many as its shape says"
        )
    if not all(isinstance(value, bytes) for value in values):
        raise RequestError(f"the entries of the input {name!r} are not all text", "send a list of texts")
    made = np.empty(len(values), object)
    made[:] = values
    return made.reshape(shape)


def _split(name: str, raw: bytes | memoryview) -> Iterator[bytes]:
    """The entries of a BYTES tensor, each of which follows its length."""
    place = 0
    while place < len(raw):
        end = place + 4 + int.from_bytes(raw[place : place + 4], "little")
        if end > len(raw):
            raise RequestError(
                f"the input {name!r} has {len(raw) - place} bytes left for an entry of {end - place}",
                "send each entry after its length, 4 bytes, the lowest first",
            )
        yield bytes(raw[place + 4 : end])
        place = end


def _flat(data: Iterable[Any]) -> Iterator[Any]:
    """Entries of lists in lists, however deep."""
    open_ = [iter(data)]
    while open_:
        for value in open_[-1]:
            if isinstance(value, list):
                open_.append(iter(value))
                break
            yield value
        else:
            open_.pop()


def _input(value: Mapping[str, Any], rest: memoryview) -> tuple[str, Array, memoryview]:
    """Name and tensor of an input of a request, and the bytes that follow it."""
    name, datatype, shape = _text(value, "name"), _text(value, "datatype"), value.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise RequestError(f"the shape of the input {name!r} is no list of sizes", "send one, as [2, 8]")
    size = _parameters(value).get("binary_data_size")
    if size is None:
        if not isinstance(value.get("data"), list):
            raise RequestError(f"the input {name!r} has no data", "send a list of numbers, or binary_data_size")
        tensor = from_numbers(name, datatype, shape, value["data"])
        if tensor.dtype.kind == "f" and np.isinf(tensor).any():  # JSON has none: it was a number such as 1e400
            raise RequestError(
                f"the data of the input {name!r} are not all {datatype}", f"send numbers {datatype} holds"
            )
        return name, tensor, rest
    if type(size) is not int or size < 0 or size > len(rest):
        raise RequestError(
            f"the input {name!r} says binary_data_size {printable(str(size))}, but {len(rest)} bytes are left",
            "send the JSON part's length as Inference-Header-Content-Length, and all bytes after it",
        )
    return name, from_raw(name, datatype, shape, rest[:size]), rest[size:]


def _kind(name: str, datatype: str) -> np.dtype[Any]:
    if datatype not in DATATYPES:
        hint = nearest(datatype, DATATYPES)
        raise RequestError(
            f"the input {name!r} has the unknown datatype {printable(datatype)!r}{hint}",
            f"send one of {', '.join(DATATYPES)}",
        )
    return np.dtype(DATATYPES[datatype])


def _count(name: str, shape: Sequence[int]) -> int:
    if len(shape) > 32 or min(shape, default=0) < 0 or math.prod(size or 1 for size in shape) > 1 << 40:
        raise RequestError(f"the shape of the input {name!r} is too large or no shape at all", "send fewer rows")
    return math.prod(shape)


def _length(header: str | None, most: int) -> int:
    if header is None:
        return most
    if not (header.isascii() and header.isdigit()) or len(header) > 18 or int(header) > most:
        raise RequestError(
            f"Inference-Header-Content-Length is {printable(header)}, the body has {most} bytes",
            "send the length of the JSON part, and the whole body",
        )
    return int(header)


def _json(text: bytes) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is no JSON: {printable(str(error))}", "send one JSON object") from error


def _refuse(constant: str) -> Any:
    raise RequestError(f"the request holds {constant}, which is no number in JSON", "send finite numbers")


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} is no JSON object", "send an object with inputs: name, shape, datatype, data")
    return value


def _list(value: Mapping[str, Any], key: str, *, needed: bool = False) -> list[Any]:
    found = value.get(key)
    if found is None and not needed:
        return []
    if not isinstance(found, list) or (needed and not found):
        raise RequestError(f"the request has no list of {key}", f"send {key}: [{{name: …}}]")
    return found


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise RequestError(f"an input or output has no {key}", f"send a text as its {key}")
    return printable(found)


def _parameters(value: Mapping[str, Any]) -> Mapping[str, Any]:
    found = value.get("parameters")
    return found if isinstance(found, dict) else {}
