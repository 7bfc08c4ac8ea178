"""The gRPC door: the protocol's service, and tensors in its messages."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np

from fxmerge.errors import OptionError
from fxmerge.serving import v2_pb2, v2_pb2_grpc
from fxmerge.serving.protocol import (
    BAD,
    BROKEN,
    FULL,
    LATE,
    NAMES,
    NO_KEY,
    STOPPING,
    TOO_LARGE,
    UNKNOWN,
    InferAnswer,
    InferRequest,
    RequestError,
    from_numbers,
    from_raw,
    to_raw,
)
from fxmerge.serving.service import Service

CODES = {
    BAD: grpc.StatusCode.INVALID_ARGUMENT,
    NO_KEY: grpc.StatusCode.UNAUTHENTICATED,
    UNKNOWN: grpc.StatusCode.NOT_FOUND,
    TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BROKEN: grpc.StatusCode.INTERNAL,
    STOPPING: grpc.StatusCode.UNAVAILABLE,
    LATE: grpc.StatusCode.DEADLINE_EXCEEDED,
}

FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}  # fmt: skip
"""Where the numbers of a data type lie that are not sent as raw bytes."""


def server(service: Service, address: str) -> tuple[Any, int]:
    """A gRPC server that is not started yet, and its port. Raises `OptionError` if the port cannot be had."""
    options = (
        ("grpc.max_receive_message_length", service.most_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # else a second server would take the same port, and half of the requests
    )
    made = grpc.aio.server(options=options)
    v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(service), made)
    try:
        port = made.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise OptionError(f"gRPC cannot listen at {address}: the port is in use", "choose another --grpc-port")
    return made, port


class _Servicer(v2_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, service: Service) -> None:
        self.service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return v2_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return v2_pb2.ServerReadyResponse(ready=not self.service.stopping)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        try:
            self.service.find(request.name, request.version)
        except RequestError as error:
            await _abort(context, error)
        return v2_pb2.ModelReadyResponse(ready=not self.service.stopping)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        await self._admit(context)
        return v2_pb2.ServerMetadataResponse(**self.service.metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        await self._admit(context)
        try:
            return v2_pb2.ModelMetadataResponse(**self.service.find(request.name, request.version).metadata())
        except RequestError as error:
            await _abort(context, error)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        await self._admit(context)
        with self.service.holding() as hold:
            try:
                hold(request.ByteSize())
                asked = read_request(request)
            except RequestError as error:
                self.service.refused(request.model_name, "grpc", error)
                await _abort(context, error)
            try:
                answer = await self.service.infer(request.model_name, request.model_version, asked, "grpc")
            except RequestError as error:
                await _abort(context, error)
            return write_answer(asked, answer)

    async def _admit(self, context: Any) -> None:
        try:
            self.service.admit(dict(context.invocation_metadata() or ()).get("authorization"))
        except RequestError as error:
            await _abort(context, error)


async def _abort(context: Any, error: RequestError) -> None:
    await context.abort(CODES.get(error.status, grpc.StatusCode.UNKNOWN), str(error))


def read_request(message: Any) -> InferRequest:
    """The request in a message. Raises `RequestError` where tensors and their contents do not fit."""
    raw, inputs = message.raw_input_contents, {}
    if raw and (len(raw) != len(message.inputs) or any(value.HasField("contents") for value in message.inputs)):
        raise RequestError(
            f"there are {len(raw)} raw contents for {len(message.inputs)} inputs", "send all inputs raw, or none"
        )
    for k, value in enumerate(message.inputs):
        if value.name in inputs:
            raise RequestError(f"the input {value.name!r} is there twice", "send each input once")
        if raw:
            inputs[value.name] = from_raw(value.name, value.datatype, list(value.shape), raw[k])
        else:
            numbers = _numbers(value)
            inputs[value.name] = from_numbers(value.name, value.datatype, list(value.shape), numbers)
    outputs = tuple(value.name for value in message.outputs)
    return InferRequest(inputs, outputs, id=message.id, binary=bool(raw))


def _numbers(value: Any) -> Any:
    if value.datatype not in FIELDS:
        return np.zeros(0)  # raw bytes alone can hold it, or it is unknown; the reader says so
    found = getattr(value.contents, FIELDS[value.datatype])
    return found if value.datatype == "BYTES" else np.array(found)


def write_answer(request: InferRequest, answer: InferAnswer) -> Any:
    """The message of an answer: raw where the request was, or where an output has numbers of 16 bits."""
    message = v2_pb2.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=request.id)
    for name, number in answer.parameters.items():
        message.parameters[name].int64_param = number
    kinds = {name: NAMES[value.dtype.name] for name, value in answer.outputs.items()}
    raw = request.binary or any(kind not in FIELDS for kind in kinds.values())
    for name, value in answer.outputs.items():
        told = message.outputs.add(name=name, datatype=kinds[name], shape=value.shape)
        if raw:
            message.raw_output_contents.append(to_raw(value))
        else:
            getattr(told.contents, FIELDS[kinds[name]]).extend(value.reshape(-1).tolist())
    return message
