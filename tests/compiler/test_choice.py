"""A method and its options: from text, flags, YAML and Python alike, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

import fxmerge
from fxmerge.cli.flags import config_of
from fxmerge.cli.verbs import main
from fxmerge.compiler.choice import chosen, options_of
from fxmerge.config import MergeConfig
from fxmerge.errors import OptionError
from fxmerge.installed import known
from fxmerge.ir.program import Program
from fxmerge.methods import Job, Outcome
from fxmerge.methods.base import Trained
from fxmerge.methods.foldable import Foldable
from fxmerge.pipeline.extension import Extension

Parents = Callable[[str, int], list[Program]]


@dataclass(frozen=True)
class Power:
    """A method of an extension with options of its own."""

    name: ClassVar[str] = "power"
    summary: ClassVar[str] = "the first parent, once more"
    needs_data: ClassVar[bool] = False
    exponent: float = 1.0
    side: Literal["left", "right"] = "left"

    def __call__(self, job: Job) -> Outcome:
        return Outcome(job.supernet.start([self.exponent, 1.0]).program, init=self.side)


class Plain:
    """A method that trains and declares nothing."""

    name, summary, needs_data = "plain", "no dataclass", True

    def __call__(self, job: Job) -> Outcome:
        raise NotImplementedError


KNOWN = known() + Extension("mine", methods=[Power(), Plain()])


def choose(**options: Any) -> tuple[Any, Any]:
    return chosen(KNOWN, MergeConfig.of(**options))


def test_options_come_as_text_or_by_themselves() -> None:
    for options in (
        {"method": "foldable{rank=3,init=first,steps=7}"},
        {
            "method": "foldable",
            "rank": 3,
            "init": "first",
            "steps": 7,
        },
    ):
        method, trained = choose(**options)
        assert method == Foldable(rank=3, init="first", steps=7)
        assert (trained.steps, trained.batch_size) == (7, None)
    method, _ = choose(method="power{exponent=2.5,side=right}")
    assert (method.exponent, method.side) == (2.5, "right")
    assert choose(method="foldable", rank=0)[0].rank == 0


def test_a_method_that_declares_nothing_and_needs_data_trains() -> None:
    assert choose(method="plain", steps=3)[1].steps == 3
    with pytest.raises(OptionError, match="plain has no option 'rank'"):
        choose(method="plain", rank=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "average", "init": "nonsense"}, r"average has no option 'init'\nleave it out \(it has none\)"),
        (
            {"method": "average", "steps": 600},
            r"average has no option 'steps'\n.*another method: auto, foldable, distill",
        ),
        ({"method": "average", "batch_size": 64}, r"average has no option 'batch_size'"),
        ({"method": "average", "augment": "none"}, r"average has no option 'augment'"),
        ({"method": "distill", "rank": 2}, r"distill has no option 'rank'.*\n.*its options are init, .*: foldable"),
        ({"method": "power", "steps": 3}, r"power has no option 'steps'.*\n.*its options are exponent, side"),
        ({"init": "averag"}, r"unknown init 'averag', did you mean 'average'\?"),
        ({"method": "foldable", "full": True, "rank": 2}, r"--rank and --full exclude each other"),
        ({"method": "foldable{full=true}", "rank": 2}, r"--rank and --full exclude each other"),
        ({"steps": 9, "polish": 0}, r"--steps and --polish exclude each other: here all training follows the fold"),
        ({"method": "auto{budget=3.0}", "steps": 9}, r"--steps and --budget exclude each other"),
        ({"method": "zipit", "budget": 60}, r"zipit has no option 'budget'"),
        ({"method": "foldable{rank=2}", "rank": 2}, r"rank is given twice"),
        ({"method": "foldable{rnak=2}"}, r"foldable has no option 'rnak', did you mean 'rank'\?"),
        ({"method": "foldable{rank=-2}"}, r"--rank -2: input should be greater than or equal to 0"),
        ({"method": "condense{rows=0}"}, r"condense: rows cannot be '0'\nit is a whole number at least 1"),
        ({"method": "condense{ridge=nan}"}, r"condense: ridge cannot be 'nan'\nit is a number at least 0"),
        (
            {"method": "condense{balance=[1 -1]}"},
            r"balance cannot be .*\nit is a list in brackets, \[A B\], of a number above 0 each",
        ),
        ({"method": "zipit{inside=60}"}, r"zipit: inside cannot be '60'\nit is a number at least 0 and at most 1"),
        ({"method": "dare{scale=inf}"}, r"dare: scale cannot be 'inf'\nit is a number or auto"),
        ({"budget": float("inf")}, r"--budget inf: input should be a finite number"),
        ({"inner": float("inf")}, r"--inner inf: input should be a finite number"),
        ({"method": "foldable{dtype=half}"}, r"foldable: dtype cannot be 'half'\nit is float32 or bfloat16"),
        ({"method": "foldable{rank=2"}, r"cannot read the method"),
        ({"method": "power{exponnt=2}"}, r"power has no option 'exponnt', did you mean 'exponent'\?"),
        ({"method": "avarage{rank=2}"}, r"unknown method 'avarage', did you mean 'average'\?"),
    ],
)
def test_what_a_method_does_not_have_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "foldable", "full": True, "rank": 2}, "--rank and --full exclude each other"),
        ({"method": "average", "lr": 0.1}, "average has no option 'lr'"),
        ({"like": 1, "width_scale": 2.0}, "--like and --width-scale exclude each other"),
        ({"steps": 600, "budget": 60}, "--steps and --budget exclude each other: each says how long to train"),
        ({"polish": 0, "budget": 60}, "--polish and --budget exclude each other: each says how long to train"),
        ({"share_until": "0", "keep": 0.9}, "--share-until and --keep exclude each other"),
        ({"opset": 20, "out": "m.pt2"}, "--opset 20 is of ONNX"),
    ],
)
def test_the_same_is_refused_from_everywhere(
    options: dict[str, Any],
    message: str,
    parents: Parents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=message):
        fxmerge.merge(parents("mlp", 2), **options)
    (tmp_path / "merge.yaml").write_text("".join(f"{name}: {value}\n" for name, value in options.items()))
    assert main(["merge", "a.pt", "b.pt", "--config", "merge.yaml", "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    flags = [f"--{n.replace('_', '-')}" + ("" if v is True else f"={v}") for n, v in options.items()]
    assert main(["merge", "a.pt", "b.pt", *flags, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_written_or_has_no_effect_is_refused_from_python_too(parents: Parents, tmp_path: Path) -> None:
    programs, out = parents("mlp", 2), str(tmp_path / "m.json")
    for options, message in (
        ({"out": f"{tmp_path}/m.onxn"}, r"'\.onxn' cannot be written, did you mean '\.onnx'"),
        ({"result": out, "report": out}, "--report .* is --result too"),
        ({"report": out}, "a report is drawn by the command line alone\nleave out report"),
        ({"result": f"{tmp_path}/none/m.json"}, "none does not exist"),
        ({"batch_axis": 1}, "--batch-axis 1: every parent takes its batch on the first axis"),
        ({"data": [1, 2]}, "the samples of .* are a list\ngive a tensor or array, a dict of them"),
    ):
        with pytest.raises(fxmerge.FxmergeError, match=message):
            fxmerge.merge(programs, method="average", **options)
    assert not list(tmp_path.iterdir())


def test_figures_are_written_from_python_too(parents: Parents, tmp_path: Path) -> None:
    merged = fxmerge.merge(parents("mlp", 2), method="average", result=str(tmp_path / "m.json"))
    assert (tmp_path / "m.json").read_text() == json.dumps(merged.result, indent=1)


def test_flags_replace_what_a_file_says_of_the_same_thing(tmp_path: Path) -> None:
    MergeConfig.of(method="foldable", rank=3, steps=9).save(tmp_path / "c.yaml")
    file = str(tmp_path / "c.yaml")
    dense = config_of(file, full=True)
    assert chosen(KNOWN, dense)[0] == Foldable(full=True, steps=9)
    timed = config_of(file, method="auto", budget=60.0, rank=None)
    assert (timed.steps, timed.budget) == (None, 60.0)
    both = config_of(file, polish=5)
    assert chosen(KNOWN, both)[0] == Foldable(rank=3, steps=9, polish=5)  # before the fold, and after it


def test_a_flag_means_the_same_in_every_method() -> None:
    """A method's option that is called like a flag is set by it: of the built-in ones, those that train, and these."""
    others = {
        "permute": {"on"}, "rotate": {"on"}, "transport": {"on"},
        "task-arithmetic": {"base"}, "ties": {"base"}, "dare": {"base"},
    }  # fmt: skip
    for method in known().methods:
        if not isinstance(method, Trained):
            assert options_of(method).keys() & MergeConfig.model_fields.keys() == others.get(method.name, set())


