"""Running statistics are those of what really comes in, behind statistics that are set already."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.coupling import RuleSet, couples
from fxmerge.errors import DataError, OptionError
from fxmerge.methods.post.batchnorm import statistics
from passes.rules import BUILTIN


class Net(nn.Module):
    """Two norms, one behind the other, so that the second one's inputs depend on the first one's statistics."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm = nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 3)
        for each in (self.norm, self.last):
            nn.init.normal_(each.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(each.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        logits: Tensor = self.head(torch.relu(self.last(self.second(y))).mean((2, 3)))
        return logits


def programs(x: Tensor) -> list[fxmerge.Program]:
    return [fxmerge.capture(Net(k).eval(), (x[:4],), task="ab"[k]) for k in range(2)]


def test_statistics_are_those_of_the_merged_inputs_of_all_tasks() -> None:
    torch.manual_seed(5)
    data = {"a": torch.randn(20, 2, 8, 8), "b": torch.randn(30, 2, 8, 8) * 2 + 1}
    merged = fxmerge.merge(programs(data["a"]), data=data, method="average", post="batchnorm")
    found = {name: value.double() for name, value in merged.state_dict().items() if not name.startswith(("a.", "b."))}
    net = Net(0).double()
    net.load_state_dict(found, strict=False)
    net.eval()
    with torch.no_grad():
        y = net.first(torch.cat(list(data.values())).double())
        for norm, after in ((net.norm, net.second), (net.last, None)):
            mean, variance = y.mean((0, 2, 3)), y.movedim(1, 0).flatten(1).var(1)
            torch.testing.assert_close(norm.running_mean, mean, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(norm.running_var, variance, atol=1e-5, rtol=1e-5)
            y = torch.relu(norm(y)) if after is None else after(torch.relu(norm(y)))
    (did,) = merged.result["post"]
    assert set(did["changed"]) == {f"{n}.running_{m}" for n in ("norm", "last") for m in ("mean", "var")}
    assert merged.result["checks"]["fold_max_abs"] < 1e-4


def test_what_statistics_are_of_is_the_rules_to_say() -> None:
    (program, _) = programs(torch.randn(4, 2, 8, 8))
    program = program.only([program.outputs[0].name])
    found = list(statistics(program.graph.nodes, BUILTIN))
    assert {(each.name, each.moment) for each in found} == {
        (f"{n}.running_{m}", moment) for n in ("norm", "last") for m, moment in (("mean", "mean"), ("var", "variance"))
    }
    names = {n.target.name().replace("::", ".") for n in program.graph.nodes if "batch_norm" in str(n.target)}
    silent = [couples(*sorted(names | {f"{n}.default" for n in names}), "n c ..., c, c, c, c -> n c ...")]
    assert not list(statistics(program.graph.nodes, RuleSet(tuple(silent))))


def test_steps_need_samples_and_have_names() -> None:
    bare = [program.evolve(samples={}) for program in programs(torch.randn(4, 2, 8, 8))]
    with pytest.raises(DataError, match="--post batchnorm looks at samples"):
        fxmerge.merge(bare, method="average", post="batchnorm")
    with pytest.raises(OptionError, match="did you mean 'temperature'"):
        fxmerge.merge(bare, method="average", post="temprature")
    assert fxmerge.MergeConfig.of(post=["batchnorm, temperature"]).post == ("batchnorm", "temperature")


class Stemmed(nn.Module):
    """A trunk behind a stem for so many channels, each with a norm."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.before = nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6)
        self.first, self.norm, self.head = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(self.stem(x)))
        logits: Tensor = self.head(torch.relu(self.norm(self.first(x))).mean((2, 3)))
        return logits


def test_tasks_with_inputs_of_their_own_are_seen_on_their_own_samples() -> None:
    torch.manual_seed(6)
    data = {"a": torch.randn(20, 2, 8, 8), "b": torch.randn(30, 3, 6, 6) * 2 + 1}
    parents = [
        fxmerge.capture(Stemmed(x.shape[1], k).eval(), (x[:4],), task=task) for k, (task, x) in enumerate(data.items())
    ]
    merged = fxmerge.merge(parents, data=data, method="average", post="batchnorm")
    state, given = merged.state_dict(), []
    for task, x in data.items():
        net = Stemmed(x.shape[1], 0)
        own = {n: state.get(f"{task}.{n}", state.get(n)) for n in net.state_dict()}
        net.load_state_dict({n: value for n, value in own.items() if value is not None}, strict=False)
        net.eval().double()
        with torch.no_grad():
            y = net.stem(x.double())
            given.append(net.first(torch.relu(net.before(y))).movedim(1, 0).flatten(1))
        if f"{task}.before.running_mean" in state:  # a stem of its own sees its own samples
            torch.testing.assert_close(net.before.running_mean, y.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    together = torch.cat(given, 1)
    for name, wanted in (("mean", together.mean(1)), ("var", together.var(1))):
        torch.testing.assert_close(state[f"norm.running_{name}"].double(), wanted, atol=1e-4, rtol=1e-4)
    (did,) = merged.result["post"]
    assert not did["left"] and "norm.running_mean" in did["changed"]
