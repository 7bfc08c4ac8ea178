"""Ask a server by every way that Triton's client has: `python triton_client.py PORT GRPC_PORT`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

X = np.random.default_rng(0).standard_normal((2, 8)).astype("f")


def ask(kind: Any, port: str, **binary: bool) -> list[Any]:
    """`b.logits` asked for with all outputs, and alone."""
    client = kind.InferenceServerClient(f"127.0.0.1:{port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("two")
    client.get_server_metadata(), client.get_model_metadata("two")
    value = kind.InferInput("x", [2, 8], "FP32")
    value.set_data_from_numpy(X, **binary)
    everything = client.infer("two", [value], request_id="17")
    one = client.infer("two", [value], outputs=[kind.InferRequestedOutput("b.logits", **binary)])
    assert everything.as_numpy("a.logits").shape == (2, 3) and one.as_numpy("a.logits") is None
    for model, wrong in (("three", value), ("two", kind.InferInput("x", [2, 7], "FP32"))):
        wrong.set_data_from_numpy(np.zeros(wrong.shape(), "f"), **binary)
        told = ""
        try:
            client.infer(model, [wrong])
        except kind.InferenceServerException as error:
            told = error.message()
        assert len(told.splitlines()) == 2
    value.set_data_from_numpy(X, **binary)
    return [answer.as_numpy("b.logits") for answer in (everything, one)]


if __name__ == "__main__":
    rest, by_grpc = sys.argv[1:]
    found = ask(tritonclient.http, rest, binary_data=True) + ask(tritonclient.http, rest, binary_data=False)
    found += ask(tritonclient.grpc, by_grpc)
    later = tritonclient.http.InferenceServerClient(f"127.0.0.1:{rest}")
    value = tritonclient.http.InferInput("x", [2, 8], "FP32")
    value.set_data_from_numpy(X)
    found.append(later.async_infer("two", [value]).get_result().as_numpy("b.logits"))
    largest = max(float(np.abs(one - found[0]).max()) for one in found)
    print(f"{len(found)} ways, largest difference {largest}")
