"""Triton's own client against this server, from an environment of its own, as it wants an older protobuf; and curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxmerge.cli.verbs import main

Client = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    """Runs `triton_client.py` where nothing but Triton's client is installed."""
    folder = str(tmp_path_factory.mktemp("tritonclient"))
    wanted = ["--only-binary", ":all:", "--target", folder, "tritonclient[http,grpc]>=2.60"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", *wanted]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=200)
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry does not answer")
    if made.returncode:
        pytest.skip(f"tritonclient cannot be installed: {made.stderr.strip().splitlines()[-1:]}")
    script = str(Path(__file__).with_name("triton_client.py"))

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        alone = {**os.environ, "PYTHONPATH": folder}
        found = subprocess.run(
            [sys.executable, "-S", script, *args], capture_output=True, text=True, timeout=120, env=alone
        )
        assert found.returncode == 0, found.stderr
        return found

    return run


def by_curl(port: int) -> Any:
    """What the server answers to a row of ones."""
    value = {"name": "x", "datatype": "FP32", "shape": [1, 8], "data": [1] * 8}
    command = ["curl", "-sS", f"http://127.0.0.1:{port}/v2/models/two/infer", "-d", json.dumps({"inputs": [value]})]
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout)


def test_tritons_client_gets_the_same_by_all_ways(two_tasks: Any, client: Client) -> None:
    command = [sys.executable, "-m", "fxmerge", "serve", str(two_tasks()), "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, process.stderr as told:  # type: ignore[union-attr]
        try:
            _, start = (json.loads(told.readline()) for _ in range(2))
            found = client(str(start["port"]), str(start["grpc_port"]))
            if shutil.which("curl"):
                assert [output["shape"] for output in by_curl(start["port"])["outputs"]] == [[1, 3], [1, 5]]
        finally:
            process.terminate()
    count, _, difference = found.stdout.partition(" answers, largest difference ")
    assert int(count) == 24 and float(difference) < 1e-6


def test_tritons_message_holds_what_is_packaged(two_tasks: Any, apart: Any, client: Client, tmp_path: Path) -> None:
    for path in (two_tasks(), apart()):
        assert main(["package", str(path), "--triton", str(tmp_path / "repository")]) == 0
    assert client(str(tmp_path / "repository")).stdout.splitlines() == [
        "apart onnxruntime_onnx", "apart_a onnxruntime_onnx", "apart_b onnxruntime_onnx",
        "two onnxruntime_onnx", "two_a ensemble two", "two_b ensemble two",
    ]  # fmt: skip
