"""Train a program that shows features against the parents that have them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fxmerge.ir.program import Port, Program
from fxmerge.ir.supernet import Feature, SuperNet
from fxmerge.methods.base import Job
from fxmerge.training.fit import Log, fit
from fxmerge.training.labels import Mask, Targets
from fxmerge.training.pool import Pool


def train(program: Program, supernet: SuperNet, job: Job) -> tuple[Program, Log]:
    """Train what is trainable in `program` until it shows the parents' features; the part trained, and the log."""
    assert job.pool is not None
    student = program.only(feature.port for feature in job.wanted())
    of_maps = {id(parameter) for module in student.maps.values() for parameter in module.parameters()}
    for parameter in student.module.parameters():
        if id(parameter) not in of_maps:  # maps say themselves what of them is trained
            parameter.requires_grad_(True)
    targets = targets_of(student, supernet, job)
    return student, fit(student.module, None, job.pool, targets, job.settings, job.progress, job.state)


def targets_of(student: Program, supernet: SuperNet, job: Job) -> Targets:
    """The parents' features in the order of the student's outputs, weighted, padding masked."""
    assert job.pool is not None
    by_port = {feature.port: feature for feature in supernet.features}
    features = [by_port[port.name] for port in student.outputs]
    weights = tuple(1.0 if f.final else job.options.inner for f in features)
    return Targets(
        teachers(supernet, features), weights, tuple(padding(student, port, job.pool) for port in student.outputs)
    )


def teachers(supernet: SuperNet, features: Sequence[Feature]) -> nn.Module:
    """A module that runs every parent on its own inputs and returns the given features in their order."""
    names = [port.name for port in supernet.program.inputs]
    programs, places = [], []
    for k, own in enumerate(supernet.inputs):
        shown = supernet.teacher(k, features)
        needed = shown.only([port.name for port in shown.outputs], inputs=True)
        taken = {port.name for port in needed.inputs}
        given = zip(shown.inputs, own, strict=True)
        programs.append(needed)
        places.append([names.index(ours) for port, ours in given if port.name in taken])
    order = [port.name for program in programs for port in program.outputs]
    return _Teachers([p.module for p in programs], places, [order.index(f.port) for f in features])


class _Teachers(nn.Module):
    def __init__(self, modules: Sequence[nn.Module], places: Sequence[Sequence[int]], order: Sequence[int]) -> None:
        super().__init__()
        self.parents = nn.ModuleList(modules)
        self.places, self.order = places, tuple(order)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values: list[Tensor] = []
        for parent, places in zip(self.parents, self.places, strict=True):
            values += parent(*(inputs[place] for place in places))
        return tuple(values[i] for i in self.order)


def padding(program: Program, feature: Port, pool: Pool) -> Mask | None:
    """The input that says which places of the feature count, and the feature's axis that it runs along."""
    if len(feature.shape) < 3:
        return None
    for position in pool.masks:
        rows, length = program.inputs[position].shape
        if feature.shape[0] == rows and length in feature.shape[1:]:
            axis = feature.shape.index(length, 1)
            if axis == 1 or isinstance(length, str):
                return Mask(position, axis)
    return None
