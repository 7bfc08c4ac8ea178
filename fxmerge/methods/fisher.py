"""Fisher merging: a mean weighted by what matters to each parent (Matena & Raffel, NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxmerge.bounds import Count
from fxmerge.ir.maps import Form
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.about import About
from fxmerge.methods.base import Job, Outcome
from fxmerge.methods.trunks import Trunks, Weights

BATCH = 4
"""Rows whose gradients are summed: scores of own predictions have mean zero, so their cross terms vanish."""
LEAST = 1e-6
"""Of the mean of a parent's Fisher numbers, so that what matters to nobody is averaged."""


@dataclass(frozen=True)
class Fisher:
    """θ = Σ_k F_k θ_k / Σ_k F_k, F_k the diagonal of parent k's Fisher information on its own unlabeled samples.

    F = E_x E_y (∂ log p(y | x) / ∂θ)², y drawn from the parent's own predicted distribution: of the classes where
    outputs are class scores, else a normal one around the output, as wide as the output spreads. No labels are used.
    """

    name: ClassVar[str] = "fisher"
    summary: ClassVar[str] = "mean of the parents' weights, each weighted by its diagonal Fisher information"
    needs_data: ClassVar[bool] = True
    about: ClassVar[About] = About("Matena & Raffel, NeurIPS 2022, §3", parents="one base", widths=False)

    rows: Count = 256
    """Samples of a task that are looked at."""
    draws: Count = 4
    """Answers drawn for every sample."""
    normalize: bool = True
    """Divide each parent's numbers by their mean, so that unsure parents do not count for more."""

    def __call__(self, job: Job) -> Outcome:
        _, program = self.start(job)
        return Outcome(program, init=self.name, solved=frozenset(job.supernet.own))

    def start(self, job: Job, form: Form | None = None) -> tuple[SuperNet, Program]:
        """The SuperNet, and its trunk folded with the merged weights in it."""
        trunks = Trunks.of(job, self.name, form)
        matter = [self.diagonal(job, trunks, k) for k in range(len(trunks.parents))]
        return trunks.supernet, trunks.holding(weighted(trunks.parents, matter))

    def diagonal(self, job: Job, trunks: Trunks, k: int) -> Weights:
        """The diagonal of parent k's Fisher information, plus a little."""
        program = trunks.holding(trunks.parents[k])
        task = f"{trunks.supernet.tasks[k]}."
        outputs = [port.name for port, node in zip(program.outputs, program.result, strict=True)
                   if port.name.startswith(task) and node.meta["val"].is_floating_point()]  # fmt: skip
        shown = program.only(set(outputs) & set(trunks.supernet.output_names), inputs=True)
        names = [name for name in trunks.parents[k] if name in shown.tensors]
        total = {name: torch.zeros_like(value) for name, value in trunks.parents[k].items()}
        generator = torch.Generator().manual_seed(job.settings.seed)
        count = 0
        for number, part in enumerate(self._parts(job, trunks.supernet, k)):
            job.progress(number, -(-self.rows // BATCH), f"Fisher information of {trunks.supernet.tasks[k]}")
            own = {name: shown.tensors[name].detach().clone().requires_grad_() for name in names}
            found = shown.run(part, own)
            count += self.draws * len(next(iter(part.values())))
            for draw in range(self.draws):
                likely = sum(
                    (self._drawn(value, job.classes(k, name.removeprefix(task), value), generator)
                     for name, value in found.items()),
                    torch.zeros(()),
                )  # fmt: skip
                kept = draw + 1 < self.draws
                for name, slope in zip(
                    names,
                    torch.autograd.grad(likely, list(own.values()), retain_graph=kept, allow_unused=True),
                    strict=True,
                ):
                    if slope is not None:
                        total[name] += slope.double().square()
        mean = sum(float(value.sum()) for value in total.values()) / max(sum(v.numel() for v in total.values()), 1)
        size = max(mean, 1e-300) if self.normalize else max(count, 1)
        return {name: value / size + LEAST * mean / size + 1e-300 for name, value in total.items()}

    def _parts(self, job: Job, net: SuperNet, k: int) -> Iterator[Mapping[str, Tensor]]:
        """Samples of task k, by the SuperNet's names, a few at a time."""
        assert job.pools is not None
        given = net.given(k, job.pools.samples[k])
        dtypes = {port.name: port.dtype for port in net.program.inputs}
        rows = min(self.rows, len(next(iter(given.values()))))
        for begin in range(0, rows, BATCH):
            yield {name: value[begin : min(begin + BATCH, rows)].to(dtypes[name]) for name, value in given.items()}

    def _drawn(self, value: Tensor, classes: int | None, generator: torch.Generator) -> Tensor:
        """log p of answers drawn from what is predicted, summed."""
        if classes is None:
            spread = value.detach().std(0, correction=0).mean().clamp(min=1e-12)
            noise = torch.randn(value.shape, generator=generator).to(value)
            return (value * noise).sum() / spread
        logs = value.movedim(classes, -1).reshape(-1, value.shape[classes]).log_softmax(-1)
        answers = torch.multinomial(logs.detach().exp(), 1, generator=generator)
        return logs.gather(1, answers).sum()


def weighted(parents: tuple[Weights, ...], matter: list[Weights]) -> Weights:
    """Σ_k F_k θ_k / Σ_k F_k, number by number."""
    found = {}
    for name in parents[0]:
        values, weights = (torch.stack([each[name] for each in side]) for side in (parents, matter))
        found[name] = (values * weights).sum(0) / weights.sum(0)
    return found


FISHER = Fisher()
