"""Operators that read only shapes: their result is a constant."""

from __future__ import annotations

from fxmerge.coupling import fills
from passes.rules.names import aten

filled = fills(
    *aten(
        """
        zeros_like ones_like full_like new_zeros new_ones new_full zeros ones full arange scalar_tensor eye linspace
        tril_indices triu_indices
        """
    ),
)
blank = fills(
    *aten("empty_like new_empty empty empty_strided new_empty_strided empty_permuted"),
    blank=True,
)
