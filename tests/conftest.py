"""Small parents that every test may use: hand-written networks of different widths."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Callable

import pytest
import torch

from benchmarks.models import BERT, GPT, MLP, ViT
from fxmerge.capturing import capture
from fxmerge.ir.program import Program


def _vit(width: int, heads: int, hidden: int, *, fused: bool = False) -> ViT:
    return ViT(image=8, patch=2, width=width, heads=heads, hidden=hidden, depth=2, classes=5, fused=fused)


def _bert(width: int, heads: int, hidden: int, classes: int) -> BERT:
    return BERT(50, classes, width=width, heads=heads, hidden=hidden, depth=2, positions=32, drop=0.1)


def _gpt(width: int, heads: int, hidden: int) -> GPT:
    return GPT(50, width=width, heads=heads, hidden=hidden, depth=2, positions=32)


def _mask() -> torch.Tensor:
    mask = torch.ones(6, 9, dtype=torch.long)
    mask[1, 5:] = mask[4, 3:] = 0
    return mask


def pytest_configure() -> None:
    """A warning that torch gives once a process is given to every test, whichever of them runs first."""
    torch.set_warn_always(True)


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking through it for garbage, again and again, takes a sixth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Write the golden texts anew; read them after.")


SMALL, WIDE = (16, 2, 24), (24, 3, 40)
FAMILIES: dict[str, Callable[[int], tuple[torch.nn.Module, object]]] = {
    "mlp": lambda k: (MLP(20, [(16, 12), (24, 10), (9, 14)][k], 3), (torch.randn(6, 20),)),
    "vit": lambda k: (_vit(*[SMALL, WIDE, SMALL][k]), (torch.randn(6, 1, 8, 8),)),
    "vit-fused": lambda k: (_vit(*[SMALL, WIDE, WIDE][k], fused=True), (torch.randn(6, 1, 8, 8),)),
    "bert": lambda k: (
        _bert(*[SMALL, WIDE, SMALL][k], [2, 6, 4][k]),
        {"input_ids": torch.randint(0, 50, (6, 9)), "attention_mask": _mask()},
    ),
    "gpt": lambda k: (_gpt(*[SMALL, WIDE, SMALL][k]), (torch.randint(0, 50, (6, 9)),)),
}


@pytest.fixture(scope="session")
def parents() -> Callable[[str, int], list[Program]]:
    """`parents("vit", 2)`: that many captured networks of a family, of different widths and seeds."""
    known: dict[tuple[str, int], Program] = {}

    def get(family: str, count: int = 2) -> list[Program]:
        for k in range(count):
            if (family, k) not in known:
                torch.manual_seed(100 + k)
                model, inputs = FAMILIES[family](k)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(0.05 * torch.randn_like(parameter))
                known[family, k] = capture(model, inputs, task="abc"[k])  # type: ignore[arg-type]
        return [known[family, k] for k in range(count)]

    return get


@pytest.fixture(scope="session")
def double() -> Callable[[Program], Program]:
    """A program in float64, maps included."""

    def convert(program: Program) -> Program:
        wide = {n: t.double() if t.is_floating_point() else t for n, t in program.tensors.items()}
        maps = copy.deepcopy(dict(program.maps))
        ports = tuple(
            dataclasses.replace(p, dtype=torch.float64) if p.dtype.is_floating_point else p for p in program.inputs
        )
        return program.evolve(tensors=wide, maps={n: m.double() for n, m in maps.items()}, inputs=ports)

    return convert
