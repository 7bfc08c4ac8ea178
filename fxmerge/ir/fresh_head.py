"""Heads that a program has for outputs that no weights of its own give."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FreshHead:
    """A head that nothing has trained yet: a linear map of one value of the trunk, applied at each of its places.

        value (batch, places…, d), d on axis `axis`  -->  (batch, places…, rest…)  or, `pooled`,  (batch, rest…)

    The places of the output begin at its axis `start`; what is `rest` stands around them.
    """

    output: int
    """Number of the output that it gives."""
    node: str
    """Name of the node it reads, in the program that it belongs to."""
    axis: int
    weight: str
    bias: str
    pooled: bool
    """Whether the mean over all places is taken."""
    start: int
    places: int
    """How many axes they are, in the value."""

    def features(self, value: Tensor) -> Tensor:
        """(batch, places…, d): what the head reads, as rows of features."""
        moved = value.movedim(self.axis, -1)
        return moved.mean(tuple(range(1, moved.ndim - 1))) if self.pooled and moved.ndim > 2 else moved

    def targets(self, output: Tensor) -> Tensor:
        """(batch, places…, numbers): what it should give for them."""
        count = 0 if self.pooled else self.places
        moved = output.movedim(tuple(self.start + i for i in range(count)), tuple(1 + i for i in range(count)))
        return moved.reshape(*moved.shape[: 1 + count], -1)
