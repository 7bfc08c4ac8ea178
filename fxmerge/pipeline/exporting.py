"""What the rules in this run say of tracing and of ONNX: sizes of results, and translations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from fxmerge.ir.open_sizes import open_sizes
from fxmerge.pipeline.installed import known
from fxmerge.rewrite import operator


def tracing() -> AbstractContextManager[None]:
    """Inside, an operator whose rule knows the sizes of its results is traced at sizes that are left open."""
    return open_sizes({operator(op): rule.empty for rule in known().rules if rule.empty for op in rule.ops})


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Per operator that PyTorch's exporter does not know: how its rule writes it as ONNX."""
    return {operator(op): rule.onnx for rule in known().rules if rule.onnx for op in rule.ops}
