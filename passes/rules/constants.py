"""Operators that read only shapes: their result is a constant."""

from __future__ import annotations

from fxmerge.coupling import fills

filled = fills(
    "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.new_zeros", "aten.new_ones", "aten.new_full",
    "aten.zeros", "aten.ones", "aten.full", "aten.arange", "aten.scalar_tensor", "aten.eye", "aten.linspace",
    "aten.tril_indices", "aten.triu_indices",
)  # fmt: skip
blank = fills(
    "aten.empty_like", "aten.new_empty", "aten.empty", "aten.empty_strided", "aten.new_empty_strided", "aten.empty_permuted",
    blank=True,
)  # fmt: skip
