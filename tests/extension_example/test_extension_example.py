"""A real package with an operator of its own is installed, found, and does its work in a merge."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge import installed
from fxmerge.errors import ExtensionError
from fxmerge.ir.program import Program, target_name
from fxmerge.pipeline.extension import Extension, from_packages
from fxmerge.pipeline.knowledge import Plan
from fxmerge.rewrite import Trace, apply
from passes import BUILTIN, PIPELINE
from passes.spaces.find import SpacesOf

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Extension]:
    """Everything known once the package is installed (into a folder of its own, without network)."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    for name in ("pyproject.toml", "README.md", "fxmerge_example"):
        copy = shutil.copytree if (HERE / name).is_dir() else shutil.copy
        copy(HERE / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--target", str(target), str(source)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    sys.path.insert(0, str(target))
    try:
        yield installed.known()
    finally:
        sys.path.remove(str(target))
        for name in [name for name in sys.modules if name.partition(".")[0] == "fxmerge_example"]:
            del sys.modules[name]


class Gated(nn.Module):
    """A small net that spells the gate out, and swaps halves by the operator."""

    def __init__(self, seed: int, width: int = 12) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)
            self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y * torch.sigmoid(self.scale * y)
        return self.head(torch.relu(self.second(torch.ops.example.swap(y, 2))))


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def parent(seed: int, width: int = 12) -> Program:
    return fxmerge.capture(Gated(seed, width), (X,), task=f"task{seed}")


def called(program: Program) -> list[str]:
    return [target_name(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_the_entry_point_is_found_and_owns_what_it_brings(known: Extension) -> None:
    (found,) = (each for each in from_packages() if each.name == "fxmerge-example 1.2.0")
    assert [(item.kind, item.name) for item in found.items] == [
        ("rule", "example.gate.default"), ("rule", "example.swap.default"), ("rewrite", "find-gate"),
        ("pass", "lower-example"), ("method", "by-size"),
    ]  # fmt: skip
    assert known.owner("method", "by-size") == "fxmerge-example 1.2.0"
    assert known.owner("method", "foldable") == "fxmerge"


def test_the_rewrite_finds_the_gate_and_the_pass_spells_it_out(known: Extension) -> None:
    pipeline = installed.pipeline(known, Plan())
    assert "fold-merge,lower-example," in str(pipeline)
    before = parent(0)
    normal = pipeline.run("parent", before, known)
    assert "example.gate.default" in called(normal)
    assert "aten.sigmoid.default" not in called(normal)
    lowered = pipeline.run("merged", normal, known)
    assert not any(name.startswith("example.") for name in called(lowered))
    assert "lower-example" not in {node.meta["by"] for node in lowered.graph.nodes}, "nodes name the rewrite"
    assert {"spell-gate", "spell-swap"} <= {node.meta["by"] for node in lowered.graph.nodes}
    assert torch.allclose(before(X), normal(X), atol=1e-6)
    assert torch.allclose(before(X), lowered(X), atol=1e-6)


def test_the_check_explains_why_the_rewrite_did_not_fire(known: Extension) -> None:
    class Scalar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(1.5 * x)

    trace = Trace()
    apply(fxmerge.capture(Scalar(), (X,)), known.rewrites, trace)
    assert str(trace.refusals["find-gate"]).startswith("the scale is no vector of the features, at %mul")


def test_the_rules_couple_what_the_operators_couple(known: Extension) -> None:
    normal = PIPELINE.run("parent", parent(0), known)
    spaces = normal.get(SpacesOf(known.rules))
    axes = {name: [str(axis) for axis in value] for name, value in spaces.tensors.items()}
    assert not spaces.opaque
    parts, inner = axes["scale"][0].strip("()").split()
    assert axes["first.weight"][0] == axes["first.bias"][0] == axes["second.weight"][1] == f"({parts} {inner})"
    assert spaces.spaces[parts].tolerance == "identity"
    assert spaces.spaces[inner].tolerance == "permutation"
    blind = normal.get(SpacesOf(BUILTIN.rules))
    assert {each.operator for each in blind.opaque} == {"example.gate.default"}


def test_a_second_owner_of_its_names_is_refused(known: Extension) -> None:
    again = Extension("somebody else", rules=fxmerge.couples("example.gate.default", "a d, d -> a d"))
    with pytest.raises(ExtensionError, match=r"one from fxmerge-example 1.2.0, one from somebody else"):
        known + again


def test_a_merge_uses_its_method_rewrite_and_pass(known: Extension, tmp_path: Path) -> None:
    small, large = parent(0), parent(1, width=24)
    merged: Any = fxmerge.merge([small, large], method="by-size", like=1, out=str(tmp_path / "m.onnx"))
    assert merged.result["init"] == "by-size"
    assert not any(name.startswith("example.") for name in called(merged.program))
    assert merged.result["checks"]["onnx_max_abs"] < 1e-5
    sizes = [small.count(), large.count()]
    weight, own = merged.program.tensors["second.bias"], [p.tensors["second.bias"] for p in (small, large)]
    expected = own[1] * sizes[1] / sum(sizes)
    expected[:12] += own[0] * sizes[0] / sum(sizes)
    assert torch.allclose(weight[:12], expected[:12], atol=1e-6)
    assert (tmp_path / "m.onnx").exists()
