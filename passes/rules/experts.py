"""Mixtures of experts: matrix products over groups of rows."""

from __future__ import annotations

from fxmerge.coupling import Call, couples


@couples("transformers.grouped_mm_fallback.default", "aten._grouped_mm.default", roles={"e": "experts"})
def grouped_mm(call: Call) -> tuple[str, str]:
    """Rows in runs, one run per expert: the order of rows and experts is in the offsets."""
    names = [name for name, _ in call.operands]
    return "n! k, e! k m, e! -> n! m", f"{names[0]} * {names[1]}"
