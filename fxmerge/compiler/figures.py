"""Figures about a merge: agreement with the parents, what every stage reached, digests, memory."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxmerge.errors import SourceError
from fxmerge.installed import knowledge
from fxmerge.io.files import sha256
from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import NAMED, SuperNet
from fxmerge.messages import listed
from fxmerge.methods.base import Outcome
from fxmerge.methods.groups import counted, groups_of
from fxmerge.methods.student import teachers
from fxmerge.methods.wanted import Loss, wanted
from fxmerge.output.readings import metric_of, reading
from fxmerge.output.scores import Score, add_outputs, agreement
from fxmerge.output.task_folders import class_names
from fxmerge.pipeline import Known
from fxmerge.result import TaskFigures
from fxmerge.samples.pool import pool_of
from fxmerge.samples.rows import Samples, chunks, rows_at_once
from fxmerge.training.fit import score
from fxmerge.training.labels import Targets
from fxmerge.training.settings import Settings


@torch.no_grad()
def scores(
    merged: Program, supernet: SuperNet, k: int, given: Program, samples: Samples, metrics: Mapping[str, str]
) -> list[Score]:
    """The merged model compared with parent k as it was given, on every output."""
    names = {port.name: f"{given.task}.{port.name}" for port in given.outputs}
    own = merged.only(names.values(), inputs=True)
    found: dict[str, Score] = {}
    for part in chunks(samples, rows_at_once(given)):
        ours = own.run(supernet.given(k, part))
        add_outputs(found, given, part, {name: ours[whole] for name, whole in names.items()}, given.run(part), metrics)
    return list(found.values())


def class_axis(given: Program, output: str, values: Tensor, metrics: Mapping[str, str]) -> int | None:
    """The axis along which an output of a parent is scores of classes; None if it is not."""
    port = next(port for port in given.outputs if port.name == output)
    how = reading(given, port, values.detach(), metric_of(metrics, given.task, output))
    return how.axis if how.kind == "classes" else None


def feature_score(
    program: Program, supernet: SuperNet, k: int, samples: Samples, loss: Loss = "features"
) -> float | None:
    """R² of what the loss compares for parent k, as `program` gives it on these samples: 1 is perfect.

    Of answers that `loss` measures otherwise, one less their error.
    """
    known = {port.name for port in program.outputs}
    every = wanted(supernet, loss=loss)
    compared = {w.feature.port: w for w in every if w.feature.parent == k and w.feature.port in known}
    if not compared:
        return None
    student = program.only(compared, inputs=True)
    chosen = [compared[port.name] for port in student.outputs]
    alone = replace(supernet, program=student, parents=(supernet.parents[k],), inputs=(supernet.inputs[k],))
    teacher = teachers(alone, [replace(each.feature, parent=0) for each in chosen])
    targets = Targets(teacher, kinds=tuple(each.kind for each in chosen))
    pool = pool_of(student, supernet.given(k, samples))
    found = score(student.module, pool, targets, Settings(batch_size=rows_at_once(student)))
    weights = [each.weight for each in chosen]
    return sum(w * s for w, s in zip(weights, found, strict=True)) / sum(weights)


def stages(outcome: Outcome, supernet: SuperNet, k: int, samples: Samples, loss: Loss) -> dict[str, float]:
    """What every stage of a merge reached on these samples, by what it was trained on."""
    found = {each.name: feature_score(each.program, supernet, k, samples, loss) for each in outcome.stages}
    return {name: score for name, score in found.items() if score is not None}


def of_task(
    outcome: Outcome,
    supernet: SuperNet,
    folded: Program,
    k: int,
    given: Program,
    samples: Samples | None,
    metrics: Mapping[str, str],
    loss: Loss,
) -> tuple[TaskFigures, list[str]]:
    """How well a task is kept, measured on these samples, and what is to be said of it."""
    outputs = scores(folded, supernet, k, given, samples, metrics) if samples else []
    found = TaskFigures(
        given.task,
        samples=0,
        held_back=0,
        agreement=agreement(outputs),
        feature_r2=feature_score(outcome.program, supernet, k, samples) if samples else None,
        stages=stages(outcome, supernet, k, samples, loss) if samples else {},
        outputs=tuple(score.figures() for score in outputs),
    )
    return found, [note for score in outputs for note in score.notes(given.task)]


def groups_of_spaces(outcome: Outcome, supernet: SuperNet) -> tuple[dict[str, Any], list[str]]:
    """What became of every space, as fields of `MergedFacts`, and what to say of a start that training went on from."""
    groups = outcome.groups
    groups = groups_of(supernet.with_program(outcome.program)) if groups is None else groups
    facts = {
        "groups": groups,
        "groups_at_start": outcome.began or {},
        "groups_of": "start" if outcome.behind else "result",
    }
    if not outcome.began:
        return facts, []
    after = "weights were changed behind the fold, and no group says what the result does"
    after = after if outcome.behind else f"what training made of it: {counted(groups)}"
    return facts, [f"spaces at the start {outcome.init}: {counted(outcome.began)}; {after}"]


def probes(program: Program, supernet: SuperNet, samples: Sequence[Samples] | None) -> list[Samples]:
    """Inputs to compare two programs on: some samples of every task, or random ones where there are none."""
    if samples is None:
        return [probe(program, {})]
    few = [{n: v[:32] for n, v in supernet.given(k, own).items()} for k, own in enumerate(samples)]
    return few if supernet.together else [{name: value for own in few for name, value in own.items()}]


def digest(given: object, program: Program) -> str:
    """SHA-256 of the file a parent came from, or of its weights."""
    if isinstance(given, str | Path) and Path(given).is_file():
        return sha256(given)
    found = hashlib.sha256()
    for name in sorted(program.tensors):
        tensor = program.tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


def peak_memory() -> int:
    """Largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def device_of(name: str) -> str:
    """ "auto" is the first GPU if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def with_assets(merged: Program, parents: Sequence[Program], template: int, known: Known) -> tuple[Program, list[str]]:
    """The merged model with the template's files, a config.json only if the weights still fit it, and what to say.

    It has the tensors too that a class asks for besides: parameters that no answer reads, and, where a config names the
    class, fixed tables, and parameters that it computes its weights from.
    """
    like = parents[template]
    assets, notes = dict(like.assets), []
    held = [node for node in like.graph.nodes if node.op == "get_attr"]
    unread = like.parameters - {str(node.target) for node in held if node.users} - merged.tensors.keys()
    beside = {name: like.tensors[name] for name in sorted(unread | _tables(merged, like))}
    if (found := misfit({**merged.tensors, **beside}, like)) is not None and "config.json" in assets:
        beside |= _restored(merged.tensors, parents, like, known)
        found = misfit({**merged.tensors, **beside}, like)
    if found is None and beside:
        merged = _holding(merged, beside)
        if unread:
            notes.append(f"nothing reads {listed(sorted(unread), NAMED)}: it is as in {like.task}")
    if "config.json" in assets and found is not None:
        del assets["config.json"]
        notes.append(f"the config.json of {like.task} is left out: the merged model differs in {found}")
    return merged.evolve(assets=assets), notes


def _tables(merged: Program, template: Program) -> set[str]:
    """What is no parameter, and saved by the template's class, where a config names one that is installed."""
    lacking = template.tensors.keys() - template.parameters - merged.tensors.keys()
    if not lacking or "config.json" not in template.assets or not find_spec("transformers"):
        return set()
    try:
        return lacking & class_names(template.assets["config.json"], len(template.tensors))
    except SourceError:  # not a class of transformers
        return set()


