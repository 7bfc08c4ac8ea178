"""What is true of samples: how often a model is right by their labels, or how well it foretells the next token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxmerge.errors import DataError
from fxmerge.ir.program import Port, Program
from fxmerge.output.merged_file import MergedFile
from fxmerge.output.readings import as_sign, holds_numbers, metric_of
from fxmerge.output.scores import real_places, token_ids
from fxmerge.samples.load import Samples as Loaded

Samples = Mapping[str, Tensor]


def truth_of(
    merged: MergedFile, task: str, parent: Program | None, samples: Loaded, metric: Mapping[str, str]
) -> Truth:
    """What is counted about the labels of the samples, or about the tokens that follow."""
    ports = [p for p in merged.outputs(task) if metric_of(metric, task, p.name) not in ("regression", "none")]
    causal = next((p for p in ports if merged.is_causal(task, p, samples.inputs)), None)
    if causal is not None:
        return Truth(causal, causal=True)
    names = (parent or merged.shell(task)).labels
    scores = next((p for p in ports if len(p.shape) == 2 and p.shape[1] != 1 and not holds_numbers(p)), None)
    logit = next((p for p in ports if len(p.shape) == 1 or p.shape[1:] == (1,)), None)
    if scores is not None:
        return Truth(scores, _by_name(samples.labels, scores, names))
    two = samples.labels is not None and set(samples.labels.tolist()) <= {0, 1}
    return Truth(logit, samples.labels) if logit is not None and two else Truth(None)


@dataclass
class Truth:
    """Counts over the labels of one task, or over its next tokens."""

    port: Port | None
    """The output in which a class is chosen."""
    labels: Tensor | None = None
    causal: bool = False
    labeled: int = 0
    right: int = 0
    parent_right: int | None = None
    rows: int = 0
    named: int = 0
    """Rows whose task the gate names."""
    routed: int = 0
    """Labeled rows that are right, and whose task the gate names: a caller who does not know it gets these right."""
    answered: int | None = None
    """Labeled rows that are right in what the gate mixes of all tasks."""
    tokens: int = 0
    loss: float = 0.0
    parent_loss: float | None = None

    def add(
        self,
        samples: Samples,
        ours: Mapping[str, Tensor],
        theirs: Mapping[str, Tensor] | None,
        first: int,
        named: Tensor | None = None,
        mixed: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Count a part of the samples, which begins with row `first` of them."""
        if named is not None:
            self.rows, self.named = self.rows + len(named), self.named + int(named.sum())
        if self.port is None:
            return
        mine = ours[self.port.name]
        other = None if theirs is None else theirs.get(self.port.name)
        if self.causal:
            nats, count = _next_token(samples, mine)
            self.tokens, self.loss = self.tokens + count, self.loss + nats
            if other is not None:
                self.parent_loss = (self.parent_loss or 0.0) + _next_token(samples, other)[0]
        elif self.labels is not None:
            labels = self.labels[first : first + len(mine)]
            self.labeled += len(labels)
            right = self._right(mine, labels)
            self.right += int(right.sum())
            if named is not None:
                self.routed += int((right & named).sum())
            if mixed and self.port.name in mixed:
                self.answered = (self.answered or 0) + int(self._right(mixed[self.port.name], labels).sum())
            if other is not None:
                self.parent_right = (self.parent_right or 0) + int(self._right(other, labels).sum())

    @staticmethod
    def _right(value: Tensor, labels: Tensor) -> Tensor:
        if value.ndim == 1 or value.shape[-1] == 1:
            return as_sign(value).choice(value).reshape(-1) == (labels == 1)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < value.shape[-1]:
            raise DataError(
                f"labels from {int(labels.min())} to {int(labels.max())} for {value.shape[-1]} classes",
                "give class indices from 0, or the names in the order of the bundle's labels",
            )
        return value.argmax(-1) == labels

    def figures(self) -> dict[str, Any]:
        """Accuracies and perplexities, of what was counted."""
        found: dict[str, Any] = {}
        if self.labeled:
            if self.parent_right is not None:
                found["parent_accuracy"] = self.parent_right / self.labeled
            found["merged_accuracy"] = self.right / self.labeled
            if self.rows:
                found["routed_accuracy"] = self.routed / self.labeled
            if self.answered is not None:
                found["answer_accuracy"] = self.answered / self.labeled
        if self.rows:
            found["gate_accuracy"] = self.named / self.rows
        if self.tokens:
            if self.parent_loss is not None:
                found["parent_perplexity"] = math.exp(self.parent_loss / self.tokens)
            found["merged_perplexity"] = math.exp(self.loss / self.tokens)
        return found


def _by_name(labels: Tensor | None, output: Port, names: Sequence[str] | None) -> Tensor | None:
    """Class indices; numbers too large for one are looked up among the names: 5 is class 0 of "5" to "9"."""
    classes = output.shape[-1]
    if (
        labels is None
        or names is None
        or not isinstance(classes, int)
        or not len(labels)
        or int(labels.max()) < classes
    ):
        return labels
    known = {name: number for number, name in enumerate(names)}
    found = [known.get(str(value)) for value in labels.tolist()]
    return labels if None in found else torch.tensor(found)


def _next_token(samples: Samples, output: Tensor) -> tuple[float, int]:
    """Nats and number of tokens predicted from those before them."""
    name = token_ids(samples)
    assert name is not None
    real = real_places(samples)
    if real is None or real.shape != output.shape[:2]:
        real = torch.ones(output.shape[:2], dtype=torch.bool)
    wanted = real[:, 1:] & real[:, :-1]
    loss = F.cross_entropy(output[:, :-1][wanted].double(), samples[name][:, 1:][wanted].long(), reduction="sum")
    return float(loss), int(wanted.sum())
