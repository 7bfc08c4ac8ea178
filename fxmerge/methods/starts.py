"""What training begins with: a SuperNet as a start made it, its trunk folded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job
from fxmerge.methods.groups import groups_of
from fxmerge.methods.mixing import Mixed, mixing


@dataclass(frozen=True)
class Start:
    """A SuperNet whose trunk is folded into ordinary weights; the tasks' heads keep their unmerge maps."""

    name: str
    supernet: SuperNet
    program: Program
    groups: Mapping[str, str] = field(default_factory=dict)
    """What its maps do to every space."""
    mixed: tuple[Mixed, ...] = ()

    @classmethod
    def of(
        cls,
        job: Job,
        name: str,
        supernet: SuperNet,
        program: Program | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> Start:
        """Its maps are its own: all programs of a SuperNet share theirs, and the next start sets them anew."""
        folded = job.fold_trunk(supernet.program) if program is None else program
        return cls(name, supernet, frozen(folded), groups or groups_of(supernet), mixing(supernet))


def frozen(program: Program) -> Program:
    """The program as it is now, whatever is trained of it later."""
    tensors = {name: tensor.detach().clone() for name, tensor in program.tensors.items()}
    return program.evolve(tensors=tensors, maps=copy.deepcopy(dict(program.maps)))
