"""Requests changed at random: whatever comes, the parsers read it or raise `RequestError`, and the doors answer.

`FXMERGE_FUZZ=20000 pytest tests/serving/test_fuzz.py` is a longer run with other examples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fxmerge.serving import v2_pb2 as v2
from fxmerge.serving.grpc import read_request
from fxmerge.serving.protocol import DATATYPES, RequestError, parse_request
from fxmerge.serving.rest import LENGTH, app

EXAMPLES = int(os.environ.get("FXMERGE_FUZZ", "60"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 60, suppress_health_check=list(HealthCheck)
)

sizes = st.integers(-2, 9) | st.sampled_from([1 << 31, 1 << 40, 1 << 63, 1 << 70, -(1 << 63)])
numbers = (
    st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=3)
    | st.sampled_from([1e308, 1e39, -0.0, 1 << 64, (1 << 53) + 1, 10**400])
)  # fmt: skip
trees = st.recursive(numbers, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
junk = st.recursive(
    numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
names = st.sampled_from(["x", "ids", "mask", "text", "a.logits", "b.row", "", "\x00", "\ud800", "x" * 400])
datatypes = st.sampled_from([*DATATYPES, "BF16", "FLOAT", ""])
binary = st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 80) | junk, "binary_data": junk})
tensors = st.fixed_dictionaries(
    {"name": names, "datatype": datatypes, "shape": st.lists(sizes, max_size=4)},
    optional={"data": st.lists(trees, max_size=8) | junk, "parameters": binary | junk},
)
wanted = st.fixed_dictionaries({"name": names | junk}, optional={"parameters": binary})
bodies = st.fixed_dictionaries(
    {"inputs": st.lists(tensors | junk, max_size=3)},
    optional={"outputs": st.lists(wanted | junk), "id": junk, "parameters": junk},
)  # fmt: skip
ports = st.tuples(
    names.filter(lambda name: name != "\ud800"), datatypes,
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 9), max_size=5),
)  # fmt: skip
headers = st.none() | st.integers(-3, 400).map(str) | st.text(max_size=3)
replaced = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)


def whole(count: int = 2) -> tuple[bytes, int]:
    """A binary request that is right."""
    told = {"name": "x", "datatype": "FP32", "shape": [count, 8], "parameters": {"binary_data_size": 32 * count}}
    text = json.dumps(
        {"inputs": [told], "outputs": [{"name": "a.logits", "parameters": {"binary_data": True}}]}
    ).encode()
    return text + np.ones(8 * count, "<f4").tobytes(), len(text)


def read(reader: Callable[..., Any], *args: Any) -> None:
    """Read a request, or have it refused in two lines."""
    told = ["what", "what to do"]
    try:
        reader(*args)
    except RequestError as error:
        told = str(error).splitlines()
    assert len(told) == 2


@fuzzed
@given(bodies, headers, st.binary(max_size=80))
def test_json_of_every_kind_is_read_or_refused(body: Any, header: str | None, rest: bytes) -> None:
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    for told in (header, str(len(text))):
        read(parse_request, text + rest, told)


@fuzzed
@given(replaced, st.integers(0, 400), st.integers(-4, 4))
def test_bytes_that_are_changed_or_missing_are_read_or_refused(changes: Any, end: int, shift: int) -> None:
    body, length = whole()
    changed = bytearray(body)
    for place, value in changes:
        changed[place % len(changed)] = value
    read(parse_request, bytes(changed[: end or None]), str(length + shift))


@fuzzed
@given(st.lists(ports), st.lists(st.binary(max_size=70), max_size=3))
def test_messages_are_read_or_refused(inputs: Any, raw: list[bytes]) -> None:
    message = v2.ModelInferRequest(raw_input_contents=raw)
    for number, (name, datatype, shape) in enumerate(inputs):
        value = message.inputs.add(name=name, datatype=datatype, shape=shape)
        if number % 2:
            value.contents.fp32_contents.extend([1.0, float("nan")])
            value.contents.int64_contents.extend([-1])
    read(read_request, message)


@fuzzed
@given(st.binary(max_size=200))
def test_messages_of_any_bytes_are_read_or_refused(noise: bytes) -> None:
    message = v2.ModelInferRequest()
    try:
        message.ParseFromString(noise)
    except Exception:  # grpc refuses it before we see it
        return
    read(read_request, message)


def test_the_door_answers_whatever_comes(two_tasks: Any, tokens: Any, serve: Any) -> None:
    """Wrong requests get an error object, right ones between them their answer."""
    with TestClient(app(serve(two_tasks(), tokens(), most_bytes=4000)), raise_server_exceptions=True) as client:

        @settings(fuzzed, max_examples=max(EXAMPLES // 2, 1))
        @given(bodies, headers, st.binary(max_size=40), st.sampled_from(["two", "tokens", "three"]))
        def knock(body: Any, header: str | None, rest: bytes, model: str) -> None:
            text = json.dumps(body).encode("utf-8", "surrogatepass")
            for told in {header, str(len(text))} - {None}:
                if told.isascii() and told.isprintable() and told == told.strip():
                    answer = client.post(f"/v2/models/{model}/infer", content=text + rest, headers={LENGTH: told})
                    assert answer.status_code in (200, 400, 404, 413)
                    assert answer.status_code == 200 or len(answer.json()["error"].splitlines()) == 2
            right, length = whole()
            answer = client.post("/v2/models/two/infer", content=right, headers={LENGTH: str(length)})
            assert answer.status_code == 200 and answer.content.endswith(expected[-24:])

        right, length = whole()
        expected = client.post("/v2/models/two/infer", content=right, headers={LENGTH: str(length)}).content
        knock()