def _restored(
    merged: Mapping[str, Tensor], parents: Sequence[Program], template: Program, known: Known
) -> dict[str, Tensor]:
    """What the trunk's weights are computed from in the template, and those of every head in its parent."""
    found = knowledge().restore(template, merged, known)
    for parent in parents:
        start = f"{parent.task}."
        own = {name.removeprefix(start): value for name, value in merged.items() if name.startswith(start)}
        found |= {start + name: value for name, value in knowledge().restore(parent, own, known).items()}
    return found


def _holding(program: Program, tensors: Mapping[str, Tensor]) -> Program:
    """A program with tensors more, that nothing reads."""
    graph, _ = program.copy_graph()
    with graph.inserting_before(next(iter(reversed(graph.nodes)))):
        for name in tensors:
            graph.create_node("get_attr", name)
    return program.evolve(graph=graph, tensors={**program.tensors, **tensors})


def misfit(merged: Mapping[str, Tensor], template: Program) -> str | None:
    """The first parameter of `template` that is not in `merged`, or in another shape; None if all are.

    Those of its head are named after its task in the merged model.
    """
    for name in sorted(template.parameters):
        found = merged.get(name, merged.get(name_in_head(template, name)))
        if found is None or found.shape != template.tensors[name].shape:
            return name
    return None


def name_in_head(template: Program, name: str) -> str:
    """What a merged model calls a parameter of the template's own head: "task.name", unless a layer is called so."""
    own = f"{template.task}.{name}"
    return f"{own}_2" if own in template.parameters else own
