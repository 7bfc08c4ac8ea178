"""Operators that read only shapes: their result is a constant."""

from __future__ import annotations

from fxmerge.coupling import fills
from passes.rules.names import aten

zeros = fills(*aten("zeros zeros_like new_zeros"), number=0)
ones = fills(*aten("ones ones_like new_ones"), number=1)
full = fills(*aten("full full_like new_full"), number="fill_value")
scalar = fills(*aten("scalar_tensor"), number="s")
filled = fills(*aten("arange eye linspace tril_indices triu_indices"))
blank = fills(*aten("empty_like new_empty empty empty_strided new_empty_strided empty_permuted"), blank=True)
