"""What a method needs and does, as values: what `fxmerge methods` prints, and what a choice among methods goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["identity", "permutation", "sign", "orthogonal", "rotary", "free"]
"""Elements by which a parent's coordinates are carried into the merged ones.

identity      coordinate by coordinate, or whole units, as they stand
permutation   units in another order, or some of them left out
sign          and with the other sign
orthogonal    any rotation of a residual stream
rotary        rotations of the planes of a rotary embedding
free          any matrix, or weights of its own
"""


@dataclass(frozen=True)
class About:
    """Facts of a method beside its name, its summary and whether it needs data: its attribute `about`."""

    source: str = ""
    """Paper and section; empty for what is fxmerge's own."""
    trained: bool = False
    """Whether it takes gradient steps."""
    parents: Literal["any", "one base"] = "any"
    """"one base": meant for fine-tunes of one model, whose coordinates correspond already."""
    widths: bool = True
    """Whether parents may differ in width."""
    depths: bool = True
    """Whether parents may differ in depth."""
    tuned: bool = False
    """Whether samples, which it does not need, choose its options, or are compared, where there are some."""
    teachers: bool = False
    """Whether a parent that does not line up with the others may take part, as a teacher only."""
    groups: tuple[Group, ...] = ("identity",)
    """What it looks for, where the analysis finds that a space has it."""

    @property
    def suits(self) -> str:
        """The parents it is for, in words."""
        unlike = [what for what, may in (("width", self.widths), ("depth", self.depths)) if may]
        return "of one base" if self.parents == "one base" else f"any {' and '.join(unlike)}" if unlike else "equal"


def about_of(method: object) -> About | None:
    """What a method says of itself; None if it says nothing, as methods of extensions may."""
    found = getattr(method, "about", None)
    return found if isinstance(found, About) else None


def takes_teachers(method: object) -> bool:
    """Whether a method can merge with a model that lines up with no other."""
    about = about_of(method)
    return about is not None and about.teachers
