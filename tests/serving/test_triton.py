"""Triton's own client against this server, from an environment of its own: it wants an older protobuf."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLIENT = os.environ.get("FXMERGE_TRITON_PYTHON", "")


@pytest.mark.skipif(not CLIENT, reason="FXMERGE_TRITON_PYTHON names no Python that has tritonclient[http,grpc]")
def test_tritons_client_gets_the_same_by_all_ways(two_tasks: Any) -> None:
    command = [sys.executable, "-m", "fxmerge", "serve", str(two_tasks()), "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, process.stderr as told:  # type: ignore[union-attr]
        try:
            _, start = (json.loads(told.readline()) for _ in range(2))
            script = Path(__file__).with_name("triton_client.py")
            ports = [str(start["port"]), str(start["grpc_port"])]
            found = subprocess.run([CLIENT, str(script), *ports], capture_output=True, text=True, timeout=60)
        finally:
            process.terminate()
    assert found.returncode == 0, found.stderr
    assert "7 ways, largest difference 0.0" in found.stdout
