"""Which axes of the operators are the same axis."""

from __future__ import annotations

from typing import Any

from fxmerge import couples

gate_rule = couples("example.gate.default", "... d, d -> ... d")


@couples("example.swap.default")
def swap_rule(call: Any) -> str:
    """The parts change places, so their order is fixed; what is inside a part moves with all parts."""
    return f"... (parts={call['parts']}! d) -> ... (parts d)"
