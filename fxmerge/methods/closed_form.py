"""What methods share that solve a SuperNet in closed form: maps for a start, or ordinary weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fxmerge.ir.maps import Form
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job


class ClosedForm(ABC):
    """A method that solves maps, and with `kernels` also weights that no maps can give."""

    @abstractmethod
    def _solved(self, job: Job, kernels: bool) -> tuple[SuperNet, dict[str, Tensor]]:
        """The SuperNet with its maps set as dense constants, and weights by name that replace what these fold to."""

    def start(self, job: Job, form: Form = "fixed") -> tuple[SuperNet, Program]:
        """The SuperNet solved, its maps in this form, and its trunk folded, with kernels that no maps can give."""
        net, weights = self._solved(job, kernels=True)
        if form != "fixed":
            for _, block in net.maps():
                block.start([block.matrix(k).detach() for k in range(len(block.sizes))], form)
        folded = job.fold_trunk(net.program)
        return net, folded.evolve(tensors={**folded.tensors, **weights})

    def solve(self, job: Job) -> SuperNet:
        """The SuperNet solved; what has no closed form in maps keeps the average."""
        return self._solved(job, kernels=False)[0]
