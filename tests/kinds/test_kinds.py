"""Networks as people write them go the whole way: save, inspect, check, merge, ONNX, and one merged with itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kind import Kind
from benchmarks.kinds import CLOSE, KINDS, whole_way

BOTH = ("len(x)", "dict", "nn.Transformer, time first", "batch written into the model")
"""Kinds that are written as ONNX after training too; an export takes most of the time."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_whole_way(kind: Kind, tmp_path: Path) -> None:
    row = whole_way(kind, tmp_path, write_both=kind.name in BOTH)
    assert row["difference"] <= CLOSE
