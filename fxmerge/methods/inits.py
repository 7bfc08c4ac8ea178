"""Where trained maps start."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fxmerge.errors import OptionError
from fxmerge.ir.maps import Form
from fxmerge.ir.program import Program
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
class FromParent:
    """The same for another parent than the template: what it lacks in width is zero, what it has too much is cut."""

    number: int

    @property
    def name(self) -> str:
        return f"parent{self.number}"

    @property
    def summary(self) -> str:
        return f"start from parent {self.number}, counted from 0"

    def __call__(self, job: Job, form: Form) -> SuperNet:
        count = len(job.supernet.parents)
        if self.number >= count:
            raise OptionError(f"there is no {self.name}: the parents are counted from 0", f"{count} parents were given")
        weights = [float(k == self.number) for k in range(count)]
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
"""What `auto` chooses from for maps that train."""
INITS: tuple[Init, ...] = (*TRIED, FromCondense())
PARENT = re.compile(r"parent(\d{1,6})")


def starts_of(text: str, parents: int, template: int) -> tuple[str, ...]:
    """The starts of a folded model that a text names: one, several joined by "+", or all ("auto")."""
    each = ("first", *(f"parent{k}" for k in range(parents) if k != template))
    named = ("condense", "average", "parents") if text == "auto" else tuple(text.split("+"))
    return tuple(dict.fromkeys(name for one in named for name in (each if one == "parents" else (one,))))


def folded(job: Job, init: Init) -> tuple[SuperNet, Program]:
    """A start whose trunk is folded into ordinary weights; the closed form has kernels then that no maps can give."""
    if isinstance(init, FromCondense):
        return CONDENSE.start(job, "full")
    supernet = init(job, "full")
    return supernet, job.fold_trunk(supernet.program)


def find_init(name: str) -> Init:
    """The start of this name. Raises `OptionError` naming the nearest one."""
    known = {init.name: init for init in INITS}
    if found := PARENT.fullmatch(name):
        return FromParent(int(found[1]))
    if name not in known:
        raise OptionError(
            f"unknown init {name!r}{nearest(name, known)}", f"known are: auto, {', '.join(known)}, parent0, …"
        )
    return known[name]
