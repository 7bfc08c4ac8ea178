"""A family that is ready: its parents trained and traced, merged with any options and scored."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxmerge
from benchmarks.families import Family
from benchmarks.family_tasks import Study, own
from benchmarks.table import Row

Data = Mapping[str, Mapping[str, Tensor]]
"""Unlabeled inputs by task and by name."""
TRACED = 4
"""Inputs that a parent is traced with."""


@dataclass(frozen=True)
class Case:
    """The parents of a family and their tasks."""

    family: Family
    studies: tuple[Study, ...]
    models: tuple[nn.Module, ...]
    programs: tuple[Any, ...]

    @classmethod
    def of(cls, family: Family, folder: Path) -> Case:
        """The family with its parents trained, or taken from the cache."""
        studies = family.studies(folder)
        models = [net.trained([study], folder) for net, study in zip(family.nets, studies, strict=True)]
        programs = []
        for study, model in zip(studies, models, strict=True):
            few = study.unlabeled(TRACED, 0)
            programs.append(fxmerge.capture(model, tuple(few[name] for name in study.inputs), task=study.name))
        return cls(family, tuple(studies), tuple(models), tuple(programs))

    @property
    def settings(self) -> Row:
        """All that changes what a merge of these parents is given."""
        return {"parents": [net.settings for net in self.family.nets], "options": dict(self.family.options)}

    def data(self, count: int, seed: int) -> Data:
        """Unlabeled inputs of every task, drawn with a seed that nothing else is drawn with."""
        return {study.name: study.unlabeled(count, 100 + seed) for study in self.studies}

    def options(self, method: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a merge by this method: the family's and its own."""
        trained = method.get("method") in ("distill", "foldable")
        return {**self.family.options, **(self.family.training if trained else {}), **method}

    def merge(self, data: Data, seed: int, method: Mapping[str, Any]) -> tuple[Any, float]:
        """The merged model, and the processor time that the whole of the merge took."""
        spent = time.process_time()
        given = {task: dict(inputs) for task, inputs in data.items()}
        merged = fxmerge.merge(list(self.programs), data=given, seed=seed, **self.options(method))
        return merged, time.process_time() - spent

    def reference(self) -> Row:
        """The figures of the parents, each in its own task."""
        scores = {s.name: s.score(model) for s, model in zip(self.studies, self.models, strict=True)}
        known = [net.seconds for net in self.family.nets]
        return self.row(scores, cpu_seconds=None if None in known else sum(each or 0.0 for each in known))

    def ceiling(self, folder: Path) -> Row:
        """The figures of one network that was trained for all tasks with labels."""
        net = self.family.joint
        model = net.trained(self.studies, folder)

        def part(study: Study) -> Callable[..., Tensor]:
            return lambda *inputs: own(model(*inputs), study, self.studies)

        return self.row({s.name: s.score(part(s)) for s in self.studies}, cpu_seconds=net.seconds)

    def measured(self, merged: Any) -> Row:
        """The figures of a merged model."""
        return self.row({s.name: s.score(answer(merged, s.name)) for s in self.studies})

    def row(self, scores: Mapping[str, float], **more: Any) -> Row:
        """A line of figures; perplexities are lower where they are better, and so are their shares."""
        figures = {"scores": dict(scores), "mean": statistics.fmean(scores.values())}
        return {"setting": self.family.name, "figure": self.family.figure, **figures, **more}

    @torch.no_grad()
    def distance(self, merged: Any, data: Data) -> float:
        """How far a merged model is from its parents on unlabeled inputs: mean over the tasks."""
        apart = []
        for study, model in zip(self.studies, self.models, strict=True):
            values = [data[study.name][name] for name in study.inputs]
            apart.append(study.apart(answer(merged, study.name)(*values), model(*values)))
        return statistics.fmean(apart)


def answer(merged: Any, task: str) -> Callable[..., Tensor]:
    """The merged model as a function that answers one task."""
    return lambda *inputs: merged(*inputs)[task]
