"""Operator names, many at a time."""

from __future__ import annotations


def aten(names: str) -> tuple[str, ...]:
    """`aten("add.Tensor relu")` is `("aten.add.Tensor", "aten.relu")`; without an overload it means all of them."""
    return tuple(f"aten.{name}" for name in names.split())
