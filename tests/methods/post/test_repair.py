"""Every unit has the mean and the spread that it has in the parents, behind units that have theirs already."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.ir.program import Program

WHERE = ("first", "norm", "last")


class Net(nn.Module):
    """A convolution with a bias, one without in front of a norm, and a matrix without any."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.norm = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.last, self.head = nn.Linear(5, 7, bias=False), nn.Linear(7, 3)
        for each in (self.norm.running_mean, self.norm.weight, self.norm.bias):
            nn.init.normal_(each)  # type: ignore[arg-type]
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        logits: Tensor = self.head(torch.relu(self.last(y.mean((2, 3)))))
        return logits


def units(net: Net, x: Tensor) -> dict[str, Tensor]:
    """(places, units) of what `WHERE` writes."""
    found = {}
    for name in WHERE:
        net.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: found.update({name: y.detach().movedim(1, -1).flatten(0, -2)})
        )
    net(x)
    return found


def test_means_and_spreads_are_the_parents() -> None:
    torch.manual_seed(5)
    data = {"a": torch.randn(20, 2, 9, 9).double(), "b": 2 * torch.randn(30, 2, 9, 9).double() + 1}
    programs = [fxmerge.capture(Net(k), (data["a"][:4],), task="ab"[k]) for k in range(2)]
    merged = fxmerge.merge(programs, data=data, method="average", post="repair")
    net = Net(0)
    net.load_state_dict({n: v for n, v in merged.state_dict().items() if n[:2] not in ("a.", "b.")}, strict=False)
    x = torch.cat(list(data.values()))
    ours, theirs = units(net, x), [units(Net(k), x) for k in range(2)]
    for name in WHERE:
        spread = (theirs[0][name].std(0) + theirs[1][name].std(0)) / 2
        torch.testing.assert_close(ours[name].std(0), spread, atol=1e-9, rtol=1e-9)
        if name != "last":
            mean = (theirs[0][name].mean(0) + theirs[1][name].mean(0)) / 2
            torch.testing.assert_close(ours[name].mean(0), mean, atol=1e-9, rtol=1e-9)
    (did,) = merged.result["post"]
    assert did["left"] == {"mean of last.weight": "there is no bias: only the spread is set"}
    assert {name: each["units"] for name, each in did["changed"].items()} == {
        "first.weight": 6, "second.weight": 5, "last.weight": 7
    }  # fmt: skip
    assert merged.result["checks"]["fold_max_abs"] < 1e-9


def test_equal_parents_in_another_order_need_no_repair() -> None:
    x = torch.randn(64, 2, 9, 9).double()
    net, other = Net(0), Net(0)
    order = torch.randperm(6)
    with torch.no_grad():
        other.first.weight.copy_(other.first.weight[order])
        other.first.bias.copy_(net.first.bias[order])  # type: ignore[union-attr,index]
        other.second.weight.copy_(other.second.weight[:, order])
    programs = [fxmerge.capture(each, (x[:4],), task=task) for each, task in ((net, "a"), (other, "b"))]
    merged = fxmerge.merge(programs, data={"a": x, "b": x}, method="permute", post="repair")
    torch.testing.assert_close(merged(x)["a"], net(x), atol=1e-5, rtol=1e-5)
    for facts in merged.result["post"][0]["changed"].values():
        assert facts["scale"] == pytest.approx(1, abs=1e-3)


def test_heads_and_streams_are_repaired_where_maps_take_shares(parents: Callable[[str, int], list[Program]]) -> None:
    merged = fxmerge.merge(parents("vit-fused", 2), method="permute{on=weights}", post=["repair", "temperature"])
    assert len(merged.result["post"][0]["changed"]) > 6
    assert merged.result["checks"]["fold_max_abs"] < 1e-4


def test_bases_of_streams_and_trained_weights_are_left(parents: Callable[[str, int], list[Program]]) -> None:
    programs = parents("vit", 2)
    solved = fxmerge.merge(programs, method="condense", post="repair").result["post"][0]
    assert "its units mix parents' units, or never vary" in solved["left"].values() and solved["changed"]
    trained = fxmerge.merge(programs, method="distill{steps=2,init=average}", post="repair")
    assert list(trained.result["post"][0]["left"]) == ["all units"] and not trained.result["post"][0]["changed"]
