"""The REST door, as clients knock at it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

import fxmerge.serving.service
from fxmerge.serving.rest import LENGTH, app
from fxmerge.version import __version__


def request(count: int = 1, *outputs: str, **changes: Any) -> dict[str, Any]:
    value = {"name": "x", "datatype": "FP32", "shape": [count, 8], "data": [0.5] * 8 * count} | changes
    return {"inputs": [value]} | ({"outputs": [{"name": name} for name in outputs]} if outputs else {})


@pytest.fixture
def client(two_tasks: Any, tokens: Any, serve: Any) -> Any:
    with TestClient(app(serve(two_tasks(), tokens(), most_bytes=4000))) as made:
        yield made


def test_health_and_metadata(client: Any) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json() == {"name": "fxmerge", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert client.get("/v2/models/two/ready").json() == {"name": "two", "ready": True}
    told = client.get("/v2/models/tokens").json()
    [version] = told.pop("versions")
    assert told == {
        "name": "tokens", "platform": "onnx_onnxv1",
        "inputs": [{"name": n, "datatype": "INT64", "shape": [-1, -1]} for n in ("ids", "mask")],
        "outputs": [
            {"name": "a.each", "datatype": "FP32", "shape": [-1, -1, 3]},
            {"name": "b.row", "datatype": "FP32", "shape": [-1, 4]},
        ],
    }  # fmt: skip
    assert client.get(f"/v2/models/tokens/versions/{version}").status_code == 200
    assert client.get("/v2/models/tokens/versions/1").status_code == 404


def test_some_or_all_outputs_as_json(client: Any) -> None:
    everything = client.post("/v2/models/two/infer", json=request(2) | {"id": "11"}).json()
    assert everything["id"] == "11" and everything["model_name"] == "two"
    assert [(o["name"], o["shape"]) for o in everything["outputs"]] == [("a.logits", [2, 3]), ("b.logits", [2, 5])]
    [one] = client.post("/v2/models/two/infer", json=request(2, "b.logits")).json()["outputs"]
    assert one["data"] == pytest.approx(everything["outputs"][1]["data"])


def test_binary_both_ways(client: Any) -> None:
    expected = client.post("/v2/models/two/infer", json=request(1, "a.logits")).json()["outputs"][0]["data"]
    value = request(1, "a.logits", data=None, parameters={"binary_data_size": 32})
    text = json.dumps(value | {"parameters": {"binary_data_output": True}}).encode()
    answer = client.post(
        "/v2/models/two/infer", content=text + np.full(8, 0.5, "<f4").tobytes(), headers={LENGTH: str(len(text))}
    )
    length = int(answer.headers[LENGTH])
    [told] = json.loads(answer.content[:length])["outputs"]
    assert told["parameters"] == {"binary_data_size": 12}
    np.testing.assert_allclose(np.frombuffer(answer.content[length:], "<f4"), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "sent", "status", "what"),
    [
        ("three", request(), 404, "no model 'three'"),
        ("two", request(1, "a.logit"), 400, "did you mean 'a.logits'"),
        ("two", request(name="y"), 400, "no input 'y'"),
        ("two", request(datatype="FP64"), 400, "is FP64, the model takes FP32"),
        ("two", request(shape=[8, 1]), 400, "has the shape"),
        ("two", request(shape=[10**12, 8]), 400, "too large"),
        ("two", request(200), 413, "more than 4000 bytes"),
    ],
)
def test_errors_are_the_protocols(client: Any, model: str, sent: Any, status: int, what: str) -> None:
    answer = client.post(f"/v2/models/{model}/infer", json=sent)
    assert answer.status_code == status and list(answer.json()) == ["error"]
    lines = answer.json()["error"].splitlines()
    assert what in lines[0] and len(lines) == 2


def test_a_body_of_unknown_length_has_a_limit_too(client: Any) -> None:
    assert client.post("/v2/models/two/infer", content=iter([b" " * 3000] * 2)).status_code == 413


def test_other_routes_verbs_and_encodings(client: Any) -> None:
    assert "POST /v2/models/NAME/infer" in client.get("/v1/models").json()["error"]
    assert client.get("/v2/models/two/infer").status_code == 405
    assert client.post("/v2/models/two/infer", content=b"", headers={"Content-Encoding": "gzip"}).status_code == 415


def test_metrics_count_tasks_batches_and_errors(client: Any) -> None:
    client.post("/v2/models/two/infer", json=request(3, "b.logits"))
    client.post("/v2/models/two/infer", content=b"{")
    page = client.get("/metrics").text
    for line in (
        'fxmerge_request_seconds_count{model="two",task="b"} 1.0',
        'fxmerge_batch_rows_sum{model="two"} 3.0',
        'fxmerge_queue_requests{model="two"} 0.0',
        'fxmerge_requests_total{model="two",protocol="rest",status="200"} 1.0',
        'fxmerge_requests_total{model="two",protocol="rest",status="400"} 1.0',
    ):
        assert line in page
    assert 'task="a"' not in page


def test_keys_open_all_but_health(two_tasks: Any, serve: Any) -> None:
    with TestClient(app(serve(two_tasks(), keys=(b"one", b"two")))) as client:
        assert client.get("/v2/health/ready").status_code == client.get("/v2/models/two/ready").status_code == 200
        for header in ({}, {"Authorization": "Bearer three"}, {"Authorization": "one"}):
            for path in ("/v2", "/metrics", "/v2/models/two"):
                assert client.get(path, headers=header).status_code == 401
            assert client.post("/v2/models/two/infer", json=request(), headers=header).status_code == 401
        key = {"Authorization": "Bearer two"}
        assert client.post("/v2/models/two/infer", json=request(), headers=key).status_code == 200


def test_a_full_queue_and_a_stopping_server(two_tasks: Any, serve: Any, hold: Any) -> None:
    service = serve(two_tasks(), max_queue=1, max_wait=0)
    held = hold(service)

    async def go() -> None:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app(service)), base_url="http://x") as client:
            path = "/v2/models/two/infer"
            asked = [asyncio.ensure_future(client.post(path, json=request()))]
            await asyncio.to_thread(held.began.wait, 20)
            asked += [asyncio.ensure_future(client.post(path, json=request())) for _ in range(2)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            held.go.set()
            answers = await asyncio.gather(*asked)
            assert sorted(one.status_code for one in answers) == [200, 200, 429]
            assert next(one for one in answers if one.status_code == 429).headers["Retry-After"] == "1"
            service.stopping = True
            assert (await client.get("/v2/health/ready")).status_code == 503
            assert (await client.get("/v2/health/live")).status_code == 200
            assert (await client.post(path, json=request())).status_code == 503
        await service.close()

    asyncio.run(go())


async def knock(service: Any, *messages: dict[str, Any], then: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    """The beginning of the answer to a request that comes in these messages, and at last what `then` returns."""
    sent: list[dict[str, Any]] = []
    coming = iter(messages)

    async def receive() -> Any:
        return next(coming, None) or await then()

    async def send(message: Any) -> None:
        sent.append(message)

    path = "/v2/models/two/infer"
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "root_path": ""}
    await app(service)(scope, receive, send)
    return sent[0]


def body(text: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": text, "more_body": more}


def test_a_client_that_goes_away_frees_its_place(two_tasks: Any, serve: Any, hold: Any) -> None:
    service = serve(two_tasks(), max_wait=30)
    queue = service.models["two"].batcher._queue

    async def leave() -> Any:
        while not queue:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def go() -> None:
        async with asyncio.timeout(20):
            sent = await knock(service, body(json.dumps(request()).encode(), more=False), then=leave)
        assert not queue and sent["status"] == 499 and service.held == 0
        await service.close()

    asyncio.run(go())


def test_a_body_that_does_not_arrive(two_tasks: Any, serve: Any) -> None:
    service = serve(two_tasks(), timeout=0.05)

    async def leave() -> Any:
        assert service.held == 3
        return {"type": "http.disconnect"}

    async def go() -> None:
        async with asyncio.timeout(20):
            slow = await knock(service, body(b"{", more=True), then=asyncio.Event().wait)
            gone = await knock(service, body(b"{  ", more=True), then=leave)
        assert slow["status"] == 504 and gone["status"] == 499 and service.held == 0

    asyncio.run(go())


def test_bytes_of_all_requests_have_a_limit(two_tasks: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxmerge.serving.service, "AT_ONCE", 0.05)
    service = serve(two_tasks(), most_bytes=4000)
    with TestClient(app(service)) as client:
        for _ in range(2):
            answer = client.post("/v2/models/two/infer", json=request(10))
            assert answer.status_code == 429 and "being answered" in answer.json()["error"]
            assert client.post("/v2/models/two/infer", json=request()).status_code == 200
    assert service.held == 0
