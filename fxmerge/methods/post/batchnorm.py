"""Reset running statistics to those of the merged inputs, front to back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call, Moment, RuleSet, signature
from fxmerge.ir.reach import behind
from fxmerge.methods.post.step import ROWS, Done, Merge
from fxmerge.methods.regress import Rows
from fxmerge.methods.sampled import Sampled, as_given
from fxmerge.methods.walk import Values

ALL = 1 << 40
"""Rows of statistics: all there are."""


@dataclass(frozen=True)
class Statistic:
    """A running statistic at one call: of which value, and along which of its axes."""

    name: str
    source: fx.Node
    axis: int
    moment: Moment


@dataclass(frozen=True)
class BatchNorm:
    """Running statistics averaged over parents are of no network: the merged one's are computed from its own inputs.

    What runs where is the operators' rules' to say (`moments`). Statistics of the trunk are of all tasks' samples
    together, those of a part that is one task's own of its samples alone. Sources: Izmailov et al., UAI 2018, §3.2;
    Jordan et al., ICLR 2023 (RESET).
    """

    name: ClassVar[str] = "batchnorm"
    summary: ClassVar[str] = "running statistics of norms, computed anew on the samples of all tasks"

    rows: int = ROWS

    def __call__(self, merge: Merge) -> Done:
        found = list(statistics(merge.program.graph.nodes, merge.rules))
        left = dict.fromkeys(_unknown(merge, found), "no rule says of what it is the mean or the variance")
        if not found:
            return Done(merge.program, left=left)
        walk = _Walk(merge, found, as_given(merge.job, self.rows))
        tensors = {**merge.program.tensors, **walk.run()}
        changed = {
            name: round(float(_relative(merge.program.tensors[name], tensors[name])), 6) for name in sorted(walk.found)
        }
        return Done(merge.program.evolve(tensors=tensors), changed, left)


def statistics(nodes: Iterable[fx.Node], rules: RuleSet) -> Iterator[Statistic]:
    """The running statistics that calls read, in order."""
    for node in nodes:
        rule = rules.find(node) if node.op == "call_function" else None
        form = signature(rules, node) if rule is not None and rule.moments else None
        if rule is None or form is None:
            continue
        operands = {
            name: (operand, term) for (name, operand), term in zip(Call.of(node).operands, form.operands, strict=True)
        }
        for name, (of, moment) in rule.moments.items():
            (statistic, own), (source, theirs) = operands[name], operands[of]
            if statistic is None or source is None or not own or not theirs or statistic.op != "get_attr":
                continue
            yield Statistic(str(statistic.target), source, theirs.index(own[0]), moment)


def _unknown(merge: Merge, found: Sequence[Statistic]) -> list[str]:
    """Running statistics that calls read and that nobody knows how to compute."""
    known = {each.name for each in found}
    names = []
    for node in merge.program.graph.nodes:
        rule = merge.rules.find(node) if node.op == "call_function" else None
        if rule is not None and rule.state:
            read = {str(n.target) for name, n in Call.of(node).operands if n is not None and name in rule.state}
            names += sorted(read - known)
    return list(dict.fromkeys(names))


@dataclass
class _Walk:
    """The merged program run once; a statistic is set when the walk comes to the first call that reads it.

    Where tasks have inputs of their own, a batch of one task has values in its own stem, trunk and head alone.
    """

    merge: Merge
    statistics: Sequence[Statistic]
    batches: Sequence[Sampled]
    found: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> dict[str, Tensor]:
        program = self.merge.program
        rows = Rows([batch.masks for batch in self.batches], ALL)
        values = Values(program, [batch.inputs for batch in self.batches])
        groups: dict[str, list[Statistic]] = {}
        for each in self.statistics:
            groups.setdefault(each.name, []).append(each)
        values.order = _order(values.order, groups)
        for each in self.statistics:
            for same in groups[each.name]:
                values.hold(same.source)
        for name, group in groups.items():
            value = self._moment(name, group, values, rows)
            old = program.tensors[name]
            self.found[name] = values.tensors[name] = value.to(old.dtype)
            for node in values.values.copy():
                if node.op == "get_attr" and node.target == name:
                    values.again(node)
            for each in group:
                values.release(each.source)
        return self.found

    def _moment(self, name: str, group: Sequence[Statistic], values: Values, rows: Rows) -> Tensor:
        """Over all places of all batches, in two passes in float64."""
        origin = self.merge.program.origins.get(name)
        own = [
            (each, i)
            for each in group
            for i, batch in enumerate(self.batches)
            if origin is None or batch.task is None or batch.task == origin.owner
        ]

        def parts() -> Iterator[Tensor]:
            for each, i in own:
                if (value := values.of(each.source)[i]) is not None:
                    yield rows.of(value, each.axis, i)

        count = sum(len(part) for part in parts())
        mean = torch.stack([part.sum(0) for part in parts()]).sum(0) / count
        if group[0].moment == "mean":
            return mean
        return torch.stack([(part - mean).square().sum(0) for part in parts()]).sum(0) / max(count - 1, 1)


def _order(nodes: Sequence[fx.Node], groups: dict[str, list[Statistic]]) -> list[fx.Node]:
    """The same calls in an order in which all that a statistic is of comes before any call that reads it."""
    placed: dict[fx.Node, None] = {}

    def place(wanted: Iterable[fx.Node]) -> None:
        needed = behind(wanted, without=placed)
        placed.update((node, None) for node in nodes if node in needed)

    for group in groups.values():
        place(each.source for each in group)
    place(nodes)
    return list(placed)


def _relative(old: Tensor, new: Tensor) -> Any:
    return (new - old).norm() / old.norm().clamp_min(1e-30)
