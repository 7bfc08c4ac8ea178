"""The files that start the server elsewhere say what the server takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import fxmerge.serving.run
from fxmerge.cli.verbs import main

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `fxmerge serve` was told."""
    found: list[Any] = []
    monkeypatch.setattr(fxmerge.serving.run, "run", lambda options: found.append(options) or 0)
    return found


def test_the_container_of_kserve(told: list[Any]) -> None:
    service = yaml.safe_load((DEPLOY / "inferenceservice.yaml").read_text())
    [container] = service["spec"]["predictor"]["containers"]
    assert main(["serve", *container["args"]]) == 0
    [options] = told
    assert [str(options.port)] == [str(port["containerPort"]) for port in container["ports"]]
    assert {container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")} == {options.port}
    assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] > options.limits.timeout


def test_the_container_of_docker(told: list[Any]) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    [start] = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
    [run] = re.findall(r"^# docker run .* fxmerge (/.+)$", text, re.MULTILINE)
    program, *verb = json.loads(start)
    assert program == "fxmerge" and main([*verb, *run.split()]) == 0
    [ports] = re.findall(r"^EXPOSE (.+)$", text, re.MULTILINE)
    assert ports.split() == [str(told[0].port), str(told[0].grpc_port)] and told[0].host == "0.0.0.0"
