"""Where trained maps start: the weight of each parent in the average that M holds at step 0, all U being I."""

from __future__ import annotations

from dataclasses import dataclass

from fxmerge.errors import OptionError
from fxmerge.ir.supernet import SuperNet
from fxmerge.messages import nearest
from fxmerge.methods.base import Init


@dataclass(frozen=True)
class FromAverage:
    """M_k = I/K: the SuperNet is the weight average. Even-handed, the better start for the parents but the first."""

    name: str = "average"
    summary: str = "start from the parents' average"

    def __call__(self, supernet: SuperNet) -> tuple[float, ...]:
        return (1.0,) * len(supernet.parents)


@dataclass(frozen=True)
class FromFirst:
    """M_0 = I and M_k = 0 for the others, every U_k = I: the SuperNet is the template parent.

    With U_k = 0 for the others both gradients would vanish and they would never take part (FS-Merge, §4.3).
    """

    name: str = "first"
    summary: str = "start from the parent whose shape the result has"

    def __call__(self, supernet: SuperNet) -> tuple[float, ...]:
        return tuple(float(k == supernet.template) for k in range(len(supernet.parents)))


INITS: tuple[Init, ...] = (FromAverage(), FromFirst())


def find_init(name: str) -> Init:
    """The start of this name. Raises `OptionError` naming the nearest one."""
    known = {init.name: init for init in INITS}
    if name not in known:
        raise OptionError(f"unknown init {name!r}{nearest(name, known)}", f"known are: auto, {', '.join(known)}")
    return known[name]
