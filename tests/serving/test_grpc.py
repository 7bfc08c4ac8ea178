"""The gRPC door, with the protocol's own messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest

from fxmerge.errors import OptionError
from fxmerge.serving import v2_pb2 as v2
from fxmerge.serving import v2_pb2_grpc
from fxmerge.serving.grpc import read_request, server, write_answer
from fxmerge.serving.protocol import InferAnswer, InferRequest, RequestError


def request(count: int = 1, *outputs: str, raw: bool = False, model: str = "two", **changes: Any) -> Any:
    message = v2.ModelInferRequest(model_name=model, id="5")
    value = message.inputs.add(**({"name": "x", "datatype": "FP32", "shape": [count, 8]} | changes))
    numbers = np.full(8 * count, 0.5, "<f4")
    if raw:
        message.raw_input_contents.append(numbers.tobytes())
    else:
        value.contents.fp32_contents.extend(numbers.tolist())
    message.outputs.extend(v2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs)
    return message


def talk(service: Any, with_stub: Callable[[Any], Awaitable[None]]) -> None:
    """Call `with_stub` with a client of a server on a free port."""

    async def go() -> None:
        made, port = server(service, "127.0.0.1:0")
        await made.start()
        async with asyncio.timeout(30), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await with_stub(v2_pb2_grpc.GRPCInferenceServiceStub(channel))
        await made.stop(None)
        await service.close()

    asyncio.run(go())


async def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


def test_all_calls(two_tasks: Any, serve: Any) -> None:
    service = serve(two_tasks(), most_bytes=10_000)

    async def calls(stub: Any) -> None:
        assert (await stub.ServerLive(v2.ServerLiveRequest())).live
        assert (await stub.ServerReady(v2.ServerReadyRequest())).ready
        assert (await stub.ModelReady(v2.ModelReadyRequest(name="two"))).ready
        assert list((await stub.ServerMetadata(v2.ServerMetadataRequest())).extensions) == ["binary_tensor_data"]
        told = await stub.ModelMetadata(v2.ModelMetadataRequest(name="two"))
        assert [(o.name, o.datatype, list(o.shape)) for o in told.outputs] == [
            ("a.logits", "FP32", [-1, 3]), ("b.logits", "FP32", [-1, 5]),
        ]  # fmt: skip
        plain = await stub.ModelInfer(request(2))
        assert plain.id == "5" and [list(o.shape) for o in plain.outputs] == [[2, 3], [2, 5]]
        raw = await stub.ModelInfer(request(2, "b.logits", raw=True))
        assert len(raw.outputs) == 1 and not raw.outputs[0].HasField("contents")
        numbers = np.frombuffer(raw.raw_output_contents[0], "<f4")
        np.testing.assert_allclose(numbers, plain.outputs[1].contents.fp32_contents, rtol=1e-5)

        assert (await code_of(stub.ModelInfer(request(model="three"))))[0] == "NOT_FOUND"
        assert (await code_of(stub.ModelReady(v2.ModelReadyRequest(name="three"))))[0] == "NOT_FOUND"
        assert (await code_of(stub.ModelMetadata(v2.ModelMetadataRequest(name="three"))))[0] == "NOT_FOUND"
        for bad in (request(name="y"), request(1, "c"), request(shape=[2, 8]), request(shape=[-1, 8]), v2_bad()):
            code, details = await code_of(stub.ModelInfer(bad))
            assert code == "INVALID_ARGUMENT" and len(details.splitlines()) == 2
        assert (await code_of(stub.ModelInfer(request(400))))[0] == "RESOURCE_EXHAUSTED"  # larger than may be
        service.stopping = True
        assert not (await stub.ServerReady(v2.ServerReadyRequest())).ready
        assert (await code_of(stub.ModelInfer(request())))[0] == "UNAVAILABLE"

    talk(service, calls)
    page = service.metrics.text().decode()
    assert 'fxmerge_requests_total{model="two",protocol="grpc",status="200"} 2.0' in page


def v2_bad() -> Any:
    """Fewer raw bytes than the shape needs."""
    message = request(raw=True)
    message.raw_input_contents[0] = message.raw_input_contents[0][:-1]
    return message


def test_limits_and_clients_that_leave(two_tasks: Any, serve: Any, hold: Any) -> None:
    service = serve(two_tasks(), max_queue=1, max_wait=0, timeout=15)
    held = hold(service)
    queue = service.models["two"].batcher._queue

    async def calls(stub: Any) -> None:
        first = stub.ModelInfer(request())
        await asyncio.to_thread(held.began.wait, 15)
        second = stub.ModelInfer(request())
        while not queue:
            await asyncio.sleep(0.001)
        code, details = await code_of(stub.ModelInfer(request()))
        assert code == "RESOURCE_EXHAUSTED" and "wait" in details
        second.cancel()
        while queue:
            await asyncio.sleep(0.001)
        service.timeout = 0.02
        assert (await code_of(stub.ModelInfer(request())))[0] == "DEADLINE_EXCEEDED"
        held.go.set()
        assert (await first).outputs

    talk(service, calls)


def test_keys(two_tasks: Any, serve: Any) -> None:
    async def calls(stub: Any) -> None:
        assert (await stub.ServerReady(v2.ServerReadyRequest())).ready
        assert (await code_of(stub.ModelInfer(request())))[0] == "UNAUTHENTICATED"
        assert (await stub.ModelInfer(request(), metadata=(("authorization", "Bearer one"),))).outputs

    talk(serve(two_tasks(), keys=(b"one",)), calls)


def test_a_port_that_is_taken(two_tasks: Any, serve: Any) -> None:
    async def go() -> None:
        made, port = server(service, "127.0.0.1:0")
        await made.start()
        with pytest.raises(OptionError, match=f"127.0.0.1:{port}: the port is in use"):
            server(service, f"127.0.0.1:{port}")
        await made.stop(None)

    service = serve(two_tasks())
    asyncio.run(go())


@pytest.mark.parametrize("kind", ["bool", "int8", "uint16", "int64", "uint64", "float32", "float64", "float16"])
def test_every_data_type_passes(kind: str) -> None:
    outputs = {"a": np.array([[1, 0]], kind)}
    message = write_answer(InferRequest({}), InferAnswer("m", "v", outputs))
    back = v2.ModelInferRequest(raw_input_contents=message.raw_output_contents)
    value = message.outputs[0]
    back.inputs.add(name="a", datatype=value.datatype, shape=value.shape)
    if value.HasField("contents"):
        back.inputs[0].contents.CopyFrom(value.contents)
    read = read_request(back).inputs["a"]
    assert read.dtype == kind and np.array_equal(read, outputs["a"])


def test_raw_for_some_inputs_is_refused() -> None:
    message = request(raw=True)
    message.inputs.add(name="y", datatype="FP32", shape=[1])
    with pytest.raises(RequestError, match="1 raw contents for 2 inputs"):
        read_request(message)