def test_a_saved_file_with_every_default_is_no_request(tmp_path: Path) -> None:
    MergeConfig.of(method="average").save(tmp_path / "c.yaml")
    assert chosen(KNOWN, MergeConfig.load(tmp_path / "c.yaml"))[0].name == "average"


def test_loud_and_quiet_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "-v", "-q"]) == 2
    assert "--verbose and --quiet exclude each other" in capsys.readouterr().err


# -- a wider result ------------------------------------------------------------------------------------


def test_rank_zero_cannot_fill_a_wider_model_and_more_can(parents: Parents) -> None:
    programs = parents("mlp", 2)
    quick = {"method": "foldable", "width_scale": 2.0, "steps": 6, "batch_size": 6, "pool": 24, "init": "average"}
    with pytest.raises(OptionError, match=r"with --rank 0 nothing would fill \d+ units.*\ngive --rank 1 or more"):
        fxmerge.merge(programs, rank=0, **quick)
    for advised in ({"rank": 1}, {"full": True}):
        merged = fxmerge.merge(programs, **advised, **quick)
        written = [w for n, w in merged.state_dict().items() if n.startswith("layers") and w.ndim == 2]
        assert len(written) == 2
        assert all(bool(w.any(dim=1).all()) for w in written)
    assert fxmerge.merge(programs, rank=0, **{k: v for k, v in quick.items() if k != "width_scale"})


def test_an_average_says_what_it_cannot_fill(parents: Parents) -> None:
    merged = fxmerge.merge(parents("mlp", 2), method="average", width_scale=2.0)
    assert any("units of the wider model do nothing" in note for note in merged.result["notes"])
    assert not any("wider" in note for note in fxmerge.merge(parents("mlp", 2), method="average").result["notes"])
