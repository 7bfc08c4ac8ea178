"""One answer for a caller who does not know the task: the tasks' outputs, chosen or weighed by the gate, row by row.

    choose   of every row the output of the likeliest task, which is that task's weights applied to it
    mix      Σ_k p_k · output of task k, p the gate's probabilities; of linear heads the same as Σ_k p_k W_k for W

Neither folds: every task's weights behind the shared part stay in the model, and all are computed for every row. (Ye et
al. 2023, merging vision transformers of different tasks and domains, mix weights of every layer and train for it.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fxmerge.errors import FxmergeError, OptionError
from fxmerge.from_onnx.metadata import Answer
from fxmerge.installed import knowledge
from fxmerge.ir.difference import Difference, difference
from fxmerge.ir.program import Port, Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.messages import listed
from fxmerge.output.latency import cut_latencies
from fxmerge.result import Gate
from fxmerge.samples.rows import Samples

How = Literal["none", "choose", "mix"]
TIE = 1e-4
"""Probabilities no further apart are a tie, which the first task wins."""
ROWS = 16
"""Rows that are timed, and compared."""


def answers_of(supernet: SuperNet, ports: Mapping[str, Port], how: How) -> list[Answer]:
    """The outputs that all tasks have, by the parents' name for them, as answers to be.

    Outputs correspond by name; where each parent has one alone, it is that one, under the template's name. `ports`: the
    merged model's. Raises `OptionError` where there is none, or none that can be answered so.
    """
    if how == "none":
        return []
    own = [{port.name: f"{parent.task}.{port.name}" for port in parent.outputs} for parent in supernet.parents]
    template = own[supernet.template]
    if all(len(each) == 1 for each in own):
        common = {next(iter(template)): tuple(next(iter(each.values())) for each in own)}
    else:
        common = {name: tuple(each[name] for each in own) for name in template if all(name in each for each in own)}
    if not common:
        given = "; ".join(f"{t} gives {listed(list(each), 4)}" for t, each in zip(supernet.tasks, own, strict=True))
        raise OptionError(
            f"--answer {how}: no output is common to all tasks: {given}", "leave out --answer, and follow the gate"
        )
    taken = {port.name for parent in supernet.parents for port in parent.inputs}
    whys = {name: _misfit([ports[part] for part in parts], supernet, how) for name, parts in common.items()}
    whys |= {
        name: "an input, or the start of a task's outputs, has that name"
        for name in common
        if name in taken or any(name == task or name.startswith(f"{task}.") for task in supernet.tasks)
    }
    fit = {name: parts for name, parts in common.items() if not whys[name]}
    if not fit:
        name, why = next(iter(whys.items()))
        other = "give --answer choose, or leave it out" if how == "mix" else "leave out --answer, and follow the gate"
        raise OptionError(f"--answer {how}: {name}: {why}", other)
    return [Answer(name, how, parts) for name, parts in fit.items()]


def _misfit(ports: Sequence[Port], supernet: SuperNet, how: How) -> str:
    """Why outputs of all tasks cannot become one."""
    shapes, first = [port.shape for port in ports], ports[0].shape
    shown = " and ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
    if len({port.dtype for port in ports}) > 1:
        return "the tasks give it in different dtypes"
    if any(len(shape) != len(first) or shape[:1] != first[:1] or not shape for shape in shapes):
        return f"the tasks give it in other forms: {shown}"
    if how == "mix":
        labels = {parent.labels for parent in supernet.parents if parent.labels}
        if not ports[0].dtype.is_floating_point:
            return "whole numbers cannot be mixed"
        if len(labels) > 1:
            return "the tasks name their classes differently, so place by place their scores mean different things"
        return "" if len(set(shapes)) == 1 else f"only what has one shape in all tasks is mixed, not {shown}"
    if len({shape[:-1] for shape in shapes}) > 1:
        return f"the tasks give it in other forms: {shown}"
    if len(set(shapes)) > 1 and not all(isinstance(shape[-1], int) and len(shape) > 1 for shape in shapes):
        return f"the tasks give it in sizes that vary: {shown}"
    if len(set(shapes)) > 1 and not ports[0].dtype.is_floating_point:
        return f"whole numbers of different sizes: {shown}"
    return ""


def with_answers(program: Program, supernet: SuperNet, gate: Gate, how: How) -> tuple[Program, Gate]:
    """A program that has a gate, with the answers that it gives, and what these hold of every task."""
    answers = answers_of(supernet, {port.name: port for port in program.outputs}, how)
    if not answers:
        return program, gate
    weights = weights_by_task(program, supernet)
    for answer in answers:
        program = knowledge().add_answer(program, gate.output, answer.of, None if how == "mix" else TIE, answer.output)
    return program, replace(gate, answers=tuple(answers), weights=weights)


def weights_by_task(program: Program, supernet: SuperNet) -> dict[str, int]:
    """How many numbers several tasks share ("shared"), and each task has by itself."""
    names = {
        task: program.only([f"{task}.{port.name}" for port in parent.outputs]).parameters
        for task, parent in zip(supernet.tasks, supernet.parents, strict=True)
    }
    own = {t: each - frozenset().union(*(o for u, o in names.items() if u != t)) for t, each in names.items()}
    shared = frozenset().union(*names.values()) - frozenset().union(*own.values())
    sets = {"shared": shared, **own}
    return {name: sum(program.tensors[each].numel() for each in found) for name, found in sets.items()}


@torch.no_grad()
def checked(program: Program, supernet: SuperNet, gate: Gate, samples: Sequence[Samples]) -> dict[str, Difference]:
    """How far each answer is from what the gate and the tasks' outputs say, put together here in float64."""
    few = [supernet.given(k, {n: v[:ROWS] for n, v in own.items()}) for k, own in enumerate(samples)]
    ran = [program.run(part) for part in few]
    found = {}
    for answer in gate.answers:
        pairs = [(_expected(each, gate.output, answer), each[answer.output]) for each in ran]
        found[answer.output] = max((difference(*pair) for pair in pairs), key=lambda gap: gap.relative)
    return found


