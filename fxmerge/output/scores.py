"""Two models compared on one output: the classes they choose, and how far apart their numbers are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxmerge.ir.program import Program
from fxmerge.output.readings import Reading, metric_of, reading
from fxmerge.samples.token_rows import mask_of

Samples = Mapping[str, Tensor]


@dataclass
class Score:
    """What is gathered about one output, part by part."""

    name: str
    how: Reading
    places: int = 0
    same: int = 0
    chosen: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    """Classes that the merged model and the parent chose: the first two of each."""
    count: float = 0.0
    error: float = 0.0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, ours: Tensor, theirs: Tensor, real: Tensor | None = None) -> None:
        """A part of the samples; `real` (B, T) is where there is no padding."""
        ours, theirs = ours.detach().cpu(), theirs.detach().cpu()
        if self.how.chooses:
            pair = [self.how.choice(value) for value in (ours, theirs)]
            a, b = (value[real] if real is not None and value.shape[:2] == real.shape else value for value in pair)
            self.places += a.numel()
            self.same += int((a == b).sum())
            for known, value in zip(self.chosen, (a, b), strict=True):
                if len(known) < 2:
                    known.update(int(n) for n in torch.unique(value)[:2])
        if self.how.kind in ("classes", "sign", "values"):
            self._compare(ours.double(), theirs.double(), real)

    def _compare(self, ours: Tensor, theirs: Tensor, real: Tensor | None) -> None:
        if real is not None and theirs.dim() > 2 and theirs.shape[:2] == real.shape:
            ours, theirs = ours[real], theirs[real]
        rows = theirs.reshape(-1, theirs.shape[-1]) if theirs.dim() > 1 else theirs[:, None]
        self.count += len(rows)
        self.error += float((ours - theirs).square().sum()) / max(rows.shape[1], 1)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    @property
    def agreement(self) -> float | None:
        return self.same / self.places if self.how.chooses and self.places else None

    @property
    def variance(self) -> float:
        """Of the parent's output, mean over its last axis."""
        if not self.count:
            return 0.0
        mean, square = torch.as_tensor(self.total / self.count), torch.as_tensor(self.squares / self.count)
        found = float((square - mean.square()).clamp(min=0).mean())
        return found if found > 1e-12 * max(float(square.mean()), 1e-30) else 0.0

    @property
    def error_share(self) -> float | None:
        """Root mean square error as a share of the parent's own spread; None where the parent's output never varies."""
        return math.sqrt(self.error / self.count / self.variance) if self.variance else None

    @property
    def constant(self) -> bool:
        """Whether the parent says the same for all samples: the same class, or the same numbers."""
        return len(self.chosen[1]) == 1 if self.how.chooses else bool(self.count) and not self.variance

    def figures(self) -> dict[str, Any]:
        """An entry of `tasks[].outputs`."""
        share = self.error_share
        return {
            "output": self.name,
            "kind": self.how.kind,
            "said_by": self.how.said_by,
            "agreement": self.agreement,
            "r2": None if share is None else 1 - share**2,
            "error": share,
            "constant": self.constant,
        }

    def notes(self, task: str) -> list[str]:
        """What a reader of the figures should know."""
        name, found = f"{task}.{self.name}", []
        if self.constant:
            what = "chooses one class" if self.how.chooses else "gives one value"
            found.append(f"{name}: the parent {what} for all of these samples, so its figures say little")
        elif self.how.chooses and len(self.chosen[0]) == 1:
            found.append(f"{name}: the merged model chooses one class for all of these samples")
        doubt = self.how.said_by == "the head" and self.how.kind == "classes" and not self.constant
        if doubt and (self.agreement or 0) > 0.9 and (self.error_share or 0) ** 2 > 0.5:
            found.append(
                f"{name}: the classes agree and the numbers do not; if they are no class scores,"
                f" say --metric {task}=regression"
            )
        return found


def add_outputs(
    found: dict[str, Score],
    parent: Program,
    samples: Samples,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    metric: Mapping[str, str],
) -> None:
    """Add a part of the samples to the scores of every output that both models have, by the parent's own names."""
    real = real_places(samples)
    for port in parent.outputs:
        if port.name not in ours:
            continue
        if port.name not in found:
            how = reading(parent, port, theirs[port.name], metric_of(metric, parent.task, port.name))
            found[port.name] = Score(port.name, how)
        found[port.name].add(ours[port.name], theirs[port.name], real)


def agreement(found: Sequence[Score]) -> float | None:
    """Share of samples (of positions, for token outputs) with the same class, mean over the outputs that are scores."""
    shares = [score.agreement for score in found if score.agreement is not None]
    return sum(shares) / len(shares) if shares else None


def real_places(samples: Samples) -> Tensor | None:
    """Which tokens (B, T) of the samples are no padding; None where there is no mask."""
    tokens = _tokens(samples)
    mask = mask_of(tokens) if len(tokens) > 1 else None
    return tokens[mask] != 0 if mask is not None else None


def token_ids(samples: Samples) -> str | None:
    """The input that holds token ids: the most varied of the integer ones."""
    tokens = _tokens(samples)
    return max(tokens, key=lambda name: len(torch.unique(tokens[name])), default=None)


def _tokens(samples: Samples) -> dict[str, Tensor]:
    return {name: value for name, value in samples.items() if value.ndim == 2 and not value.is_floating_point()}
