"""RegMean: every linear map by regression on what it reads (Jin et al., ICLR 2023), front to back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from fxmerge.bounds import Count, Share
from fxmerge.ir.maps import AxisMap
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.closed_form import ClosedForm
from fxmerge.methods.kernels import Kernel, operands
from fxmerge.methods.map_nodes import Merge, Unmerge, blocks_of
from fxmerge.methods.permute import PERMUTE
from fxmerge.methods.rotate import ROTATE
from fxmerge.methods.sampled import Sampled, as_given
from fxmerge.methods.seen import Seen
from fxmerge.methods.transport import TRANSPORT
from fxmerge.methods.trunks import require_alike


@dataclass(frozen=True)
class RegMean(ClosedForm):
    """W = (Σ_k W_k G_k) (Σ_k G_k)⁻¹, G_k = X_kᵀX_k, X_k what merged layers before it give on task k's samples.

    That is an exact choice of maps, M_k = I/K and U_k = K · G_k (Σ G)⁻¹ for every reader, so it is a start for trained
    maps too. What reads raw inputs has no U, and a kernel's would not see its patches: those are solved as weights.
    Biases and norms are averaged, as in the paper. Behind an alignment U_k is what it gave times K · G_k (Σ G)⁻¹, and
    what reads raw inputs is aligned and averaged.
    """

    name: ClassVar[str] = "regmean"
    summary: ClassVar[str] = "every linear layer by regression on its inputs, through the layers merged before it"
    needs_data: ClassVar[bool] = True
    about: ClassVar[About] = About("Jin et al., ICLR 2023, §3", parents="one base", widths=False)

    shrink: Share = 0.9
    """What off-diagonal entries of every G are multiplied with."""
    rows: Count = 1000
    """Samples of a task that are looked at."""
    align: Literal["none", "permute", "transport", "rotate"] = "none"
    """What brings the parents' units together first, for parents of no common base."""

    def __call__(self, job: Job) -> Outcome:
        net, program = self.start(job)
        return Outcome(program, init=self.name, solved=frozenset() if self.align == "none" else frozenset(net.own))

    def _solved(self, job: Job, kernels: bool) -> tuple[SuperNet, dict[str, Tensor]]:
        require_alike(job.supernet, self.name)
        if self.align == "none":
            net = job.supernet.start([1.0] * len(job.supernet.parents), "fixed")
        else:
            net = {each.name: each for each in (PERMUTE, TRANSPORT, ROTATE)}[self.align].start(job, "fixed")
        walk = _Walk(net, as_given(job, self.rows), self.shrink, kernels and self.align == "none")
        walk.solve()
        return net, walk.weights


class _Walk:
    """The SuperNet run node by node on all tasks' samples; each unmerge map is set when the walk comes to it."""

    def __init__(self, net: SuperNet, batches: Sequence[Sampled], shrink: float, kernels: bool) -> None:
        seen = Seen.of(net, batches)
        self.net, self.shrink, self.kernels = seen.net, shrink, kernels
        self.tasks = [batch.task or 0 for batch in seen.batches]
        self.rows, self.values = seen.rows, seen.merged()
        maps = {name: m for name, m in net.program.maps.items() if isinstance(m, AxisMap)}
        self.blocks = {name: list(blocks_of(module, net.places[name])) for name, module in maps.items()}
        self.weights: dict[str, Tensor] = {}
        """By the template's names: the kernels that were solved as a whole."""
        self.solved: set[str] = set()

    def solve(self) -> None:
        net = self.net
        joins = {n: m for n in net.program.graph.nodes if (m := Merge.of(n))}
        found = {n: Kernel.of(n, net, every=True) for n in joins} if self.kernels else {}
        kernels = {n: kernel for n, kernel in found.items() if kernel is not None}
        held = {n: kernel.source for n, kernel in kernels.items()}
        for source in held.values():
            self.values.hold(source)
        for node in net.program.graph.nodes:
            if node.op == "output":
                break
            unmerged = Unmerge.of(node)
            if unmerged is not None and self._is_regressed(node):
                self._read(unmerged)
            if node in kernels:
                self._kernel(node, joins[node], kernels[node])
            self.values.of(node)
            if node in held:
                self.values.release(held[node])

    def _is_regressed(self, node: fx.Node) -> bool:
        """Whether all that read what is unmerged here are merged with every parent's call: no head is."""
        count = len(self.net.parents)
        calls = [user for user in node.users if user.op != "output"]
        merges = [[m for user in call.users if (m := Merge.of(user))] for call in calls]
        return bool(calls) and all(any(len(m.parents) == count for m in each) for each in merges)

    def _read(self, unmerged: Unmerge) -> None:
        """Set a map for all parents at once; where it stands several times, by what it reads first."""
        if unmerged.name in self.solved:
            return
        self.solved.add(unmerged.name)
        values, count = self.values.of(unmerged.source), len(self.net.parents)
        for block in self.blocks[unmerged.name]:
            rows = [self.rows.of(x, unmerged.axis, i)[:, block.merged] for i, x in enumerate(values)]
            for k, share in enumerate(self._shares(rows)):
                block.set_one(k, block.map.matrix(k).detach().double() @ (count * share))

    def _shares(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Per task k: G_k (Σ G)⁻¹ of what a layer reads."""
        size = rows[0].shape[1]
        grams = [torch.zeros(size, size, dtype=torch.float64) for _ in self.net.parents]
        for task, x in zip(self.tasks, rows, strict=True):
            grams[task] += x.T @ x
        grams = [self.shrink * gram + (1 - self.shrink) * gram.diagonal().diag() for gram in grams]
        total = torch.stack(grams).sum(0)
        level = 1e-9 * float(total.diagonal().mean()) + 1e-30
        eye = torch.eye(size, dtype=torch.float64)
        # What no sample tells anything of is averaged: each task has the same little there.
        return [torch.linalg.solve(total + level * eye, gram + level / len(grams) * eye).T for gram in grams]

    def _kernel(self, node: fx.Node, merged: Merge, kernel: Kernel) -> None:
        """W of a whole kernel from the patches that it reads; its bias is the parents' average."""
        if kernel.name in self.weights or len(merged.parents) < len(self.net.parents) or len(kernel.biases) > 1:
            return
        given = self.values.of(kernel.source)
        rows = [self.rows.of(kernel.features(x), merged.axis, i) for i, x in enumerate(given)]
        ours = operands(kernel.call)
        place, shares = ours.index(kernel.weight), self._shares(rows)
        own = [self._tensor(call, place) for call in merged.calls]
        parts = [w.flatten(1) @ shares[k] for k, w in zip(merged.parents, own, strict=True)]
        weight = torch.stack(parts).sum(0).reshape(kernel.shape).to(given[0].dtype)
        biases = [torch.stack([self._tensor(call, ours.index(n)) for call in merged.calls]) for n in kernel.biases]
        bias = biases[0].mean(0).to(weight.dtype) if biases else None
        self.weights[kernel.name] = weight
        self.values.replaced[node] = lambda i: kernel.run(given[i], weight, bias)

    def _tensor(self, call: fx.Node, place: int) -> Tensor:
        return self.values.tensors[str(operands(call)[place].target)].detach().double()


REGMEAN = RegMean()
