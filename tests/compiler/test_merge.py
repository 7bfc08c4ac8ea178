"""The whole merge from Python: methods, starts, determinism, figures, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.errors import CaptureError, DataError, LineUpError, OptionError, VerificationError
from fxmerge.ir.program import Program
from fxmerge.output.onnx import run_onnx

Parents = Callable[[str, int], list[Program]]
QUICK = {"method": "foldable", "steps": 6, "batch_size": 8, "pool": 64, "init": "average"}


def samples_of(programs: list[Program], rows: int = 12) -> dict[str, dict[str, torch.Tensor]]:
    """More samples: the captured rows, repeated and (floats) varied."""
    torch.manual_seed(5)
    found = {}
    for program in programs:
        index = torch.arange(rows) % next(iter(program.samples.values())).shape[0]
        own = {name: value[index] for name, value in program.samples.items()}
        found[program.task] = {n: v + torch.randn_like(v) if v.is_floating_point() else v for n, v in own.items()}
    return found


@pytest.mark.parametrize("method", ["foldable", "distill"])
def test_same_seed_same_weights_bit_for_bit(parents: Parents, method: str) -> None:
    programs = parents("vit", 2)
    data = samples_of(programs)
    one, two, other = (
        fxmerge.merge(programs, data=data, seed=seed, **(QUICK | {"method": method})).state_dict() for seed in (3, 3, 4)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_parents_are_left_as_they_were(parents: Parents) -> None:
    programs = parents("vit", 2)
    before = [{name: tensor.clone() for name, tensor in program.tensors.items()} for program in programs]
    fxmerge.merge(programs, data=samples_of(programs), **(QUICK | {"method": "distill"}))
    for program, tensors in zip(programs, before, strict=True):
        assert all(torch.equal(program.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("family", "count", "options"),
    [
        ("vit", 2, {}),
        ("vit-fused", 3, {"like": 1}),
        ("bert", 2, {"rank": 2}),
        ("gpt", 2, {"width_scale": 1.5}),
        ("mlp", 3, {"inner": 0.5, "full": True}),
    ],
)
def test_training_lowers_the_loss_and_the_model_is_written(
    parents: Parents, tmp_path: Path, family: str, count: int, options: dict[str, object]
) -> None:
    programs = parents(family, count)
    out = tmp_path / "merged.onnx"
    data = samples_of(programs)
    settings = QUICK | {"steps": 40, "pool": 128, "out": str(out)} | options
    merged = fxmerge.merge(programs, data=data, **settings)
    training, checks = merged.result["training"], merged.result["checks"]
    assert training["loss_last"] < training["loss_first"]
    assert checks["all_gradients"] is True
    assert checks["fold_max_abs"] < 1e-5 and checks["onnx_max_abs"] < 1e-5
    assert [row["task"] for row in merged.result["tasks"]] == [p.task for p in programs]
    inputs = next(iter(data.values()))
    with torch.no_grad():
        mine = merged(**inputs)
    got = run_onnx(out, inputs)
    assert set(got) == {f"{p.task}.logits" for p in programs}
    for program in programs:
        torch.testing.assert_close(got[f"{program.task}.logits"], mine[program.task], rtol=1e-4, atol=1e-5)


def test_a_call_that_does_not_fit_says_what_the_model_takes(parents: Parents) -> None:
    merged = fxmerge.merge(parents("mlp", 2), method="average")
    with pytest.raises(DataError, match=r"x has shape \(3, 7\), the model takes 20 on axis 1"):
        merged(torch.randn(3, 7))


def test_a_tied_table_is_untied_and_said(parents: Parents) -> None:
    programs = parents("gpt", 2)
    assert programs[0].aliases
    merged = fxmerge.merge(programs, method="average")
    assert any("untied" in note and "wte.weight" in note for note in merged.result["notes"])


def test_auto_names_the_start_it_chose(parents: Parents) -> None:
    programs = parents("mlp", 2)
    merged = fxmerge.merge(programs, data=samples_of(programs), **(QUICK | {"init": "auto"}))
    assert merged.result["init"] in ("first", "parent1", "average", "permute", "condense")
    assert any(note.startswith(f"init {merged.result['init']}") for note in merged.result["notes"])


def test_an_unknown_start_names_the_nearest(parents: Parents) -> None:
    programs = parents("mlp", 2)
    with pytest.raises(OptionError, match="unknown init 'averag', did you mean 'average'"):
        fxmerge.merge(programs, data=samples_of(programs), **(QUICK | {"init": "averag"}))


def test_a_map_without_gradient_is_a_failed_verification(parents: Parents, monkeypatch: pytest.MonkeyPatch) -> None:
    from fxmerge.methods import foldable, student

    class Blind(foldable.GradientWatch):
        @property
        def missing(self) -> list[str]:
            return ["maps.m0 of parent 1"]

    monkeypatch.setattr(foldable, "GradientWatch", Blind)
    monkeypatch.setattr(student, "connected", lambda program, names: set())
    programs = parents("mlp", 2)
    with pytest.raises(VerificationError, match=r"no gradient reached maps.m0 of parent 1"):
        fxmerge.merge(programs, data=samples_of(programs), **QUICK)


def test_parents_may_name_one_input_differently(parents: Parents) -> None:
    from dataclasses import replace

    one, two = parents("vit", 2)
    port = replace(two.inputs[0], name="pixels")
    two = two.evolve(inputs=(port,), samples={"pixels": two.samples["x"]})
    merged = fxmerge.merge([one, two], **(QUICK | {"batch_size": 4}))
    assert [p.name for p in merged.program.inputs] == ["x"]


def test_of_unlabeled_data_only_the_inputs_are_used(parents: Parents, tmp_path: Path) -> None:
    import numpy as np

    programs = parents("mlp", 2)
    data = samples_of(programs)
    paths = {}
    for labels in (0, 1):
        for task, inputs in data.items():
            path = tmp_path / f"{task}{labels}.npz"
            np.savez(path, x=inputs["x"].numpy(), y=np.full(len(inputs["x"]), labels))
            paths[labels, task] = str(path)
    results = [
        fxmerge.merge(programs, data={task: paths[labels, task] for task in data}, **QUICK).state_dict()
        for labels in (0, 1)
    ]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("options", [{"method": "average"}, {"method": "foldable", "steps": 2, "batch_size": 4}])
def test_outputs_as_long_as_the_data_says_are_refused_with_their_place(options: dict[str, Any]) -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(5, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(x[x.sum(-1) > 0])

    parents = [fxmerge.capture(Picks().eval(), (torch.randn(8, 5),), task=task) for task in "ab"]
    with pytest.raises(CaptureError, match=r"depends on what the inputs hold.*test_merge\.py"):
        fxmerge.merge(parents, **options)


def test_rows_picked_by_what_the_data_holds_merge_too() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.head = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            kept = x.sum(-1) > 0
            y = x.clone()
            y[kept] = self.inner(x[kept])
            return self.head(y)

    nets = [Picks().eval() for _ in "ab"]
    parents = [fxmerge.capture(net, (torch.randn(8, 5),), task=task) for net, task in zip(nets, "ab", strict=True)]
    mean = Picks().eval()
    with torch.no_grad():
        for own, first, second in zip(*(net.parameters() for net in (mean, *nets)), strict=True):
            own.copy_((first + second) / 2)
        for layer, net in zip((mean.head,) * 2, nets, strict=True):  # heads stay per task
            layer.load_state_dict(net.head.state_dict())
            x = torch.randn(9, 5)
            found = fxmerge.merge(parents, method="average")(x)[parents[nets.index(net)].task]
            torch.testing.assert_close(found, mean(x), rtol=1e-4, atol=1e-5)


class Masked(nn.Module):
    """Attention over tokens, whose mask is boolean or a low number that is added."""

    def __init__(self, seed: int, low: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.qkv, self.head, self.low = nn.Embedding(9, 8), nn.Linear(8, 24), nn.Linear(8, 3), low

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        q, k, v = self.qkv(self.tokens(ids) * keep[..., None].ne(7)).unflatten(2, (3, 1, 8)).permute(2, 0, 3, 1, 4)
        mask = ((1.0 - keep.float()) * -1e9 if self.low else keep.ne(0))[:, None, None]
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, mask)[:, 0].mean(1))


def test_what_the_given_samples_show_of_a_mask_holds_in_their_merge() -> None:
    ids, keep = torch.randint(9, (4, 5)), torch.ones(4, 5, dtype=torch.long).tril(1)
    programs = [fxmerge.capture(Masked(n, bool(n)), {"ids": ids, "keep": keep}, task=f"t{n}") for n in (0, 1)]
    bare = [program.evolve(samples={}) for program in programs]
    with pytest.raises(LineUpError, match="do not line up"):
        fxmerge.merge(bare, method="average")
    merged = fxmerge.merge(bare, method="average", data={"ids": ids, "keep": keep})
    assert "keep is taken to hold zeros and ones, and a one for every row" in merged.result["notes"]


def test_a_module_that_is_not_traced_is_refused_with_what_traces_it() -> None:
    with pytest.raises(
        CaptureError, match=r"parent 1 is a Linear, which is not traced\ngive programs, fxmerge.capture"
    ):
        fxmerge.merge(["a.pt", nn.Linear(2, 2)], method="average")  # type: ignore[list-item]


def test_arrays_are_samples_as_in_a_file() -> None:
    nets = [nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2)]
    programs = [fxmerge.capture(net, (torch.randn(2, 2),), task=f"t{n}") for n, net in enumerate(nets)]
    rows = torch.randn(5, 2).double().numpy()
    for data in (rows, {"input": rows}, {"t0": rows, "t1": torch.randn(5, 2)}, torch.from_numpy(rows)):
        assert fxmerge.merge(programs, data=data, method="condense").result["tasks"][0]["samples"] == 5
    with pytest.raises(DataError, match="the samples of t0: input holds int64 values"):
        fxmerge.merge(programs, data=rows.astype("int64"), method="condense")
