"""Five families through the pipeline: the program after every step as text, and each run in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
import passes
from benchmarks.models import BERT, GPT, MLP, ViT
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from passes.line_up.carry_moves.carry import carry_moves
from passes.line_up.further import FURTHER, unwatched
from passes.line_up.masks import plain_masks
from passes.line_up.order_sums import order_sums
from passes.line_up.split_parameters import own_tensors
from passes.rules import BUILTIN as RULES
from tests.golden.texts import Golden

Inputs = tuple[Tensor, ...] | dict[str, Tensor]


def _ids() -> Inputs:
    return {"input_ids": torch.randint(0, 9, (3, 4)), "attention_mask": torch.ones(3, 4, dtype=torch.long)}


FAMILIES: dict[str, Callable[[int], tuple[nn.Module, Inputs]]] = {
    "mlp": lambda k: (MLP(5, (6, 4 + k), 3), (torch.randn(3, 5),)),
    "vit": lambda k: (_vit(fused=False, more=k), (torch.randn(3, 1, 4, 4),)),
    "vit-fused": lambda k: (_vit(fused=True, more=k), (torch.randn(3, 1, 4, 4),)),
    "bert": lambda k: (
        BERT(9, 2 + k, width=8 + 4 * k, heads=2 + k, hidden=10 + k, depth=1, positions=16, drop=0.1), _ids(),
    ),
    "gpt": lambda k: (
        GPT(9, width=8 + 4 * k, heads=2 + k, hidden=10 + k, depth=1, positions=16), (torch.randint(0, 9, (3, 4)),),
    ),
}  # fmt: skip


def _vit(*, fused: bool, more: int) -> ViT:
    return ViT(image=4, patch=2, width=8 + 4 * more, heads=2 + more, hidden=10 + more, depth=1, classes=3, fused=fused)


@pytest.fixture(scope="module")
def given() -> Callable[[str], list[Program]]:
    """Two captured parents of a family, of different widths."""
    known: dict[str, list[Program]] = {}

    def get(family: str) -> list[Program]:
        if family not in known:
            known[family] = []
            for k in range(2):
                torch.manual_seed(7 + k)
                model, inputs = FAMILIES[family](k)
                known[family].append(fxmerge.capture(model.eval(), inputs, task="ab"[k]))
        return known[family]

    return get


PARENT_STEPS: dict[str, Callable[[Program], Program]] = {
    "normalize": passes.normalize,
    "cleanup": passes.cleanup,
    "plain-masks": plain_masks,
    "carry-moves": carry_moves,
    "order-sums": order_sums,
    "own-tensors": own_tensors,
}
"""Steps that keep a parent's function, each on what the one before it made."""


def _same(before: Program, after: Program, double: Callable[[Program], Program]) -> None:
    before, after = double(before), double(after)
    inputs = {p.name: _given(p.name, before.samples) for p in before.inputs}
    old, new = before.run(inputs), after.run(inputs)
    for port in new:
        torch.testing.assert_close(new[port], old[port], rtol=1e-9, atol=1e-10)


def _given(name: str, samples: Any) -> Tensor:
    value: Tensor = samples[name]
    return value.double() if value.is_floating_point() else value


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_a_parent(
    family: str, given: Callable[[str], list[Program]], golden: Golden, double: Callable[[Program], Program]
) -> None:
    program, texts = given(family)[0], []
    for name, step in PARENT_STEPS.items():
        after = step(program)
        changed = after.text() != program.text()
        texts.append(f"# {name}{'' if changed else ': nothing to do'}\n" + (f"\n{after.text()}" if changed else ""))
        _same(program, after, double)
        program = after
    golden(f"passes/{family}", "\n".join(texts))


@pytest.mark.parametrize("family", FAMILIES)
def test_written_further(
    family: str, given: Callable[[str], list[Program]], golden: Golden, double: Callable[[Program], Program]
) -> None:
    program = passes.normalize(given(family)[0])
    further = unwatched(FURTHER[-1], program)
    golden(f"further/{family}", further.text())
    _same(program, further, double)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_supernet_hoisted_and_folded(
    family: str, given: Callable[[str], list[Program]], golden: Golden, double: Callable[[Program], Program]
) -> None:
    parents = [passes.cleanup(passes.normalize(each)) for each in given(family)]
    net: SuperNet = passes.insert_merge(parents, RULES)
    samples = net.given(0, parents[0].samples)
    outputs = [f"{p.task}.{port.name}" for p in parents for port in p.outputs]
    written = net.program.only(outputs)
    hoisted = passes.hoist(written, "weights")
    folded = passes.fold_merge(hoisted, net.tasks, net.template)
    golden(
        f"supernet/{family}",
        "\n".join(f"# {name}\n\n{p.text()}" for name, p in
                  {"as written": written, "hoisted": hoisted, "folded": folded}.items()),
    )  # fmt: skip
    inputs = {name: v.double() if v.is_floating_point() else v for name, v in samples.items()}
    first, second, third = (double(p).run(inputs) for p in (written, hoisted, folded))
    for port in first:
        torch.testing.assert_close(second[port], first[port], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(third[port], first[port], rtol=1e-5, atol=1e-6)  # folded weights are float32
