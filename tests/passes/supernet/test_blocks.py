"""A trunk that ends behind a block: what follows stands once per task, with that parent's own weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxmerge
import passes
from fxmerge.capturing import capture
from fxmerge.errors import OptionError
from fxmerge.ir.program import Program
from fxmerge.output.onnx import run_onnx
from passes.supernet.blocks import Blocks
from passes.supernet.sites import SitesOf

Parents = Callable[[str, int], list[Program]]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Residual(width), Residual(width))
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def resnets(parents: Parents) -> list[Program]:
    found = []
    for task, width in (("a", 8), ("b", 10)):
        torch.manual_seed(width)
        found.append(capture(ResNet(width).eval(), (torch.randn(6, 3, 8, 8),), task=task))
    return found


NETS: dict[str, Callable[[Parents], list[Program]]] = {
    "vit": lambda parents: parents("vit", 3),
    "bert": lambda parents: parents("bert", 2),
    "gpt": lambda parents: parents("gpt", 2),
    "resnet": resnets,
}
HALF = "blocks.0.output"
"""The last of attention in a block."""
BLOCKS = {
    "vit": ["patch", "blocks.0", "blocks.1"],
    "bert": ["tokens", "blocks.0", "blocks.1", "pooler"],
    "gpt": ["wte", "blocks.0", "blocks.1"],
    "resnet": ["conv", "layer1.0", "layer1.1"],
}


def blocks_of(program: Program) -> list[str]:
    return [block["name"] for block in fxmerge.inspect(program)["blocks"]]


def gap(merged: fxmerge.Merged, parent: Program, inputs: dict[str, Tensor]) -> float:
    with torch.no_grad():
        mine, own = merged.program.run(inputs), parent.run(inputs)
    return max(float((mine[f"{parent.task}.{name}"] - value).abs().max()) for name, value in own.items())


@pytest.mark.parametrize("net", NETS)
def test_what_shares_nothing_loses_nothing(net: str, parents: Parents) -> None:
    programs = NETS[net](parents)
    merged = fxmerge.merge(programs, method="average", share_until="input")
    inputs = dict(programs[0].samples)
    assert all(gap(merged, parent, inputs) <= 1e-5 for parent in programs)
    assert merged.program.count() == sum(parent.count() for parent in programs)
    assert merged.result["merged"]["apart"] == tuple(blocks_of(programs[0]))


@pytest.mark.parametrize("method", ["auto", "foldable", "permute"])
def test_every_method_leaves_the_parents_as_they_are_where_nothing_is_shared(parents: Parents, method: str) -> None:
    programs = NETS["vit"](parents)
    data = {program.task: dict(program.samples) for program in programs}
    merged = fxmerge.merge(programs, data=data, method=method, share_until="input")
    assert any(note.startswith("the tasks share nothing") for note in merged.result["notes"])
    for program in programs:
        (answer,) = program.run(dict(program.samples)).values()
        found = merged(*program.samples.values())[program.task]
        torch.testing.assert_close(found, answer)


@pytest.mark.parametrize("net", ["bert", "resnet"])
def test_sharing_all_blocks_is_the_ordinary_merge(net: str, parents: Parents) -> None:
    programs = NETS[net](parents)
    last = blocks_of(programs[0])[-1]
    one = fxmerge.merge(programs, method="average", share_until=last)
    two = fxmerge.merge(programs, method="average")
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert one.result["merged"]["apart"] == ()


@pytest.mark.parametrize("net", ["vit", "bert", "resnet"])
def test_a_branch_is_written_as_onnx_with_the_parents_own_weights(net: str, parents: Parents, tmp_path: Path) -> None:
    programs = NETS[net](parents)
    assert blocks_of(programs[0]) == BLOCKS[net]
    out = tmp_path / "merged.onnx"
    merged = fxmerge.merge(programs, method="average", share_until=BLOCKS[net][1], out=str(out))
    facts, weights = merged.result["merged"], merged.state_dict()
    assert facts["apart"] == tuple(BLOCKS[net][2:]) and facts["shared_until"] == BLOCKS[net][1]
    assert facts["parameters"] == sum(weights[name].numel() for name in merged.program.parameters)
    assert facts["size"] == round(facts["parameters"] / programs[0].count(), 4)
    for parent in programs:
        own = [name for name in parent.parameters if name.startswith(f"{BLOCKS[net][2]}.")]
        kept = [name for name in own if torch.equal(weights[f"{parent.task}.{name}"], parent.tensors[name])]
        assert own and len(kept) >= len(own) - 3  # those that read the trunk took the map in
    assert not any(name.startswith(f"{BLOCKS[net][2]}.") for name in weights)
    inputs = {name: value[:4] for name, value in programs[0].samples.items()}
    got = run_onnx(out, inputs)
    with torch.no_grad():
        mine = merged.program.run(inputs)
    for name, value in mine.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


def test_stems_and_tails_apart_are_the_parents() -> None:
    programs = []
    for task, inputs in (("a", 12), ("b", 20)):
        torch.manual_seed(inputs)
        net = nn.Sequential(nn.Linear(inputs, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3))
        programs.append(capture(net, (torch.randn(5, inputs),), task=task))
    merged = fxmerge.merge(programs, method="average", share_until="0")
    inputs = {f"{p.task}.{name}": value for p in programs for name, value in p.samples.items()}
    with torch.no_grad():
        mine = merged.program.run(inputs)
        for parent in programs:
            for name, value in parent.run(dict(parent.samples)).items():
                torch.testing.assert_close(mine[f"{parent.task}.{name}"], value, rtol=1e-5, atol=1e-5)


def test_a_part_of_a_block_may_be_named(parents: Parents) -> None:
    programs = parents("vit", 2)
    first = passes.normalize(programs[0])
    blocks = Blocks(first.get(SitesOf(passes.BUILTIN.rules)))
    sizes = [len(blocks.tail(name)) for name in ("input", "patch", HALF, "blocks.0", "blocks.1")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert blocks.tail("1") == blocks.tail("blocks.0")
    assert blocks.tail("blocks.1") == blocks.sites.tail


def test_an_unknown_block_names_those_there_are(parents: Parents) -> None:
    with pytest.raises(OptionError, match=r"--share-until block\.0: a has no such block, did you mean 'blocks\.0'"):
        fxmerge.merge(parents("vit", 2), method="average", share_until="block.0")
