"""A merge is held to the programs that it was given: whatever changes the numbers is named, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge import Extension, Program, installed
from fxmerge.compiler import build, merging
from fxmerge.errors import VerificationError
from fxmerge.installed import catalogue
from fxmerge.ir.merge import unmerge
from fxmerge.pipeline import Known, Pass, Stage
from fxmerge.pipeline.watch import Watch
from fxmerge.rewrite import Match, Refusal, op, rewrite, var
from tests.passes.line_up import test_fold_factors as factors
from tests.passes.supernet.test_trunk_pairs import TOKENS, Encoder

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Gelu between linear layers; the first two stand side by side, or as one whose result is cut in two ways."""

    def __init__(self, seed: int, cut: str = "") -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.cut, self.both = cut, nn.Linear(6, 16)
        self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.cut:
            y = self.both(x)
            a, b = y.chunk(2, -1) if self.cut == "chunk" else (y[:, :8], y[:, 8:])
        else:
            a, b = self.one(x), self.two(x)
        return self.head(nn.functional.gelu(a) * b)


def nets(*cuts: str) -> list[Program]:
    return [fxmerge.capture(Net(k, (*cuts, "", "")[k]).eval(), (X,), task="ab"[k]) for k in range(2)]


@contextmanager
def known(monkeypatch: pytest.MonkeyPatch, **brings: Any) -> Iterator[None]:
    """An extension in use, without a file of its own."""
    builtin = installed.known()
    with monkeypatch.context() as patch:
        patch.setattr(merging, "known", lambda extensions=(): builtin + Extension("mine 1.0", **brings))
        yield


def refused(monkeypatch: pytest.MonkeyPatch, parents: list[Program], folder: Path, **brings: Any) -> str:
    """What a merge with an extension is refused with; nothing was written."""
    with known(monkeypatch, **brings), pytest.raises(VerificationError) as error:
        fxmerge.merge(parents, method="average", out=str(folder / "m.onnx"))
    assert error.value.exit_code == 3 and not list(folder.iterdir())
    return error.value.what


@rewrite(op("aten.gelu.default", var("x")))
def gelu_to_relu(match: Match) -> Any:
    """gelu(x)  -->  relu(x)"""
    return match.call("aten.relu.default", match["x"])


def _is_apart(match: Match) -> Refusal | None:
    apart = sum("linear" in str(node.target) for node in match.program) > 2
    return None if apart else Refusal("a projection is whole")


@rewrite(op("aten.gelu.default", var("x")), check=_is_apart)
def late_relu(match: Match) -> Any:
    """gelu(x)  -->  relu(x), once projections are apart"""
    return match.call("aten.relu.default", match["x"])


def test_a_rewrite_that_changes_a_parent_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = refused(monkeypatch, nets(), tmp_path, rewrites=gelu_to_relu)
    assert "rewrite gelu-to-relu of mine 1.0 (in pass normalize, at test_verification.py:" in said
    assert "changed what a computes: output logits differs by" in said


