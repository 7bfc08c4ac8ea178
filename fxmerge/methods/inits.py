"""Where trained maps start."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fxmerge.errors import OptionError
from fxmerge.ir.maps import Form
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.messages import nearest
from fxmerge.methods.align import ALIGN
from fxmerge.methods.base import Init, Job
from fxmerge.methods.condense import CONDENSE
from fxmerge.methods.dare import DARE
from fxmerge.methods.fisher import FISHER
from fxmerge.methods.fresh_heads import with_heads
from fxmerge.methods.permute import PERMUTE
from fxmerge.methods.pleas import PLEAS
from fxmerge.methods.regmean import REGMEAN
from fxmerge.methods.rotate import ROTATE
from fxmerge.methods.task_arithmetic import TASK_ARITHMETIC
from fxmerge.methods.ties import TIES
from fxmerge.methods.transport import TRANSPORT
from fxmerge.methods.zipit import ZIPIT


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


class Startable(Protocol):
    """A method whose result others may train on.

    Where it is a choice of maps, and not of folded weights alone, a `solve(job)` beside gives the SuperNet with them.
    """

    @property
    def name(self) -> str: ...

    def start(self, job: Job, form: Form) -> tuple[SuperNet, Program]:
        """The SuperNet, its maps in this form, and its trunk folded into ordinary weights."""
        ...


@dataclass(frozen=True)
class FromMethod:
    """What a method without training gives: maps where it chooses maps, which only dense ones can hold."""

    method: Startable

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def summary(self) -> str:
        return f"start from what the method {self.name} gives"

    def __call__(self, job: Job, form: Form) -> SuperNet:
        solve: Callable[[Job], SuperNet] | None = getattr(self.method, "solve", None)
        if solve is None:
            raise OptionError(
                f"maps cannot hold what {self.name} gives: it merges folded weights",
                f"train those: --method auto (or distill) --init {self.name}",
            )
        if form != "full":
            raise OptionError(
                f"maps of rank {form} cannot hold what {self.name} gives",
                "give --full, or --init average; or --method distill",
            )
        net = solve(job)
        for _, block in net.maps():
            block.start([block.matrix(k).detach() for k in range(len(block.sizes))], form)
        return net

    def folded(self, job: Job) -> tuple[SuperNet, Program]:
        """The same as weights, some of which no maps can give."""
        return self.method.start(job, "full")


class Aligns(Protocol):
    @property
    def name(self) -> str: ...

    def start(self, job: Job, form: Form) -> SuperNet: ...


@dataclass(frozen=True)
class FromAlignment:
    """M and U of a method that only lines the parents' units up."""

    method: Aligns

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def summary(self) -> str:
        return f"start from the method {self.method.name}"

    def __call__(self, job: Job, form: Form) -> SuperNet:
        return self.method.start(job, form)


ONE_BASE: tuple[Init, ...] = (
    FromAverage(),
    *(FromMethod(method) for method in (TASK_ARITHMETIC, TIES, DARE, FISHER, REGMEAN)),
)
"""What parents of one base may start from beside."""
INITS: tuple[Init, ...] = (
    FromAverage(),
    FromFirst(),
    FromMethod(CONDENSE),
    FromMethod(PLEAS),
    *ONE_BASE[1:],
    *(FromAlignment(method) for method in (PERMUTE, ROTATE, TRANSPORT, ZIPIT, ALIGN)),
)
PARENT = re.compile(r"parent(\d{1,6})")


def tried_of(net: SuperNet) -> tuple[str, ...]:
    """The starts that `auto` chooses from for maps that train: each parent has its turn, so order says nothing."""
    each = ["first" if k == net.template else f"parent{k}" for k in net.merged]
    solved = len(net.merged) == len(net.parents)
    return ("average", *each, *(("permute", "condense") if solved else ()))


def starts_of(text: str, parents: int, template: int) -> tuple[str, ...]:
    """The starts of a folded model that a text names: one, several joined by "+", or all ("auto")."""
    each = ("first", *(f"parent{k}" for k in range(parents) if k != template))
    named = ("condense", "average", "parents") if text == "auto" else tuple(text.split("+"))
    return tuple(dict.fromkeys(name for one in named for name in (each if one == "parents" else (one,))))


def folded(job: Job, init: Init) -> tuple[SuperNet, Program]:
    """A start whose trunk is folded into ordinary weights."""
    if isinstance(init, FromMethod):
        supernet, program = init.folded(job)
    else:
        supernet = init(job, "full")
        program = job.fold_trunk(supernet.program)
    return supernet, with_heads(job, supernet, program)


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
