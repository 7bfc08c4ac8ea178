"""Pipelines: text form both ways, order by stage, watching, and passes that go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from fxmerge import Extension, Program, capture
from fxmerge.errors import ExtensionError, OptionError, VerificationError
from fxmerge.pipeline import Known, Pass, Pipeline, Stage, Train, run_pass
from fxmerge.pipeline.watch import Watch


@dataclass(frozen=True)
class DropDead(Pass):
    """Remove what nobody reads."""

    def run(self, program: Program, known: Known) -> Program:
        graph, _ = program.copy_graph()
        graph.eliminate_dead_code()
        return program.evolve(graph=graph)


@dataclass(frozen=True)
class Sized(Pass):
    """Do nothing, with options of every type."""

    stage: ClassVar[Stage] = "supernet"
    rank: int | None = None
    order: Literal["weights", "auto"] = "auto"
    scale: float = 1.0
    tails: bool = True
    note: str = ""
    widths: tuple[int, ...] = ()

    def run(self, program: Program, known: Known) -> Program:
        return program


@dataclass(frozen=True)
class Double(Pass):
    """Double every weight, which changes the function."""

    stage: ClassVar[Stage] = "merged"

    def run(self, program: Program, known: Known) -> Program:
        return program.evolve(tensors={name: value * 2 for name, value in program.tensors.items()})


KNOWN = (DropDead, Sized, Double)
NOTHING = Extension("test", passes=KNOWN)


@cache
def program() -> Program:
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (torch.randn(3, 4),), task="net")


# -- text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "drop-dead",
        "drop-dead,sized,double",
        "sized{rank=12}",
        "sized{rank=12,order=weights,scale=0.5,tails=false,note=word,widths=[1 2 3]},double",
        'sized{note="two, {words}"}',
        'sized{note="true"}',
    ],
)
def test_text_form_both_ways(text: str) -> None:
    assert str(Pipeline.parse(text, KNOWN)) == text


def test_parsed_options_have_their_types() -> None:
    text = " sized { rank = none , scale=1e-3, tails = false, widths=[4 8] } "
    (one,) = Pipeline.parse(text, KNOWN)
    assert one == Sized(rank=None, scale=1e-3, tails=False, widths=(4, 8))
    assert Pipeline.parse("sized{rank=3}", KNOWN).passes == (Sized(rank=3),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hoost", "unknown pass 'hoost'\nknown are: double, drop-dead, sized"),
        ("drop-ded", "unknown pass 'drop-ded', did you mean 'drop-dead'?"),
        ("sized{rnk=3}", "sized has no option 'rnk', did you mean 'rank'?"),
        ("drop-dead{rank=3}", "drop-dead has no option 'rank'\nit has none"),
        ("sized{rank=two}", "sized: rank cannot be 'two'\nit is none or a whole number"),
        ("sized{order=late}", "sized: order cannot be 'late'\nit is weights or auto"),
        ("sized{tails=1}", "sized: tails cannot be '1'\nit is true or false"),
        ("sized{widths=3}", "sized: widths cannot be '3'\nit is a list in brackets, [A B], of a whole number each"),
        ("sized{rank=1,rank=2}", "sized is given rank twice"),
        ("sized{rank}", "cannot read the options of sized from here: 'rank'"),
        ("sized{rank=1", "cannot read the pipeline from here: 'sized{rank=1'"),
        ("drop-dead,", "cannot read the pipeline from here: 'drop-dead,'"),
        ("double,drop-dead", "drop-dead (parent) cannot run in stage merged"),
    ],
)
def test_text_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(OptionError) as error:
        Pipeline.parse(text, KNOWN)
    assert message in str(error.value)


def test_names_come_from_classes() -> None:
    assert [each.name for each in KNOWN] == ["drop-dead", "sized", "double"]
    assert DropDead.summary() == "Remove what nobody reads."


# -- order -----------------------------------------------------------------------------------------------


def test_a_pass_goes_behind_the_one_it_names_or_to_the_end_of_its_stage() -> None:
    @dataclass(frozen=True)
    class Early(Pass):
        after: ClassVar[str] = "drop-dead"

    @dataclass(frozen=True)
    class Late(Pass):
        stage: ClassVar[Stage] = "supernet"

    base = Pipeline((DropDead(), Sized(), Double()))
    assert str(base.having(Early(), Late())) == "drop-dead,early,sized,late,double"
    assert base.stage("supernet") == (Sized(),)

    @dataclass(frozen=True)
    class Lost(Pass):
        after: ClassVar[str] = "doubel"

    with pytest.raises(ExtensionError, match=r"pass lost is to run after 'doubel', .*did you mean 'double'"):
        base.having(Lost())


def test_a_pass_of_any_stage_runs_where_it_stands() -> None:
    @dataclass(frozen=True)
    class Tidy(Pass):
        stage: ClassVar[Literal["any"]] = "any"

    twice = Pipeline((DropDead(), Tidy(), Sized(), Double(), Tidy()))
    assert twice.stages == ("parent", "parent", "supernet", "merged", "merged")
    assert str(Pipeline((DropDead(), Sized())).having(Tidy())) == "drop-dead,sized,tidy"


def test_passes_of_more_than_one_program_are_left_to_the_driver() -> None:
    before = program()
    assert Pipeline((Train(),)).run("train", before, NOTHING) is before


def test_only_the_passes_of_a_stage_run() -> None:
    seen: list[str] = []
    Pipeline((DropDead(), Sized(), Double())).run(
        "parent", program(), NOTHING, lambda done, before, after, seconds: seen.append(done.name)
    )
    assert seen == ["drop-dead"]


def test_nodes_remember_who_made_them() -> None:
    after = run_pass(AddIdentity(), program(), NOTHING)
    by = {node.name: node.meta["by"] for node in after.graph.nodes if node.op == "call_function"}
    assert sorted(set(by.values())) == ["add-identity", "capture"]


@dataclass(frozen=True)
class AddIdentity(Pass):
    """Add a call that changes nothing."""

    def run(self, program: Program, known: Known) -> Program:
        graph, _ = program.copy_graph()
        last = next(iter(reversed(graph.nodes)))
        (result,) = last.args[0]  # type: ignore[misc]
        with graph.inserting_before(last):
            last.args = ((graph.call_function(torch.ops.aten.alias.default, (result,)),),)
        return program.evolve(graph=graph)


# -- watching --------------------------------------------------------------------------------------------


def test_print_shows_what_a_pass_changed() -> None:
    shown: list[str] = []
    watch = Watch(frozenset({"add-identity"}), 2, shown.append)
    Pipeline((DropDead(), AddIdentity())).run("parent", program(), NOTHING, watch)
    (text,) = shown
    assert text.startswith("--- before add-identity\n+++ after add-identity\n")
    assert "+%8 = aten.alias.default(%7)" in text or "+%" in text
    assert [name for name, _ in watch.times] == ["drop-dead", "add-identity"]
    assert all(seconds > 0 for _, seconds in watch.times)
    Watch(frozenset({"all"}), 0, shown.append)(DropDead(), program(), program(), 0.0)
    assert shown[-1] == "--- drop-dead: nothing changed\n"


def test_verify_catches_a_change_of_the_function_at_level_two_only() -> None:
    for level in (0, 1):
        run_pass(Double(), program(), NOTHING, Watch(level=level))
    with pytest.raises(VerificationError, match="double changed what the program computes: output logits differs by"):
        run_pass(Double(), program(), NOTHING, Watch(level=2))

    class Knowing(Double):
        exact: ClassVar[bool] = False

    run_pass(Knowing(), program(), NOTHING, Watch(level=2))


def _renamed(program: Program) -> Program:
    return replace(program, inputs=(replace(program.inputs[0], name="other"),))


def _retyped(program: Program) -> Program:
    return replace(program, outputs=(replace(program.outputs[0], dtype=torch.float64),))


def _more_ports(program: Program) -> Program:
    return replace(program, outputs=program.outputs * 2)


def _lost(program: Program) -> Program:
    return replace(program, parameters=program.parameters | {"ghost"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed, "double changed the program's inputs"),
        (_retyped, r"after double, output \w+ is torch.float32\[\d+, 2\], its port says torch.float64"),
        (_more_ports, "after double, 1 results meet 2 output ports"),
        (_lost, "after double, parameter 'ghost' has no tensor"),
    ],
)
def test_verify_catches_broken_structure(change: Callable[[Program], Program], message: str) -> None:
    good = program()
    with pytest.raises(VerificationError, match=message):
        Watch(level=2)(Double(), good, change(good), 0.0)


def test_numbers_are_compared_on_inputs_of_every_kind() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, ids: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
            x = self.table(ids) * scale[:, None, None]
            return torch.softmax(x.sum(-1).masked_fill(mask == 0, -torch.inf), -1)

    inputs = (torch.randint(9, (3, 6)), torch.ones(3, 6, dtype=torch.long), torch.randn(3))
    traced = capture(Tokens(), inputs)
    Watch(level=2)(DropDead(), traced, replace(traced, samples={}), 0.0)
    Watch(level=2)(DropDead(), replace(traced, samples={}), traced, 0.0)
    with pytest.raises(VerificationError, match="changed what the program computes"):
        Watch(level=2)(Double(), replace(traced, samples={}), Double().run(replace(traced, samples={}), NOTHING), 0.0)


def test_the_environment_says_what_to_watch() -> None:
    names = ["hoist", "cleanup"]
    assert Watch.from_environment(names, {}).level == 1
    watch = Watch.from_environment(names, {"FXMERGE_PRINT": "hoist, all", "FXMERGE_VERIFY": "2"})
    assert (watch.printed, watch.level) == ({"hoist", "all"}, 2)
    with pytest.raises(OptionError, match="FXMERGE_PRINT names no pass: 'hoits', did you mean 'hoist'"):
        Watch.from_environment(names, {"FXMERGE_PRINT": "hoits"})
    with pytest.raises(OptionError, match="FXMERGE_VERIFY is '3'"):
        Watch.from_environment(names, {"FXMERGE_VERIFY": "3"})


# -- passes that go wrong --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(Pass):
    """Fail."""

    def run(self, program: Program, known: Known) -> Program:
        raise KeyError("lost")


def test_an_error_in_an_extensions_pass_names_its_owner() -> None:
    with pytest.raises(ExtensionError, match=r"pass broken of my-package 1.0 failed: KeyError: 'lost'"):
        run_pass(Broken(), program(), Extension("my-package 1.0", passes=Broken))
    with pytest.raises(KeyError, match="lost"):
        run_pass(Broken(), program(), Extension("fxmerge", passes=Broken))


def test_a_pass_must_return_a_program() -> None:
    @dataclass(frozen=True)
    class Forgetful(Pass):
        def run(self, program: Program, known: Known) -> Program:
            return None  # type: ignore[return-value]

    with pytest.raises(ExtensionError, match="pass forgetful of mine returned NoneType, not a Program"):
        run_pass(Forgetful(), program(), Extension("mine", passes=Forgetful))


def test_a_pass_without_run_says_so() -> None:
    @dataclass(frozen=True)
    class Empty(Pass):
        pass

    with pytest.raises(ExtensionError, match="pass empty has no run method"):
        run_pass(Empty(), program(), Extension("mine", passes=Empty))


def test_a_pass_class_must_be_a_frozen_dataclass_with_defaults() -> None:
    class Plain(Pass):
        rank: int = 3

    with pytest.raises(ExtensionError, match="pass plain of mine is not a frozen dataclass"):
        Extension("mine", passes=Plain)

    @dataclass(frozen=True)
    class Bare(Pass):
        rank: int

    with pytest.raises(ExtensionError, match="pass bare of mine has an option without a default: rank"):
        Extension("mine", passes=Bare)

    @dataclass(frozen=True)
    class Nowhere(Pass):
        stage: ClassVar[Stage] = "middle"  # type: ignore[assignment]

    with pytest.raises(ExtensionError, match="pass nowhere of mine is of stage 'middle'"):
        Extension("mine", passes=Nowhere)
