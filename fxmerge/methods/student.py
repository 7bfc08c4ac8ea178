"""Train a program that shows features against the parents that have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from fxmerge.ir.chosen import connected, moves
from fxmerge.ir.program import Port, Program, target_name
from fxmerge.ir.supernet import NAMED, Feature, SuperNet
from fxmerge.ir.verify import GradientWatch
from fxmerge.methods.base import Job
from fxmerge.methods.wanted import reads, wanted
from fxmerge.training.fit import fit, labels_of, score_labelled
from fxmerge.training.labels import Mask, Targets
from fxmerge.training.pool import Pool
from fxmerge.training.settings import Group, Judge, Log, groups_of


def train(program: Program, supernet: SuperNet, job: Job) -> tuple[Program, Log]:
    """Train what is trainable in `program` until it shows what the parents show; the part trained, and the log."""
    assert job.pool is not None
    student = student_of(program, supernet, job)
    targets = targets_of(student, supernet, job)
    with _judge(student, supernet, job) as judge:
        log = fit(
            student.module, groups(student, supernet), job.pool, targets, job.settings, job.progress, job.state, judge
        )
    constant = [port.name for port, one in zip(student.outputs, log.constant, strict=True) if one]
    job.notes.extend(f"{name} has one value for all samples: nothing can be learnt from it" for name in constant)
    return student, log


@contextmanager
def _judge(student: Program, supernet: SuperNet, job: Job) -> Iterator[Judge | None]:
    """The loss on samples that are held back from everything; None where a run is not watched."""
    if job.held is None:
        yield None
        return
    few = replace(job.settings, memory=job.settings.memory // 8)
    with labels_of(job.held, targets_of(student, supernet, replace(job, pool=job.held)), few) as labels:

        def loss(module: nn.Module) -> float:
            scores = score_labelled(module, labels, job.settings)
            return 1 - sum(w * s for w, s in zip(labels.weights, scores, strict=True)) / sum(labels.weights)

        yield loss


def student_of(program: Program, supernet: SuperNet, job: Job) -> Program:
    """The part of `program` that shows what the loss compares, with everything in it that is trained marked so."""
    student = program.only(each.feature.port for each in wanted(supernet, job.options.inner, job.options.loss))
    of_maps = {id(parameter) for module in student.maps.values() for parameter in module.parameters()}
    for name, parameter in student.module.named_parameters():
        # Maps say themselves what of them is trained, and a parent's own tensors are its teacher's too.
        if id(parameter) not in of_maps and (name not in student.origins or supernet.is_fresh(name)):
            parameter.requires_grad_(True)
    return student


def groups(student: Program, supernet: SuperNet) -> tuple[Group, ...]:
    """What is trained of a student: tables that are looked up apart, whatever else they do."""
    calls = [n for n in student if n.op == "call_function" and target_name(n.target) in supernet.lookups]
    tables = {str(n.target) for call in calls for n in call.all_input_nodes if n.op == "get_attr"}
    return groups_of(student.module, tables)


def trainable(student: Program) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in student.module.parameters() if p.requires_grad)


def unreached(student: Program, log: Log, job: Job, watch: GradientWatch | None = None) -> tuple[str, ...]:
    """The maps and weights that no gradient can reach, as far as they ought to be: a fault.

    Those behind constant values alone need none. Those that only the data never chose, and those that no output depends
    on, are noted: they stay as they are.
    """
    parts = dict(watch.parameters) if watch else {}
    missing = list(watch.missing) if watch else []
    named = {id(parameter): name for name, parameter in student.module.named_parameters()}
    said = {named[id(parameter)] for name in missing for parameter in parts[name]}
    missing += [name for name in log.untouched if name not in said]
    needed = {n: [named[id(p)] for p in parts[n]] if n in parts else [n] for n in _needed(missing, student, log)}
    reached = connected(student, {name for names in needed.values() for name in names}) if needed else set()
    idle = [name for name, names in needed.items() if not reached.isdisjoint(names)]
    others = {name for missed, names in needed.items() if missed not in idle for name in names}
    if others and not moves(student, others):
        idle = list(needed)
    if idle:
        more = f", and {len(idle) - NAMED} more" if len(idle) > NAMED else ""
        job.notes.append(f"no sample needs {', '.join(idle[:NAMED])}{more}: they stay where they started")
    return tuple(name for name in needed if name not in idle)


def _needed(names: Iterable[str], student: Program, log: Log) -> tuple[str, ...]:
    """Those of `names` that are not behind constant values alone."""
    outputs = [node for node, constant in zip(student.result, log.constant, strict=True) if not constant]
    moving, todo = set(outputs), outputs
    while todo:
        new = [n for n in reads(todo.pop()) if n not in moving]
        moving.update(new)
        todo += new
    idle = [str(n.target) for n in student.graph.nodes if n.op == "get_attr" and n not in moving]
    return tuple(n for n in names if not any(n == each or n.startswith((f"{each}.", f"{each} ")) for each in idle))


def targets_of(student: Program, supernet: SuperNet, job: Job) -> Targets:
    """What the parents show, in the order of the student's outputs, weighted, padding masked."""
    assert job.pool is not None
    by_port = {each.feature.port: each for each in wanted(supernet, job.options.inner, job.options.loss)}
    chosen = [by_port[port.name] for port in student.outputs]
    masks = tuple(padding(student, port, job.pool) for port in student.outputs)
    return Targets(
        teachers(supernet, [each.feature for each in chosen]),
        tuple(each.weight for each in chosen),
        masks,
        tuple(each.kind for each in chosen),
    )


def teachers(supernet: SuperNet, features: Sequence[Feature]) -> nn.Module:
    """A module that runs every parent on its own inputs and returns the given features in their order."""
    names = [port.name for port in supernet.program.inputs]
    programs, places = [], []
    for k, own in enumerate(supernet.inputs):
        shown = supernet.teacher(k, features)
        needed = shown.only([port.name for port in shown.outputs], inputs=True)
        taken = {port.name for port in needed.inputs}
        given = {port.name: ours for port, ours in zip(supernet.parents[k].inputs, own, strict=True)}
        programs.append(needed)
        places.append([names.index(given[port.name]) for port in shown.inputs if port.name in taken])
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
