"""Run with Triton's client: `python triton_client.py PORT GRPC_PORT` asks a server by every way that the client has;
`python triton_client.py REPOSITORY` parses a model repository by Triton's own message."""

from __future__ import annotations

import asyncio
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.grpc.model_config_pb2
import tritonclient.http
import tritonclient.http.aio
from google.protobuf import text_format

X = np.random.default_rng(0).standard_normal((2, 8)).astype("f")


def rows(kind: Any, values: Any = X, **binary: bool) -> Any:
    value = kind.InferInput("x", list(values.shape), "FP32")
    value.set_data_from_numpy(values, **binary)
    return value


def ask(kind: Any, port: str, **binary: bool) -> list[Any]:
    """`b.logits` asked for with all outputs, and alone."""
    client = kind.InferenceServerClient(f"127.0.0.1:{port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("two")
    client.get_server_metadata(), client.get_model_metadata("two")
    everything = client.infer("two", [rows(kind, **binary)], request_id="17")
    one = client.infer("two", [rows(kind, **binary)], outputs=[kind.InferRequestedOutput("b.logits", **binary)])
    assert everything.as_numpy("a.logits").shape == (2, 3) and one.as_numpy("a.logits") is None
    for model, wrong in (("three", X), ("two", X[:, :7].copy())):
        told = ""
        try:
            client.infer(model, [rows(kind, wrong, **binary)])
        except kind.InferenceServerException as error:
            told = error.message()
        assert len(told.splitlines()) == 2
    return [answer.as_numpy("b.logits") for answer in (everything, one)]


def ask_later(rest: str, by_grpc: str) -> list[Any]:
    """By the calls that do not wait."""
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{rest}")
    found = [client.async_infer("two", [rows(tritonclient.http)]).get_result()]
    answers: queue.Queue[Any] = queue.Queue()
    other = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{by_grpc}")
    other.async_infer("two", [rows(tritonclient.grpc)], lambda result, error: answers.put(error or result))
    found.append(answers.get(timeout=20))
    return [answer.as_numpy("b.logits") for answer in found]


async def ask_in_a_loop(kind: Any, plain: Any, port: str) -> list[Any]:
    """By asyncio, several at once."""
    async with kind.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answers = await asyncio.gather(*(client.infer("two", [rows(plain)]) for _ in range(8)))
        return [answer.as_numpy("b.logits") for answer in answers]


def parse(repository: Path) -> None:
    """Print the entries and which they are made of."""
    for file in sorted(repository.glob("*/config.pbtxt")):
        config = text_format.Parse(file.read_text(), tritonclient.grpc.model_config_pb2.ModelConfig())
        assert config.name == file.parent.name
        print(config.name, config.platform, *(step.model_name for step in config.ensemble_scheduling.step))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        parse(Path(sys.argv[1]))
        raise SystemExit
    rest, by_grpc = sys.argv[1:]
    found = ask(tritonclient.http, rest, binary_data=True) + ask(tritonclient.http, rest, binary_data=False)
    found += ask(tritonclient.grpc, by_grpc) + ask_later(rest, by_grpc)
    found += asyncio.run(ask_in_a_loop(tritonclient.http.aio, tritonclient.http, rest))
    found += asyncio.run(ask_in_a_loop(tritonclient.grpc.aio, tritonclient.grpc, by_grpc))
    print(f"{len(found)} answers, largest difference {max(float(np.abs(one - found[0]).max()) for one in found):.1g}")
