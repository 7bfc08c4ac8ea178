"""What is told of a merge: the parts of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fxmerge.compiler import figures
from fxmerge.compiler.build import Build
from fxmerge.compiler.inspection import opaque_notes
from fxmerge.compiler.job import OneBase
from fxmerge.compiler.parents import Parent, facts_of
from fxmerge.installed import knowledge
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods import Outcome
from fxmerge.methods.post import fell
from fxmerge.output.merged import Merged
from fxmerge.result import MergedFacts, Result, TaskFigures, Training
from fxmerge.samples.rows import Samples, rows_of
from fxmerge.version import __version__


def tasks_of(
    build: Build,
    outcome: Outcome,
    net: SuperNet,
    folded: Program,
    samples: Sequence[Samples] | None,
    held: Sequence[Samples] | None,
    skipped: Mapping[str, int],
) -> tuple[TaskFigures, ...]:
    """How well every task is kept, on rows that were held back where there are enough."""
    found = []
    for k, given in enumerate(build.given):
        looked_at = (held or samples)[k] if samples else None
        how = build.config.metric, build.trained.loss
        task, notes = figures.of_task(outcome, net, folded, k, given, looked_at, *how)
        rows, back = (rows_of(each[k]) if each else 0 for each in (samples, held))
        found.append(replace(task, samples=rows, held_back=back, skipped=skipped.get(task.task, 0)))
        build.notes += notes
    build.notes += fell([task.stages for task in found], build.config.post)
    return tuple(found)


def result_of(
    build: Build, sources: Sequence[Parent], net: SuperNet, outcome: Outcome, base: OneBase, **more: Any
) -> Result:
    """What is known of the merge before it is checked, all of a dry run; `more` are fields that are known besides."""
    spaces = knowledge().spaces(net.parents[net.template], build.known.rules)
    triples = zip(sources, build.given, net.parents, strict=True)
    parents = tuple(facts_of(source, program, joined) for source, program, joined in triples)
    trained = outcome.trainable > 0
    averaged = net.averaged(trained=trained, solved=outcome.solved)
    if note := net.averaged_note(trained=trained, solved=outcome.solved):
        build.notes.append(note)
    groups, told = figures.groups_of_spaces(outcome, net)
    build.notes += told
    counts = len(spaces.spaces), len(spaces.opaque), outcome.trainable, sum(averaged.values())
    return Result(
        fxmerge=__version__,
        method=build.method.name,
        init=outcome.init,
        seed=build.config.seed,
        out=build.config.out,
        options=build.config.asked([parent.source for parent in parents]),
        parents=parents,
        merged=MergedFacts(0, *counts, **groups),
        training=Training.of(outcome.log, outcome.augmentation, outcome.chosen) if outcome.log else None,
        base={"source": getattr(build.method, "base", None), **base.near.as_dict()} if base.near else {},
        **more,
    )


def merged_of(build: Build, program: Program, net: SuperNet, facts: Result, samples: Samples | None = None) -> Merged:
    """The merged model with its facts; its own size and all notes are known only now."""
    notes = [*build.notes, *program.notes, *opaque_notes(net.parents, build.known.rules)]
    size = replace(
        facts.merged,
        parameters=program.count(),
        outputs=tuple(p.name for p in program.outputs),
        size=round(program.count() / max(build.given[net.template].count(), 1), 4),
        shared_until=build.config.share_until,
        apart=tuple(part.name for part in net.parts if part.apart),
    )
    facts = replace(facts, merged=size, notes=tuple(dict.fromkeys(notes)))
    labels = {parent.task: parent.labels for parent in net.parents}
    named = replace(program, task="+".join(net.tasks))
    known = build.known
    return Merged(named, facts, net.tasks, labels, tuple(build.given), samples or {}, known.formats, known.rules)
