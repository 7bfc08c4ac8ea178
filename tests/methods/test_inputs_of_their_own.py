"""What is solved for parents with inputs of their own: one trunk, behind every task's stem and from its own rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from benchmarks.models import ViT
from fxmerge.methods.one_trunk import OneTrunk
from passes.rules import BUILTIN
from passes.supernet.insert_merge import insert_merge

WIDTH, FEATURES = 12, {"a": 5, "b": 8}
LAYERS = ("first", "second")


class Net(nn.Module):
    """A stem for so many features, two layers, and a head."""

    def __init__(self, features: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.first = nn.Linear(features, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for layer in (self.first, self.second):
            x = layer(x).relu()
        found: Tensor = self.head(x)
        return found


def pair() -> dict[str, Net]:
    return {task: Net(features, seed) for seed, (task, features) in enumerate(FEATURES.items())}


def inputs(rows: int = 200) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(7)
    return {task: torch.randn(rows, features, generator=draw) for task, features in FEATURES.items()}


def merged(nets: Mapping[str, nn.Module], data: Mapping[str, Tensor], method: str, **more: Any) -> Any:
    programs = [fxmerge.capture(net.eval(), (data[task][:4],), task=task) for task, net in nets.items()]
    return fxmerge.merge(programs, data=dict(data), method=method, seed=0, **more)


def miss(found: Any, nets: Mapping[str, nn.Module], data: Mapping[str, Tensor]) -> float:
    given = found(*data.values())
    with torch.no_grad():
        wanted = {task: net(data[task]) for task, net in nets.items()}
    return max(float((given[task] - y).abs().max() / y.abs().max()) for task, y in wanted.items())


def test_what_fits_beside_each_other_is_kept_by_the_closed_form() -> None:
    """Half of the units of every layer do nothing, in each parent others: the rest of both has its place."""
    nets, data = pair(), inputs()
    with torch.no_grad():
        for net in nets.values():
            for layer in (net.first, net.second):
                layer.bias[torch.randperm(WIDTH)[WIDTH // 2 :]] = -50.0
    assert miss(merged(nets, data, "condense{ridge=1e-8}"), nets, data) < 1e-5
    assert miss(merged(nets, data, "average"), nets, data) > 1e-1


@pytest.mark.parametrize(
    ("method", "post", "ordered"),
    [("permute", [], True), ("permute", ["repair"], True), ("pleas{ridge=0}", [], True), ("regmean", [], False)],
)
def test_one_trunk_behind_unrelated_stems_is_found(method: str, post: list[str], ordered: bool) -> None:
    """The other parent has the same trunk, its units in another order."""
    nets, data = pair(), inputs()
    into = torch.arange(WIDTH)
    with torch.no_grad():
        for name in (*LAYERS, "head"):
            mine, other = nets["a"].get_submodule(name), nets["b"].get_submodule(name)
            assert isinstance(mine, nn.Linear) and isinstance(other, nn.Linear)
            out = torch.randperm(WIDTH) if ordered and name != "head" else torch.arange(len(mine.bias))
            other.weight.copy_(mine.weight[out][:, into])
            other.bias.copy_(mine.bias[out])
            into = out
    found = merged(nets, data, method, post=post)
    assert miss(found, nets, data) < 1e-5
    assert not ordered or "permutation" in found.result["merged"]["groups"].values()


def units(net: nn.Module, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    for name in LAYERS:
        net.get_submodule(name).register_forward_hook(lambda _, __, y: found.append(y.detach().double()))
    net(x)
    return found


def test_units_get_the_statistics_that_their_parents_have_on_their_own_rows() -> None:
    nets, data = pair(), inputs(20)  # too few to hold any back
    found = merged(nets, data, "average", post=["repair"])
    (did,) = found.result["post"]
    assert set(did["changed"]) == {"first.weight", "second.weight"} and not did["left"]
    state, ours = found.state_dict(), []
    for task, net in nets.items():
        copy = Net(FEATURES[task], 0)
        own = {n: state.get(f"{task}.{n}", state.get(n)) for n in net.state_dict()}
        copy.load_state_dict({n: value for n, value in own.items() if value is not None}, strict=True)
        ours.append(units(copy, data[task]))
    theirs = [units(net, data[task]) for task, net in nets.items()]
    for mine, wanted in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        for of in (lambda rows: rows.mean(0), lambda rows: rows.std(0, correction=0)):
            torch.testing.assert_close(sum(map(of, mine)), sum(map(of, wanted)), atol=1e-4, rtol=1e-4)


def images(size: int, channels: int, seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    net = ViT(image=size, patch=4, width=12, heads=2, hidden=16, depth=1, classes=4, channels=channels)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval(), torch.randn(96, channels, size, size)


def test_transformers_of_images_of_other_sizes_are_solved_through_their_own_stems() -> None:
    made = {"a": images(8, 1, 0), "b": images(12, 3, 1)}
    nets, data = {task: net for task, (net, _) in made.items()}, {task: x for task, (_, x) in made.items()}
    r2 = {}
    for method in ("average", "condense", "pleas"):
        result = merged(nets, data, method).result
        r2[method] = min(task["feature_r2"] for task in result["tasks"])
        assert result["checks"]["fold_max_abs"] < 1e-5
        balanced = any(note.startswith("condense: parents at ") for note in result["notes"])
        assert balanced == (method == "condense")  # chosen on each task's own inputs, as where they are the same
    assert r2["condense"] > 0.2 and r2["condense"] > r2["average"] + 1 and r2["pleas"] > r2["average"]


def test_a_value_is_that_of_the_copy_behind_the_tasks_own_stem() -> None:
    made = {"a": images(8, 1, 0), "b": images(12, 3, 1)}
    programs = [fxmerge.capture(net, (x[:4],), task=task) for task, (net, x) in made.items()]
    net = insert_merge(programs, BUILTIN)
    trunk = OneTrunk.of(net)
    assert trunk is not None and OneTrunk.of(insert_merge([programs[0], programs[0]], BUILTIN)) is None
    assert len(list(trunk.program.graph.nodes)) < 0.75 * len(list(net.program.graph.nodes))
    for node, copies in trunk.copies.items():
        assert [trunk.real(node, k) for k in range(2)] == list(copies) and len(set(copies)) == 2
        assert len({copy.target for copy in copies if copy.op == "call_function"}) < 2
    assert all(trunk.back[copy] is node for node, copies in trunk.copies.items() for copy in copies)