def _expected(values: Mapping[str, Tensor], gate: str, answer: Answer) -> Tensor:
    share = values[gate].double()
    parts = [values[name].double() for name in answer.of]
    if answer.how == "mix":
        return torch.stack([torch.einsum("r,r...->r...", share[:, k], part) for k, part in enumerate(parts)]).sum(0)
    found = values[answer.output].new_full(values[answer.output].shape, -torch.inf, dtype=torch.float64)
    for row, shares in enumerate(share.tolist()):
        k = 0
        for other in range(1, len(shares)):
            k = other if shares[other] > shares[k] + TIE else k
        found[row, ..., : parts[k].shape[-1]] = parts[k][row] if parts[k].dim() > 1 else parts[k][row : row + 1]
    return found


def timed(program: Program, supernet: SuperNet, gate: Gate, samples: Sequence[Samples]) -> Gate:
    """The gate with milliseconds of the gate, of every task alone, of each answer, and of all, in ONNX Runtime."""
    wanted = {gate.output: [gate.output]}
    for task, parent in zip(supernet.tasks, supernet.parents, strict=True):
        wanted[task] = [f"{task}.{port.name}" for port in parent.outputs]
    wanted |= {answer.output: [answer.output] for answer in gate.answers}
    wanted["all outputs"] = [port.name for port in program.outputs]
    given = supernet.given(0, {name: value[:ROWS] for name, value in samples[0].items()})
    try:
        found = cut_latencies(program, wanted, given)
    except FxmergeError:  # what no file can hold is served from another format
        return gate
    return replace(gate, rows=len(next(iter(given.values()))), latency=found)


def notes_of(gate: Gate) -> list[str]:
    """What answers are made of, and what they cost."""
    if not gate.answers:
        return []
    names = listed([answer.output for answer in gate.answers])
    sets = len(gate.tasks)
    own = sum(number for name, number in gate.weights.items() if name != "shared")
    ways = "of the likeliest task" if gate.answers[0].how == "choose" else "of all tasks, weighed by the gate"
    told = (
        f"{names}: the answer {ways}; that does not fold: {sets} sets of weights, {own:,} numbers beside"
        f" {gate.weights['shared']:,} shared, are computed for every row"
    )
    if gate.latency:
        alone = max(gate.latency[task] for task in gate.tasks)
        answer = gate.latency[gate.answers[0].output]
        told += f" ({answer:.2f} ms for {gate.rows} rows, one task alone {alone:.2f} ms)"
    return [told]
