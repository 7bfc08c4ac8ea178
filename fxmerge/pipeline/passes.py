"""Passes and their order: the whole pipeline as one value, with a text form, run one watched pass at a time.

    Pipeline((Normalize(), Cleanup(), LineUp(), InsertMerge(), HoistByCost(), Train(), Hoist(), FoldMerge()))
    normalize,cleanup,line-up,insert-merge,hoist-by-cost,train,hoist,fold-merge

A pipeline has six stages, in this order: `parent` passes run on every parent; `join` passes see all parents together
and make the SuperNet of them; `supernet` passes run on it; in `train` a method fills its maps; `fold` passes make it an
ordinary network; `merged` passes run on that.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NoReturn, Protocol, TypeVar, get_origin, get_type_hints

from fxmerge.coupling import RuleSet
from fxmerge.errors import ExtensionError, FxmergeError, OptionError
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.messages import nearest
from fxmerge.pipeline.borders import Property, require_all, untouched
from fxmerge.pipeline.options import parse_options, shown
from fxmerge.rewrite import Rewrite

Stage = Literal["parent", "join", "supernet", "train", "fold", "merged"]
STAGES: tuple[Stage, ...] = ("parent", "join", "supernet", "train", "fold", "merged")
T = TypeVar("T")


class Known(Protocol):
    """What a pass may ask: the rules and rewrites in use."""

    @property
    def rules(self) -> RuleSet: ...

    @property
    def rewrites(self) -> tuple[Rewrite, ...]: ...


class Owners(Known, Protocol):
    """What running a pass needs besides: whose it is."""

    def owner(self, kind: Literal["pass"], name: str) -> str:
        """Who brought the pass of this name."""
        ...

    def blame(self, kind: Literal["pass"], name: str, error: Exception) -> None:
        """Raise an `ExtensionError` that names the owner of what failed, unless that is built in."""
        ...


@dataclass(frozen=True)
class Use:
    """Rules and rewrites, and nothing else."""

    rules: RuleSet
    rewrites: tuple[Rewrite, ...]


@dataclass(frozen=True)
class Pass:
    """A step from program to program. Subclasses are frozen dataclasses; their fields are the pass's options.

    The name is the class's name with dashes: `class InsertMerge(Pass)` is "insert-merge".
    """

    name: ClassVar[str] = ""
    stage: ClassVar[Stage | Literal["any"]] = "parent"
    """When it runs; "any" for the stage of the pass before it."""
    after: ClassVar[str] = ""
    """The pass behind which an extension's pass runs; "" for the end of its stage."""
    exact: ClassVar[bool] = True
    """Whether the program computes the same function before and after, up to rounding."""
    brings: ClassVar[tuple[Rewrite, ...]] = ()
    """Rewrites that it applies before those in use: `run` finds both in `known.rewrites`."""
    requires: ClassVar[tuple[Property, ...]] = ()
    """What must hold of the program that it is given."""
    ensures: ClassVar[tuple[Property, ...]] = ()
    """What holds of the program that it returns."""

    def __init_subclass__(cls) -> None:
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def run(self, program: Program, known: Known) -> Program:
        """The next program. `known` holds the rules and rewrites in use."""
        raise NotImplementedError(f"pass {self.name} has no run method")

    def __str__(self) -> str:
        """The pass as text, with the options that are not the default: `insert-merge{rank=12}`."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        options = ",".join(f"{k}={shown(v)}" for k, v in given.items() if v != defaults[k])
        return self.name + (f"{{{options}}}" if options else "")

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]


@dataclass(frozen=True)
class Together(Pass):
    """A pass over all parents at once, each of which stays a program of its own."""

    stage: ClassVar[Stage] = "join"

    @property
    def within(self) -> tuple[Pass, ...]:
        """The passes that it runs on a parent where it must."""
        return ()

    def run_all(self, parents: Sequence[Program], known: Known, run: Run) -> list[Program]:
        """The next programs; passes of its own it runs by `run`, so that they are watched like any other."""
        raise NotImplementedError(f"pass {self.name} has no run_all method")


@dataclass(frozen=True)
class Join(Pass):
    """The pass that makes one SuperNet of all parents."""

    stage: ClassVar[Stage] = "join"
    exact: ClassVar[bool] = False

    def join(self, parents: Sequence[Program], known: Known) -> SuperNet:
        raise NotImplementedError(f"pass {self.name} has no join method")


@dataclass(frozen=True)
class Train(Pass):
    """Fill the maps by the chosen method (`fxmerge methods` lists them); methods without training just fill them."""

    stage: ClassVar[Stage] = "train"
    exact: ClassVar[bool] = False


DRIVEN = (Together, Join, Train)
"""Passes that are no step from one program to one program: the driver runs these."""


def check_class(cls: type[Pass], owner: str) -> None:
    """Raise `ExtensionError` unless a pass is a frozen dataclass all of whose options have defaults."""

    def refuse(what: str, todo: str) -> None:
        raise ExtensionError(f"pass {cls.name} of {owner} {what}", todo)

    annotated = {name for name, hint in get_type_hints(cls).items() if get_origin(hint) is not ClassVar}
    options = dataclasses.fields(cls)
    frozen = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    if not frozen or annotated != {f.name for f in options}:
        refuse("is not a frozen dataclass", f"write @dataclass(frozen=True) above class {cls.__name__}")
    for each in options:
        if each.default is dataclasses.MISSING:
            refuse(f"has an option without a default: {each.name}", "give it a default")
    if cls.stage not in (*STAGES, "any"):
        refuse(f"is of stage {cls.stage!r}", f"the stages are {', '.join(STAGES)}, any")


Watcher = Callable[[Pass, Program, Program, float], None]
"""What is told after every pass: the pass, the program before and after, and the seconds it took."""
Run = Callable[["Pipeline", Program], Program]
"""Runs a pipeline's parent passes on a program, watched."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, grouped by stage."""

    passes: tuple[Pass, ...] = ()

    stages: tuple[Stage, ...] = dataclasses.field(init=False, repr=False)
    """The stage in which each pass runs."""

    def __post_init__(self) -> None:
        stages: list[Stage] = []
        for each in self.passes:
            last = stages[-1] if stages else STAGES[0]
            here: Stage = last if each.stage == "any" else each.stage
            if STAGES.index(here) < STAGES.index(last):
                raise OptionError(
                    f"{each.name} ({here}) cannot run in stage {last}", f"the stages are, in order: {', '.join(STAGES)}"
                )
            stages.append(here)
        object.__setattr__(self, "stages", tuple(stages))

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __str__(self) -> str:
        return ",".join(str(each) for each in self.passes)

    @classmethod
    def parse(cls, text: str, known: Iterable[type[Pass]]) -> Pipeline:
        """The pipeline of a text such as `insert-merge{rank=12},hoist`. Raises `OptionError` naming what is wrong."""
        table = {each.name: each for each in known}
        made = []
        for name, options in _split(text):
            if name not in table:
                raise OptionError(
                    f"unknown pass {name!r}{nearest(name, table)}", f"known are: {', '.join(sorted(table))}"
                )
            made.append(table[name](**parse_options(name, options, _option_types(table[name]))))
        return cls(tuple(made))

    def having(self, *more: Pass) -> Pipeline:
        """This pipeline with more passes, each where its class says: behind `after`, or at the end of its stage."""
        passes = list(self.passes)
        for each in more:
            if each.after:
                places = [i for i, old in enumerate(passes) if old.name == each.after]
                stages = Pipeline(tuple(passes)).stages
                places = [i for i in places if stages[i] == each.stage] or places
                if not places:
                    names = [old.name for old in passes]
                    raise ExtensionError(
                        f"pass {each.name} is to run after {each.after!r}, which is not in the pipeline"
                        f"{nearest(each.after, names)}",
                        f"the passes are {', '.join(names)}",
                    )
                place = places[-1] + 1
            else:
                last = len(STAGES) - 1 if each.stage == "any" else STAGES.index(each.stage)
                place = sum(STAGES.index(stage) <= last for stage in Pipeline(tuple(passes)).stages)
            passes.insert(place, each)
        return Pipeline(tuple(passes))

    def stage(self, stage: Stage) -> tuple[Pass, ...]:
        """The passes of one stage."""
        return tuple(each for each, here in zip(self.passes, self.stages, strict=True) if here == stage)

    def alone(self, stage: Stage) -> tuple[Pass, ...]:
        """The passes of one stage that take one program."""
        return tuple(each for each in self.stage(stage) if not isinstance(each, DRIVEN))

    def run(self, stage: Stage, program: Program, known: Owners, watch: Watcher | None = None) -> Program:
        """Run the passes of one stage on a program, those aside that take more than one program."""
        for each in self.alone(stage):
            program = run_pass(each, program, known, watch)
        return program

    def line_up(self, parents: Sequence[Program], known: Owners, watch: Watcher | None = None) -> list[Program]:
        """Run what the join stage does to the parents before it joins them."""

        made: dict[tuple[Pass, int], tuple[Program, Program]] = {}
        """By pass and program: what went in, kept so that its id is its own, and what came out. None runs twice."""

        def run(steps: Pipeline, program: Program) -> Program:
            for each in steps.alone("parent"):
                if (each, id(program)) not in made:
                    made[each, id(program)] = program, run_pass(each, program, known, watch)
                program = made[each, id(program)][1]
            return program

        parents = list(parents)
        for each in self.stage("join"):
            if isinstance(each, Together):
                after, seconds = _timed(each, known, partial(each.run_all, parents, known, run))
                for old, new in zip(parents, after, strict=True):
                    _finish(each, old, new, known, watch, seconds / len(after))
                parents = after
        return parents

    def join(self, parents: Sequence[Program], known: Owners, watch: Watcher | None = None) -> SuperNet:
        """The SuperNet of parents in line."""
        (each,) = (step for step in self.stage("join") if isinstance(step, Join))
        supernet, seconds = _timed(each, known, lambda: each.join(parents, known))
        _finish(each, supernet.parents[supernet.template], supernet.program, known, watch, seconds)
        return supernet


