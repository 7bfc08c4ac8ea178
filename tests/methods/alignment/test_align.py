"""Learned elements: in their groups whatever their parameters are, and never worse than what they start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from fxmerge.ir.program import Program
from fxmerge.methods import align
from fxmerge.methods.alignment.learned import Elements, cayley
from fxmerge.methods.alignment.maps import aligned
from fxmerge.methods.alignment.matches import centred_rotation
from fxmerge.methods.alignment.norms import turning
from fxmerge.methods.average import AVERAGE
from fxmerge.methods.base import Job, Outcome
from tests.methods.test_condense import parent


def drawn(elements: Elements, seed: int = 0) -> Elements:
    """Elements at random places of their groups."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in elements.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return elements


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What the merges of a test gave to the method, which did nothing."""
    found: list[Job] = []

    def call(self: align.Align, job: Job) -> Outcome:
        found.append(job)
        return AVERAGE(job)

    monkeypatch.setattr(align.Align, "__call__", call)
    return found


@pytest.mark.parametrize(("family", "count"), [("vit-fused", 2), ("resnet", 2), ("mlp", 3)])
def test_every_element_leaves_every_parent_as_it_is(
    family: str, count: int, jobs: list[Job], double: Callable[[Program], Program]
) -> None:
    x: dict[str, Tensor] = {}
    parents = []
    for k in range(count):
        program, x = parent(family, k + 1, "abc"[k])
        parents.append(program)
    fxmerge.merge(parents, data=x, method="align")
    net = jobs[0].supernet
    wide = dataclasses.replace(net, program=double(net.program), parents=tuple(double(p) for p in net.parents))
    job = dataclasses.replace(jobs[0], supernet=wide, pool=None)
    for _, block in job.supernet.maps():
        block.dtype = torch.float64
    with torch.no_grad():
        alignment = drawn(Elements(align.begun("permute", job, turning(job.supernet))))()
    given = {name: value[:8].double() if value.is_floating_point() else value[:8] for name, value in x.items()}
    for k, program in enumerate(parents):
        alone = aligned(alignment, "fixed", weights=[float(k == i) for i in range(count)]).program
        found = alone.run(dict(zip(job.supernet.inputs[k], given.values(), strict=True)))
        for name, value in double(program).run(given).items():
            torch.testing.assert_close(found[f"{program.task}.{name}"], value, rtol=1e-9, atol=1e-9)


def test_cayley_turns() -> None:
    turn = cayley(torch.randn(3, 5, 5, dtype=torch.float64))
    torch.testing.assert_close(turn @ turn.mT, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))
    assert torch.equal(cayley(torch.zeros(4, 4)), torch.eye(4))


def turned(program: Program, seed: int) -> Program:
    """The same function, its stream turned beside the vector of ones: norms have no scale and no shift."""
    generator = torch.Generator().manual_seed(seed)
    turn = centred_rotation(torch.randn(12, 12, generator=generator, dtype=torch.float64)).float()
    tensors = dict(program.tensors)
    for name in program.parameters:
        value = tensors[name].detach()
        if name.endswith(("stem.weight", "stem.bias", "down.weight", "down.bias")):
            tensors[name] = turn @ value
        elif name.endswith(("up.weight", "head.weight")):
            tensors[name] = value @ turn.T
    return dataclasses.replace(program.evolve(tensors=tensors), task="b")


class Stream(nn.Module):
    """Two blocks along a pre-norm stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 12), nn.Linear(12, 4)
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.norms[0](x))))
        found: Tensor = self.head(self.norms[1](x))
        return found


def stream(seed: int, task: str, *, scaled: bool) -> Program:
    torch.manual_seed(seed)
    model = Stream()
    with torch.no_grad():
        for norm in model.norms:
            assert isinstance(norm, nn.LayerNorm)
            norm.weight.uniform_(0.5, 1.5) if scaled else norm.weight.fill_(1.0)
            norm.bias.normal_(std=0.3 if scaled else 0.0)
    return fxmerge.capture(model.eval(), (torch.randn(4, 8),), task=task)


@pytest.mark.parametrize("method", ["rotate", "align"])
def test_a_turned_stream_is_turned_back(method: str) -> None:
    first = stream(1, "a", scaled=False)
    x = torch.randn(96, 8)
    second = turned(first, seed=3)
    torch.testing.assert_close(second(x), first(x), rtol=1e-5, atol=1e-5)
    merged = fxmerge.merge([first, second], data=x, method=method)
    for value in merged(x).values():
        torch.testing.assert_close(value, first(x), rtol=1e-5, atol=1e-5)
    assert "orthogonal" in merged.result["merged"]["groups"].values()


def test_scales_and_shifts_of_norms_are_read_where_norms_are() -> None:
    """Both parents are one function with other bases, scales and shifts of their norms included."""
    first = stream(1, "a", scaled=True)
    x = torch.randn(96, 8)
    merged = fxmerge.merge([first, dataclasses.replace(first, task="b")], data=x, method="rotate")
    for value in merged(x).values():
        torch.testing.assert_close(value, first(x), rtol=1e-5, atol=1e-5)
    assert all(
        bool((merged.program.tensors[n] == 1).all())
        for n in first.parameters
        if n.startswith("norms") and "weight" in n
    )


def test_training_flattens_the_line_between_two_networks_of_one_task() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    labels = (x[:, :4] + x[:, 4:].abs()).argmax(1)
    nets = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = Stream()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), labels)
            torch.autograd.backward(loss)
            optimizer.step()
        nets.append(net.eval())
    parents = [fxmerge.capture(net, (x[:4],), task=task) for net, task in zip(nets, "ab", strict=True)]
    with torch.no_grad():
        ends = sum(float(F.cross_entropy(net(x), labels)) for net in nets) / 2

    def barrier(method: str) -> float:
        answers = fxmerge.merge(parents, data=x, method=method, seed=0)(x)
        return float(F.cross_entropy(torch.stack(list(answers.values())).mean(0), labels)) - ends

    plain, start, found = (barrier(each) for each in ("average", "rotate", "align{init=rotate,steps=80}"))
    assert found < 0.8 * start < 0.4 * plain
