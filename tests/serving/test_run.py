"""`fxmerge serve` as a process, and what it refuses to start with."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

import fxmerge.cli.serve
from fxmerge.cli.verbs import main
from fxmerge.serving import v2_pb2, v2_pb2_grpc

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8], "data": [1] * 8}]}


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["serve", *args]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2
    return err


def test_a_port_in_use(two_tasks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is in use" in refused(capsys, str(two_tasks()), "--port", port)


def test_a_host_of_somebody_else(two_tasks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot listen at 192.0.2.1" in refused(capsys, str(two_tasks()), "--host", "192.0.2.1", "--port", "0")


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.onnx: no such file" in refused(capsys, "none.onnx", "--port", "0")


def test_a_file_without_keys(two_tasks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("\n \n")
    assert "holds no key" in refused(capsys, str(two_tasks()), "--port", "0", "--api-key-file", str(tmp_path / "keys"))


def test_packages_that_are_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxmerge.cli.serve, "NEEDED", ("starlette", "nothing_of_that_name"))
    assert "pip install 'fxmerge[serve]'" in refused(capsys, "m.onnx")


def test_it_stops_when_all_it_accepted_is_answered(two_tasks: Any) -> None:
    command = [sys.executable, "-m", "fxmerge", "serve", str(two_tasks()), "--port", "0", "--grpc-port", "0"]
    limits = ["--max-wait-ms", "60000", "--max-batch", "9"]
    with subprocess.Popen([*command, *limits], stderr=subprocess.PIPE, text=True) as process, process.stderr as told:  # type: ignore[union-attr]
        try:
            model, start = (json.loads(told.readline()) for _ in range(2))
            assert model["provider"].endswith("ExecutionProvider") and start["host"] == "127.0.0.1"
            url, by_grpc = f"http://127.0.0.1:{start['port']}", f"127.0.0.1:{start['grpc_port']}"
            with ThreadPoolExecutor(8) as pool, httpx2.Client(timeout=30) as client:
                asked = [pool.submit(client.post, f"{url}/v2/models/two/infer", json=BODY) for _ in range(7)]
                asked.append(pool.submit(_ask_by_grpc, by_grpc))
                while 'queue_requests{model="two"} 8.0' not in client.get(f"{url}/metrics").text:
                    time.sleep(0.05)  # leave the server a core
                process.send_signal(signal.SIGTERM)
                assert json.loads(told.readline())["event"] == "stopping"
                answers = [one.result() for one in asked]  # at once, not when the queue's wait is over
                late = client.post(f"{url}/v2/models/two/infer", json=BODY)
            assert [one.status_code for one in answers[:7]] == [200] * 7 and len(answers[7].outputs) == 2
            assert late.status_code == 503 and late.headers["Connection"] == "close"
            rest = [json.loads(line) for line in told]
            assert [line["event"] for line in rest] == ["infer"] * 9 + ["stopped"]
            assert process.wait(30) == 0
        finally:
            process.kill()


def _ask_by_grpc(address: str) -> Any:
    message = v2_pb2.ModelInferRequest(model_name="two", raw_input_contents=[bytes(32)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 8])
    with grpc.insecure_channel(address) as channel:
        return v2_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=30)