def test_so_is_one_that_fires_while_parents_are_written_further(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = refused(monkeypatch, nets("chunk", "slice"), tmp_path, rewrites=late_relu)
    assert "rewrite late-relu of mine 1.0 (in pass take-apart" in said and "changed what a computes" in said


def scaled(program: Program, factor: float = 1.01) -> Program:
    return program.evolve(tensors={name: value * factor for name, value in program.tensors.items()})


@dataclass(frozen=True)
class Grow(Pass):
    """Make every weight a little larger."""

    def run(self, program: Program, known: Known) -> Program:
        return scaled(program)


@dataclass(frozen=True)
class GrowNet(Grow):
    """Make every weight of the SuperNet a little larger."""

    stage: ClassVar[Stage] = "supernet"


@dataclass(frozen=True)
class GrowMerged(Grow):
    """Make every weight of the merged model a little larger."""

    stage: ClassVar[Stage] = "merged"


@pytest.mark.parametrize(("wrong", "what"), [(Grow, "a"), (GrowNet, "the SuperNet"), (GrowMerged, "the merged model")])
def test_a_wrong_pass_is_named_at_every_stage(
    wrong: type[Pass], what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = refused(monkeypatch, nets(), tmp_path, passes=wrong)
    assert said.startswith(f"pass {wrong.name} of mine 1.0 changed what {what} computes: output ")


@dataclass(frozen=True)
class GrowOnPurpose(Grow):
    """Make every weight a little larger, and say so."""

    exact: ClassVar[bool] = False


def test_a_pass_that_says_that_it_changes_numbers_may(monkeypatch: pytest.MonkeyPatch) -> None:
    with known(monkeypatch, passes=GrowOnPurpose):
        merged = fxmerge.merge(nets(), method="average")
    (note,) = (
        note for note in merged.result["notes"] if "grow-on-purpose" in note and "computes" in note and " a " in note
    )
    assert "pass grow-on-purpose of mine 1.0 changes what a computes, as it says: by" in note
    assert merged.result["checks"]["rewrite_max_abs"] > 1e-3


@dataclass(frozen=True)
class EditInPlace(Pass):
    """Edit the graph that it was given."""

    def run(self, program: Program, known: Known) -> Program:
        for node in program.graph.nodes:
            if node.op == "call_function" and "gelu" in str(node.target):
                node.target = torch.ops.aten.relu.default
        return program


def test_a_pass_that_edits_its_program_in_place_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert refused(monkeypatch, nets(), tmp_path, passes=EditInPlace).startswith(
        "edit-in-place edited the graph of the program that it was given"
    )


@dataclass(frozen=True)
class Detour(Pass):
    """Put a call behind every unmerge, so that no weight takes it up."""

    stage: ClassVar[Stage] = "supernet"

    def run(self, program: Program, known: Known) -> Program:
        graph, _ = program.copy_graph()
        for node in list(graph.nodes):
            if node.target is unmerge:
                with graph.inserting_after(node):
                    new = graph.call_function(torch.ops.aten.mul.Tensor, (node, 1.0))
                node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        return program.evolve(graph=graph)


def test_a_pass_that_loses_how_maps_fold_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = refused(monkeypatch, nets(), tmp_path, passes=Detour)
    assert (
        said
        == "pass detour of mine 1.0 lost how maps fold: unmerge by maps.u2 of parent 0 would stay in the merged model"
    )


class TwoScales(nn.Module):
    """An output of a thousand beside one of a hundredth."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.large, self.small = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x).tanh()
        return {"large": 1000 * self.large(x), "small": 0.01 * self.small(x)}


@dataclass(frozen=True)
class SwapSmall(Pass):
    """Swap two classes of every small output."""

    stage: ClassVar[Stage | Literal["any"]] = "merged"

    def run(self, program: Program, known: Known) -> Program:
        graph, _ = program.copy_graph()
        last = next(iter(reversed(graph.nodes)))
        results = list(last.args[0])  # type: ignore[arg-type]
        for place, port in enumerate(program.outputs):
            if port.name.endswith("small"):
                with graph.inserting_before(last):
                    results[place] = graph.call_function(torch.ops.aten.flip.default, (results[place], [-1]))
        last.args = (tuple(results),)
        return program.evolve(graph=graph)


@dataclass(frozen=True)
class SwapSmallOfParents(SwapSmall):
    """Swap two classes of every small output of a parent."""

    stage: ClassVar[Stage | Literal["any"]] = "parent"


@pytest.mark.parametrize("wrong", [SwapSmall, SwapSmallOfParents])
def test_a_large_output_hides_nothing_of_a_small_one(
    wrong: type[Pass], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parents = [fxmerge.capture(TwoScales(k).eval(), (X,), task="ab"[k]) for k in range(2)]
    said = refused(monkeypatch, parents, tmp_path, passes=wrong)
    assert said.startswith(f"pass {wrong.name} of mine 1.0 changed what") and "small differs by" in said
    checks = fxmerge.merge(parents, method="average", out=str(tmp_path / "m.onnx")).result["checks"]
    assert sorted(checks["outputs"]) == ["a.large", "a.small", "b.large", "b.small"]
    for found in checks["outputs"].values():
        assert max(found[name] for name in ("rewrite", "fold", "onnx")) < 1e-4
    for name in ("rewrite", "fold", "onnx"):
        assert checks[f"{name}_max_abs"] == max(found[name] for found in checks["outputs"].values())


# -- watching ----------------------------------------------------------------------------------------------


def test_the_passes_that_are_listed_are_those_that_run_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Watch] = []
    make = Watch.from_environment

    def remembered(*args: Any) -> Watch:
        seen.append(make(*args))
        return seen[-1]

    monkeypatch.setattr(build.Watch, "from_environment", remembered)
    options = {"method": "foldable", "steps": 2, "batch_size": 4, "pool": 16, "init": "average"}
    fxmerge.merge(nets("chunk", "slice"), **options)
    typed = [Encoder(1, "tanh", types=types, seed=types) for types in (False, True)]
    # these two are written furthest
    scaled = [factors.Net(factors.FOLDED["a number"]), factors.Net(lambda net, x: x + net.branch(x), 1)]
    for pair, sample in ((typed, TOKENS), (scaled, torch.randn(8, 6))):
        given = [fxmerge.capture(net.eval(), (sample,), task=task) for net, task in zip(pair, "ab", strict=True)]
        fxmerge.merge(given, method="average")
    ran = list(dict.fromkeys(name for watch in seen for name, _ in watch.times))
    listed = list(dict.fromkeys(name.strip() for name, _, _ in catalogue("passes")))
    assert sorted(ran) == sorted(listed)
    outer = [name for name, _, _ in catalogue("passes") if not name.startswith(" ")]
    assert [name for name in ran if name in outer] == list(dict.fromkeys(outer))


@pytest.mark.parametrize("step", ["line-up", "insert-merge", "take-apart", "train"])
def test_every_step_can_be_printed(
    step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FXMERGE_PRINT", step)
    monkeypatch.setenv("FXMERGE_VERIFY", "2")
    fxmerge.merge(nets("chunk", "slice"), method="average")
    said = capsys.readouterr().err
    assert f"--- before {step}" in said or f"--- {step}: nothing changed" in said
    if step == "insert-merge":
        assert "+%" in said and "merge(" in said


def test_verify_sees_what_happens_while_parents_are_written_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXMERGE_VERIFY", "2")
    with (
        known(monkeypatch, rewrites=late_relu),
        pytest.raises(VerificationError, match=r"take-apart changed what the program computes"),
    ):
        fxmerge.merge(nets("chunk", "slice"), method="average")


def test_nodes_of_every_program_have_their_value() -> None:
    program = nets()[0]
    graph, _ = program.copy_graph()
    made = program.evolve(graph=graph)
    for node in made.graph.nodes:
        if node.op == "placeholder":
            node.meta.pop("val")
    with pytest.raises(VerificationError, match="after grow, x has no value in its meta"):
        Watch(level=1)(Grow(), program, made, 0.0)


def test_figures_speak_of_the_parents_as_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Negate(Pass):
        """Turn every parent's choice round."""

        exact: ClassVar[bool] = False

        def run(self, program: Program, known: Known) -> Program:
            head = {n: -v if n.startswith("head") else v for n, v in program.tensors.items()}
            return program.evolve(tensors=head)

    parents = nets()
    twins = [parents[0], parents[0].evolve(task="b")]
    with known(monkeypatch, passes=Negate):
        merged = fxmerge.merge(twins, method="average", data={"a": X, "b": X})
    own = merged(X)["a"].argmax(-1)
    wanted = float((own == parents[0](X).argmax(-1)).float().mean())
    assert merged.result["tasks"][0]["agreement"] == pytest.approx(wanted) and wanted < 0.9
