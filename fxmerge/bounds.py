"""Bounds of numbers among a method's options, as part of their types: what lies outside is refused when it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Within:
    """From `least` to `most`, or above `least` where it is `beyond`: `rows: Annotated[int, Within(1)]`."""

    least: float
    most: float = math.inf
    beyond: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies within."""
        return (self.least < value if self.beyond else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        lower = f"above {self.least:g}" if self.beyond else f"at least {self.least:g}"
        return lower if math.isinf(self.most) else f"{lower} and at most {self.most:g}"


Count = Annotated[int, Within(1)]
Amount = Annotated[float, Within(0)]
Positive = Annotated[float, Within(0, beyond=True)]
Share = Annotated[float, Within(0, 1)]
Part = Annotated[float, Within(0, 1, beyond=True)]
