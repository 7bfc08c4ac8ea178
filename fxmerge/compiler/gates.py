"""A gate: one more output of a merged model that says which task a row belongs to.

    x → stem → block 0 → … → heads → "TASK.OUTPUT" of every task
                    └→ mean over tokens or pixels → linear → softmax → "task"

A caller who does not know the task takes the outputs of the likeliest one. The samples of a merge need no labels for
that: whose they are is known. (Merging vision transformers of different tasks and domains, Ye et al. 2023, whose gates
choose weights; here the trunk is one, and the gate chooses among answers.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fxmerge.compiler.gate_answers import How, answers_of, checked, timed, with_answers
from fxmerge.compiler.gate_answers import notes_of as told_of_answers
from fxmerge.coupling import RuleSet
from fxmerge.errors import OptionError
from fxmerge.installed import knowledge
from fxmerge.ir.difference import Difference, difference, floor, require
from fxmerge.ir.program import Program
from fxmerge.ir.shared import SharedPlace, shared_places
from fxmerge.ir.supernet import SuperNet
from fxmerge.messages import listed
from fxmerge.result import Gate
from fxmerge.samples.rows import Samples, chunks, rows_at_once, rows_of
from fxmerge.samples.varied import masks_of
from fxmerge.training.logistic import Linear, Tried, logistic, tried

OUTPUT = "task"
"""Name of the output."""
PLACES = 3
"""So many places are tried, from the first on, within the first half of what is shared."""
GOOD = 0.99
"""Behind a place of this accuracy none is tried."""
LOW = 0.9
"""A lower accuracy is worth a note."""
TOLERANCE = 1e-4
"""Of the outputs that are added, against the same in float64."""
ROWS = 1000
"""Samples of a task at most: more change little."""


def check_names(programs: Sequence[Program]) -> None:
    """Raise `OptionError` where the output would share its name with a task or an input."""
    for program in programs:
        if program.task == OUTPUT:
            raise OptionError(
                f"--gate adds an output {OUTPUT!r}, and a parent is called {OUTPUT!r}",
                "rename its file, or capture it with --task NAME, or leave out --gate",
            )
        if OUTPUT in {port.name for port in program.inputs}:
            raise OptionError(
                f"--gate adds an output {OUTPUT!r}, and {program.task} has an input of that name",
                "rename the argument of its forward, or leave out --gate",
            )


def require_shared(
    supernet: SuperNet, fold: Callable[[Program, SuperNet], Program], rules: RuleSet, how: How = "none"
) -> None:
    """Raise `OptionError` where a gate has nothing to read, or nothing to tell: inputs that say the task."""
    if not supernet.together:
        own = " and ".join(
            f"{t} ({listed(names, 3)})" for t, names in zip(supernet.tasks, supernet.inputs, strict=True)
        )
        raise OptionError(
            f"--gate: every task has inputs of its own, which say the task already: {own}",
            "leave out --gate, and ask for the outputs of the task whose input you give",
        )
    start = supernet.start([1.0] * len(supernet.parents)).program.only(supernet.output_names)
    folded = fold(start, supernet)
    places_of(folded, supernet, rules)
    answers_of(supernet, {port.name: port for port in folded.outputs}, how)


def places_of(program: Program, supernet: SuperNet, rules: RuleSet, how: How = "none") -> list[SharedPlace]:
    """Where a gate of this folded program may read, the earliest first: for an answer also late, since that needs all
    that is shared anyway. Raises `OptionError` if nothing is shared."""
    blocks = [(part.name, part.parameters) for part in supernet.parts if not part.apart]
    found = shared_places(program, supernet.tasks, knowledge().spaces(program, rules), blocks)
    if not found:
        raise OptionError(
            "--gate: no value inside the merged model belongs to all tasks",
            "share a block (--share-until names the last one; `fxmerge inspect` lists them), or leave out --gate",
        )
    if how != "none":
        return [found[i] for i in sorted({round(k * (len(found) - 1) / (PLACES - 1)) for k in range(PLACES)})]
    return found[: max(1, min(PLACES, -(-len(found) // 2)))]


def untrained(program: Program, supernet: SuperNet, rules: RuleSet, how: How = "none") -> tuple[Program, Gate]:
    """The program with a gate that has learnt nothing: what a dry run shows."""
    place = places_of(program, supernet, rules, how)[0]
    none = torch.zeros(len(supernet.tasks), int(place.size))
    made = knowledge().add_gate(program, place, None, none, none[:, 0], OUTPUT)
    return with_answers(made, supernet, Gate(OUTPUT, supernet.tasks, place.after), how)


def trained(
    program: Program,
    supernet: SuperNet,
    rules: RuleSet,
    held: Sequence[Samples] | None,
    kept: Sequence[Samples],
    how: How = "none",
) -> tuple[Program, Gate, dict[str, Difference]]:
    """The folded program with a gate that was trained on samples of every task, what is known of it, how it folded.

    Place and strength are chosen by cross-validation on what is `kept`; what is `held` back measures the result.
    """
    few = [_evenly(own) for own in kept]
    mask = _mask(supernet, few)
    places = [p for p in places_of(program, supernet, rules, how) if mask is None or _along(p, mask, program)]
    if not places:
        raise OptionError(
            f"--gate: no early value of the merged model has the tokens that {mask} marks, so padding would count",
            "leave out --gate",
        )
    named = {str(number): place for number, place in enumerate(places)}
    shown = knowledge().show_pooled(program, named, mask)
    found, classes = _features(shown, supernet, few)
    chosen: dict[str, Tried] = {}
    for name in named:
        chosen[name] = tried(found[name], classes)
        if _share(chosen[name].right) >= GOOD:
            break
    best = max(_share(each.right) for each in chosen.values())
    error = (best * (1 - best) / len(classes)) ** 0.5  # the earliest within one standard error of the best
    error = error if how == "none" else 0.0
    name = next(name for name, each in chosen.items() if _share(each.right) >= best - error)
    linear = logistic(found[name], classes, chosen[name].decay)
    made = knowledge().add_gate(program, named[name], mask, linear.weight, linear.bias, OUTPUT)
    right = chosen[name].right
    if held is not None:
        others, theirs = _features(shown, supernet, held)
        right, classes = linear.right(others[name], theirs), theirs
    by_task = {task: _share(right[classes == k]) for k, task in enumerate(supernet.tasks)}
    gate = Gate(
        OUTPUT,
        supernet.tasks,
        named[name].after,
        features=int(named[name].size),
        accuracy=sum(by_task.values()) / len(by_task),
        by_task=by_task,
        held_back=0 if held is None else len(right),
        tried={named[key].after: _share(each.right) for key, each in chosen.items()},
    )
    folded = {OUTPUT: _folded(made, shown, name, linear, supernet, few)}
    made, gate = with_answers(made, supernet, gate, how)
    if gate.answers:
        folded |= checked(made, supernet, gate, few)
        gate = timed(made, supernet, gate, few)
    require("what the gate adds is not what was fitted", folded, max(TOLERANCE, floor(made)), "please report it")
    return made, gate, folded


def notes_of(gate: Gate) -> list[str]:
    """What to say of a gate."""
    told = told_of_answers(gate)
    if gate.accuracy is None or gate.accuracy >= LOW:
        return told
    worst = min(gate.by_task, key=lambda task: gate.by_task[task])
    return [
        f"the gate names the right task of {gate.accuracy:.1%} of held-back samples only ({worst}:"
        f" {gate.by_task[worst]:.1%}): more samples of every task may help, and inputs that look alike cannot be told"
        " apart",
        *told,
    ]


@torch.no_grad()
def _features(shown: Program, supernet: SuperNet, samples: Sequence[Samples]) -> tuple[dict[str, Tensor], Tensor]:
    """Pooled features (rows of all tasks, D) by place, and the task of every row."""
    found: dict[str, list[Tensor]] = {port.name: [] for port in shown.outputs}
    classes = []
    for k, own in enumerate(samples):
        for part in chunks(supernet.given(k, own), rows_at_once(shown)):
            for name, value in shown.run(part).items():
                found[name].append(value.double().cpu())
            classes += [k] * len(value)
    return {name: torch.cat(values) for name, values in found.items()}, torch.tensor(classes)


@torch.no_grad()
def _folded(
    made: Program, shown: Program, name: str, linear: Linear, supernet: SuperNet, samples: Sequence[Samples]
) -> Difference:
    """How far the output is from what was fitted, in float64 and on standardised features."""
    few = [{n: v[:32] for n, v in supernet.given(k, own).items()} for k, own in enumerate(samples)]
    gate = made.only([OUTPUT], inputs=True)
    pairs = [(linear(shown.run(part)[name]), gate.run(part)[OUTPUT]) for part in few]
    return difference(*(torch.cat([side.double() for side in sides]) for sides in zip(*pairs, strict=True)))


def _mask(supernet: SuperNet, samples: Sequence[Samples]) -> str | None:
    """The input that marks real tokens, by its name in the merged model."""
    found = [masks_of(supernet.given(k, own)) for k, own in enumerate(samples)]
    return next(iter(sorted(set.intersection(*found))), None)


def _along(place: SharedPlace, mask: str, program: Program) -> bool:
    """Whether the mean over a place can leave padding out: it has the mask's axis of tokens, or none to pool."""
    length = next(port.shape[1] for port in program.inputs if port.name == mask)
    return not place.others or any(place.shape[axis] == length for axis in place.others)


def _evenly(samples: Samples) -> Samples:
    """At most so many rows, evenly taken."""
    rows = rows_of(samples)
    index = torch.linspace(0, rows - 1, min(rows, ROWS)).round().long()
    return {name: value[index] for name, value in samples.items()}


def _share(right: Tensor) -> float:
    return float(right.double().mean())