def run_pass(each: Pass, program: Program, known: Owners, watch: Watcher | None = None) -> Program:
    """Run one pass. New nodes remember it in `meta["by"]`.

    An error in a pass of an extension becomes an `ExtensionError` that names its owner. Raises `VerificationError` if
    the program lacks what the pass requires, or ensures, or if the pass edits the program that it was given.
    """
    for node in program.graph.nodes:
        node.meta.setdefault("by", "capture")
    require_all(each.requires, program, f"before {each.name}")
    before = untouched(program)
    after, seconds = _timed(each, known, lambda: each.run(program, use_of(each, known)))
    before.require(each.name)
    return _finish(each, program, after, known, watch, seconds)


def use_of(each: Pass, known: Known) -> Known:
    """What is known as a pass sees it: its own rewrites stand first."""
    return Use(known.rules, (*each.brings, *known.rewrites))


def _timed(each: Pass, known: Owners, work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    try:
        return work(), time.perf_counter() - start
    except FxmergeError:
        raise
    except Exception as error:
        known.blame("pass", each.name, error)
        raise


def _finish(
    each: Pass, before: Program, after: Program, known: Owners, watch: Watcher | None, seconds: float
) -> Program:
    """What happens after every pass: its border is checked, new nodes remember it, whoever watches is told."""
    if not isinstance(after, Program):
        _no_program(each, after, known)
    for node in after.graph.nodes:
        node.meta.setdefault("by", each.name)
    require_all(each.ensures, after, f"after {each.name}")
    if watch is not None:
        watch(each, before, after, seconds)
    return after


def _no_program(each: Pass, value: object, known: Owners) -> NoReturn:
    raise ExtensionError(
        f"pass {each.name} of {known.owner('pass', each.name)} returned {type(value).__name__}, not a Program",
        "return program.evolve(…), or the program itself where there is nothing to do",
    )


def _option_types(cls: type[Pass]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


_STEP = re.compile(r"\s*([\w-]+)\s*(?:\{((?:[^{}\"]|\"(?:[^\"\\]|\\.)*\")*)\})?\s*(,|$)")


def _split(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text.rstrip()):
        found = _STEP.match(text, place)
        if found is None or (found[3] == "," and found.end() >= len(text.rstrip())):
            raise OptionError(
                f"cannot read the pipeline from here: {text[place:]!r}", "write it as name{option=value,…},name,…"
            )
        yield found[1], found[2] or ""
        place = found.end()
