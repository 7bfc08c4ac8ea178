"""Requests and answers of the protocol, as bytes."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxmerge.serving.protocol import (
    DATATYPES,
    InferAnswer,
    InferRequest,
    RequestError,
    format_answer,
    from_numbers,
    from_raw,
    parse_request,
    to_raw,
)


def body(**changes: Any) -> bytes:
    value = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]} | changes
    return json.dumps({"inputs": [value]}).encode()


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [1.0, 2, 3, 4.0]])
def test_numbers_may_be_flat_or_nested(data: list[Any]) -> None:
    x = parse_request(body(data=data)).inputs["x"]
    assert x.dtype == np.float32 and x.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_data_type_comes_back_from_its_bytes(datatype: str) -> None:
    kind = DATATYPES[datatype]
    x = np.array([[0, 1], [1, 0], [1, 1]], "S2" if kind == "object" else kind).astype(kind)
    back = from_raw("x", datatype, [3, 2], to_raw(x))
    assert back.dtype == x.dtype and np.array_equal(back, x)
    assert np.array_equal(from_numbers("x", datatype, [3, 2], x.tolist()), x)


def test_binary_inputs_follow_the_json_in_their_order() -> None:
    one, two = np.arange(3, dtype="f"), np.array([[True], [False]])
    inputs = [
        {"name": "one", "datatype": "FP32", "shape": [3], "parameters": {"binary_data_size": 12}},
        {"name": "between", "datatype": "INT64", "shape": [1], "data": [7]},
        {"name": "two", "datatype": "BOOL", "shape": [2, 1], "parameters": {"binary_data_size": 2}},
    ]
    text = json.dumps({"id": "9", "inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    request = parse_request(text + to_raw(one) + to_raw(two), str(len(text)))
    assert request.id == "9" and request.binary and list(request.inputs) == ["one", "between", "two"]
    assert np.array_equal(request.inputs["one"], one) and np.array_equal(request.inputs["two"], two)
    assert request.inputs["between"].tolist() == [7]


def test_an_answer_is_json_or_binary_as_each_output_was_asked_for() -> None:
    outputs = {"a": np.array([[0.1, 2]], "f"), "b": np.array([5], "i8")}
    request = InferRequest({}, ("a", "b"), id="3", binary=True, binary_of={"b": False})
    made, length = format_answer(request, InferAnswer("m", "v", outputs))
    told = json.loads(made[:length])
    assert told["id"] == "3" and told["model_version"] == "v"
    assert told["outputs"][0] == {
        "name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8},
    }  # fmt: skip
    assert told["outputs"][1]["data"] == [5]
    assert struct.unpack("<2f", made[length:]) == pytest.approx((0.1, 2))
    plain, none = format_answer(InferRequest({}), InferAnswer("m", "v", outputs))
    assert none is None
    assert np.array_equal(np.array(json.loads(plain)["outputs"][0]["data"], "f"), outputs["a"][0])


def test_numbers_that_json_lacks_are_sent_as_bytes_or_not_at_all() -> None:
    answer = InferAnswer("m", "v", {"a": np.array([np.inf], "f")})
    with pytest.raises(RequestError, match="binary_data"):
        format_answer(InferRequest({}), answer)
    made, length = format_answer(InferRequest({}, binary=True), answer)
    assert made[length:] == struct.pack("<f", np.inf)


BINARY = {"data": None, "parameters": {"binary_data_size": 16}}
BAD = {
    "no JSON": (b"{", None, "is no JSON"),
    "deep": (b"[" * 100_000, None, "is no JSON"),
    "no object": (b"[]", None, "no JSON object"),
    "no inputs": (b"{}", None, "no list of inputs"),
    "no name": (body(name=3), None, "has no name"),
    "twice": (json.dumps({"inputs": [json.loads(body())["inputs"][0]] * 2}).encode(), None, "is there twice"),
    "datatype": (body(datatype="FLOAT32"), None, "unknown datatype"),
    "numbers for text": (body(datatype="BYTES"), None, "not all text"),
    "fewer texts": (body(datatype="BYTES", data=["a", ["b", "c"]]), None, r"has 3 entries, not \[2, 2\]"),
    "larger than a float": (body(data=[1, 2, 3, "@"]).replace(b'"@"', b"1e400"), None, "not all FP32"),
    "sizes of nothing": (body(shape=[0, 1 << 32, 1 << 32], data=[]), None, "too large"),
    "size of nothing": (body(shape=[0, 1 << 63], data=[]), None, "too large"),
    "deep numbers": (body(data="@").replace(b'"@"', b"[" * 900 + b"]" * 900), None, "ragged|no JSON"),
    "shape": (body(shape=[2, -2]), None, "no list of sizes"),
    "fewer": (body(shape=[2, 3]), None, "has data of the shape"),
    "huge": (body(shape=[1 << 40, 1 << 40]), None, "too large"),
    "ragged": (body(data=[[1], [2, 3]]), None, "ragged"),
    "words": (body(data=["1", "2", "3", "4"]), None, "not all FP32"),
    "fraction": (body(datatype="INT64", data=[1, 2, 3, 4.5]), None, "not all INT64"),
    "range": (body(datatype="UINT8", data=[1, 2, 3, 256]), None, "not all UINT8"),
    "overflow": (body(data=[1, 2, 3, 1e300]), None, "not all FP32"),
    "NaN": (body(data=[1, 2, 3, float("nan")]), None, "holds NaN"),
    "infinity": (body(data=[1, 2, 3, float("inf")]), None, "holds Infinity"),
    "no data": (body(data=None), None, "has no data"),
    "truncated": (body(**BINARY) + bytes(15), str(len(body(**BINARY))), "15 bytes are left"),
    "longer": (body(**BINARY) + bytes(17), str(len(body(**BINARY))), "1 bytes follow"),
    "other size": (body(**BINARY, shape=[2, 3]) + bytes(16), str(len(body(**BINARY, shape=[2, 3]))), "needs 24"),
    "no header": (body(**BINARY) + bytes(16), None, "is no JSON"),
    "header": (body(), "-5", "Inference-Header-Content-Length"),
    "header past the end": (body(), "4000", "Inference-Header-Content-Length"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_say_what_and_what_to_do(case: str) -> None:
    text, header, what = BAD[case]
    with pytest.raises(RequestError, match=what) as caught:
        parse_request(text, header)
    assert caught.value.status == 400 and len(str(caught.value).splitlines()) == 2


def test_text_as_bytes_is_cut_by_its_lengths() -> None:
    words = np.array([b"", "göod".encode(), b"\x00a\x00"], object)
    raw = to_raw(words)
    assert raw[:13] == b"\0\0\0\0" + b"\5\0\0\0" + "göod".encode() and np.array_equal(
        from_raw("x", "BYTES", [3], raw), words
    )
    for cut in (raw[:-1], raw[:2], raw + b"\xff"):
        with pytest.raises(RequestError, match="bytes left for an entry"):
            from_raw("x", "BYTES", [3], cut)
    with pytest.raises(RequestError, match="has 3 entries"):
        from_raw("x", "BYTES", [2], raw)
    answer = InferAnswer("m", "v", {"a": words[:2]}, {"truncated": 1})
    plain, _ = format_answer(InferRequest({}), answer)
    told = json.loads(plain)
    assert told["outputs"][0]["data"] == ["", "göod"] and told["parameters"] == {"truncated": 1}


@given(st.binary(max_size=60), st.none() | st.text(max_size=4))
def test_no_bytes_raise_anything_else(noise: bytes, header: str | None) -> None:
    for text in (noise, body()[: len(noise)] + noise):
        with pytest.raises(RequestError):
            parse_request(text, header)
