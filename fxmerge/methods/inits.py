"""Where trained maps start."""

from __future__ import annotations

from dataclasses import dataclass

from fxmerge.errors import OptionError
from fxmerge.ir.maps import Form
from fxmerge.ir.supernet import SuperNet
from fxmerge.messages import nearest
from fxmerge.methods.base import Init, Job
from fxmerge.methods.condense import CONDENSE


@dataclass(frozen=True)
class FromAverage:
    """M_k = I/K: the SuperNet is the weight average. Even-handed, the better start for the parents but the first."""

    name: str = "average"
    summary: str = "start from the parents' average"

    def __call__(self, job: Job, form: Form) -> SuperNet:
        return job.supernet.start([1.0] * len(job.supernet.parents), form, job.settings.seed)


@dataclass(frozen=True)
class FromFirst:
    """M_0 = I and M_k = 0 for the others, every U_k = I: the SuperNet is the template parent.

    With U_k = 0 for the others both gradients would vanish and they would never take part (FS-Merge, §4.3).
    """

    name: str = "first"
    summary: str = "start from the parent whose shape the result has"

    def __call__(self, job: Job, form: Form) -> SuperNet:
        weights = [float(k == job.supernet.template) for k in range(len(job.supernet.parents))]
        return job.supernet.start(weights, form, job.settings.seed)


@dataclass(frozen=True)
class FromCondense:
    """M and U of the closed form. Only dense maps can hold them."""

    name: str = "condense"
    summary: str = "start from the closed form (see the method condense)"

    def __call__(self, job: Job, form: Form) -> SuperNet:
        if form != "full":
            raise OptionError(
                f"maps of rank {form} cannot hold the closed form",
                "give --full, or --init average; or --method distill",
            )
        net = CONDENSE.solve(job)
        for _, block in net.maps():
            block.start([block.matrix(k).detach() for k in range(len(block.sizes))], form)
        return net


TRIED: tuple[Init, ...] = (FromAverage(), FromFirst())
"""What `auto` chooses from."""
INITS: tuple[Init, ...] = (*TRIED, FromCondense())


def find_init(name: str) -> Init:
    """The start of this name. Raises `OptionError` naming the nearest one."""
    known = {init.name: init for init in INITS}
    if name not in known:
        raise OptionError(f"unknown init {name!r}{nearest(name, known)}", f"known are: auto, {', '.join(known)}")
    return known[name]
