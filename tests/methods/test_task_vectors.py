"""Task arithmetic, TIES and DARE against tensors computed by hand, and what they need said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from benchmarks.models import MLP
from fxmerge.errors import LineUpError, OptionError
from fxmerge.methods.ties import elected, trimmed
from tests.small_nets import TinyViT


def tuned(base: nn.Module, head: str, *classes: int, by: float = 0.1) -> list[nn.Module]:
    """Models of one base, every weight moved, each with a head of its own."""
    found = []
    for number, count in enumerate(classes):
        torch.manual_seed(10 + number)
        model = copy.deepcopy(base)
        for parameter in model.parameters():
            parameter.data.add_(by * torch.randn_like(parameter))
        setattr(model, head, nn.Linear(getattr(model, head).in_features, count))
        found.append(model.eval())
    return found


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module, list[nn.Module], list[Any]]:
    torch.manual_seed(0)
    base, x = MLP(8, (16, 16), 4).eval(), torch.randn(24, 8)
    path = fxmerge_saved(base, tmp_path_factory.mktemp("base") / "base.pt", x)
    models = tuned(base, "head", 3, 4, 5)
    return path, base, models, [fxmerge.capture(m, (x,), task=f"t{i}") for i, m in enumerate(models)]


def fxmerge_saved(model: nn.Module, path: Path, x: Tensor) -> str:
    fxmerge.save(model, str(path), inputs=(x[:2],), task="base")
    return str(path)


def trunk(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if not name.startswith("head")}


def assert_trunk(merged: Any, wanted: Callable[[str], Tensor], model: nn.Module) -> None:
    found = merged.state_dict()
    for name in trunk(model):
        torch.testing.assert_close(found[name], wanted(name).float(), atol=2e-6, rtol=2e-6, msg=name)


def test_task_arithmetic_is_the_base_and_the_scaled_sum_of_changes(nets: Any) -> None:
    path, base, models, parents = nets
    merged = fxmerge.merge(parents, method="task-arithmetic{scale=0.7}", base=path)
    zero, own = trunk(base), [trunk(model) for model in models]
    assert_trunk(merged, lambda n: zero[n] + 0.7 * sum(each[n] - zero[n] for each in own), base)
    assert merged.result["merged"]["averaged"] == 0


def test_its_scale_is_chosen_by_held_back_inputs_or_as_published(nets: Any) -> None:
    path, base, models, parents = nets
    same = [parents[0].evolve(task=task) for task in "ab"]
    merged = fxmerge.merge(same, method="task-arithmetic", base=path)
    assert any("task-arithmetic: scale 0.5, the best score" in note for note in merged.result["notes"])
    assert_trunk(merged, lambda n: trunk(models[0])[n], base)
    bare = [program.evolve(samples={}) for program in same]
    merged = fxmerge.merge(bare, method="task-arithmetic", base=path)
    zero = trunk(base)
    assert_trunk(merged, lambda n: zero[n] + 0.8 * (trunk(models[0])[n] - zero[n]), base)


def test_without_a_base_task_arithmetic_is_the_average_and_says_so(nets: Any) -> None:
    _, base, models, parents = nets
    merged = fxmerge.merge(parents, method="task-arithmetic")
    assert_trunk(merged, lambda n: sum(trunk(m)[n] for m in models) / 3, base)
    assert "task-arithmetic without --base counts" in (notes := " ".join(merged.result["notes"]))
    assert "where they cancel: it is the average" in notes


def test_ties_by_hand() -> None:
    changes = [
        {"a": torch.tensor([4.0, -3.0, 0.1]), "b": torch.tensor([0.2, 2.0])},
        {"a": torch.tensor([-1.0, -5.0, 3.0]), "b": torch.tensor([0.3, -2.0])},
    ]
    kept = [trimmed(change, 0.6) for change in changes]
    assert [each["a"].tolist() for each in kept] == [[4, -3, 0], [0, -5, 3]]
    assert [each["b"].tolist() for each in kept] == [[0, 2], [0, -2]]
    sides = torch.tensor([[4.0, -3.0, 0.0, 2.0], [-1.0, -5.0, 3.0, -2.0]])
    assert elected(sides, torch.tensor(-1.0)).tolist() == [4, -4, 3, -2]


@pytest.mark.parametrize("with_base", [True, False])
def test_ties_of_the_whole_trunk(nets: Any, with_base: bool) -> None:
    path, base, models, parents = nets
    how = {"base": path} if with_base else {}
    merged = fxmerge.merge(parents, method="ties{density=0.3,scale=1.5}", **how)
    own = [{name: value.double() for name, value in trunk(model).items()} for model in models]
    zero = trunk(base) if with_base else {n: torch.stack([o[n] for o in own]).mean(0) for n in own[0]}
    flat = torch.stack([torch.cat([(o[n] - zero[n]).reshape(-1) for n in zero]) for o in own])
    for row in flat:
        row[row.abs().argsort()[: len(row) - round(0.3 * len(row))]] = 0
    total = torch.where(
        flat.sum(0).abs() < 1e-9, 0.0, flat.sum(0)
    ).sign()  # three that cancel have no sign of their own
    flat[flat.sign() != torch.where(total == 0, total.sum().sign(), total)] = 0
    mean = 1.5 * flat.sum(0) / (flat != 0).sum(0).clamp(min=1)
    parts = dict(zip(zero, torch.split(mean, [value.numel() for value in zero.values()]), strict=True))
    assert_trunk(merged, lambda n: zero[n] + parts[n].reshape(zero[n].shape), base)


def test_dare_keeps_a_share_and_rescales_it(nets: Any) -> None:
    path, base, models, parents = nets
    merged = fxmerge.merge(parents[:2], method="dare{density=0.25,scale=1}", base=path)
    found, zero, own = merged.state_dict(), trunk(base), [trunk(model) for model in models[:2]]
    values = torch.cat([(found[n] - zero[n]).reshape(-1) for n in zero])
    a, b = (4 * torch.cat([(o[n] - zero[n]).reshape(-1) for n in zero]) for o in own)
    kinds = [torch.zeros_like(a), a, b, a + b]
    which = torch.stack([(values - kind).abs() for kind in kinds]).argmin(0)
    nearest = torch.stack(kinds).gather(0, which[None])[0]
    assert torch.allclose(values, nearest, atol=1e-5)
    shares = torch.bincount(which, minlength=4) / len(which)
    assert torch.allclose(shares, torch.tensor([9, 3, 3, 1]) / 16, atol=0.03)


@pytest.mark.parametrize(
    "method", ["task-arithmetic{scale=0.5}", "ties{scale=1,density=1}", "dare{scale=0.5,density=1}"]
)
def test_equal_changes_give_that_model_again(nets: Any, method: str) -> None:
    path, base, models, parents = nets
    merged = fxmerge.merge([parents[0], parents[0].evolve(task="again")], method=method, base=path)
    assert_trunk(merged, lambda n: trunk(models[0])[n], base)


def test_merged_weights_are_a_start_for_training(nets: Any) -> None:
    path, _, _, parents = nets
    how: dict[str, Any] = {"steps": 20, "batch_size": 8, "pool": 32, "augment": "none", "lr": 1e-3}
    merged = fxmerge.merge(parents, init="ties+average", base=path, **how)
    tried = {each["start"] for each in merged.result["training"]["chosen"]["tried"]}
    assert tried == {"ties", "average"}
    assert fxmerge.merge(parents, method="distill", init="ties", **how).result["init"] == "ties"
    with pytest.raises(OptionError, match="maps cannot hold what ties gives: it merges folded weights"):
        fxmerge.merge(parents, method="foldable", init="ties", **how)


def test_what_does_not_fit_is_refused(nets: Any, tmp_path: Path) -> None:
    path, _, _, parents = nets
    with pytest.raises(OptionError, match=r"ties: density cannot be '1\.5'"):
        fxmerge.merge(parents, method="ties{density=1.5}")
    with pytest.raises(OptionError, match="average has no option 'base'"):
        fxmerge.merge(parents, method="average", base=path)
    other = fxmerge_saved(TinyViT(), tmp_path / "vit.pt", torch.randn(2, 1, 8, 8))
    with pytest.raises(LineUpError, match=r"--base .*vit\.pt does not line up with t0"):
        fxmerge.merge(parents, method="ties", base=other)
    wide = fxmerge.capture(MLP(8, (16, 20), 4).eval(), (torch.randn(2, 8),), task="wide")
    with pytest.raises(OptionError, match="ties takes parents of one shape, and these differ in width"):
        fxmerge.merge([parents[0], wide], method="ties")
