"""Nets written as ONNX by PyTorch's exporter, once for all tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tests.small_nets import TinyViT


class Net(nn.Module):
    """Norm, gate and linear layers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.gelu(self.norm(self.first(x))))


def trained_vit(seed: int) -> TinyViT:
    """A small ViT no two weights of which are equal: exporters store equal ones once."""
    torch.manual_seed(seed)
    model = TinyViT().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def export(model: nn.Module, path: Path, *inputs: Tensor, opset: int = 18, **options: Any) -> Path:
    """Write a model by PyTorch's own exporter, its batch open."""
    options.setdefault("dynamic_shapes", tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), inputs, path, dynamo=True, opset_version=opset, verbose=False, **options)
    return path


def written(model: Net, path: Path) -> Path:
    """The net written by hand as many exporters do: a weight transposed, a gelu of single operators."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    held = [numpy_helper.from_array(value, name) for name, value in state.items() if name != "last.weight"]
    held.append(numpy_helper.from_array(state["last.weight"].T.copy(), "onnx::MatMul_9"))
    numbers = {"two": 2.0**0.5, "one": 1.0, "half": 0.5}
    held += [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in numbers.items()]
    make = helper.make_node
    nodes = [
        make("Gemm", ["x", "first.weight", "first.bias"], ["h"], transB=1),
        make("LayerNormalization", ["h", "norm.weight", "norm.bias"], ["n"], axis=-1, epsilon=1e-5),
        make("Div", ["n", "two"], ["d"]),
        make("Erf", ["d"], ["e"]),
        make("Add", ["e", "one"], ["f"]),
        make("Mul", ["n", "f"], ["g"]),
        make("Mul", ["g", "half"], ["i"]),
        make("MatMul", ["i", "onnx::MatMul_9"], ["j"], name="/last/MatMul"),
        make("Add", ["last.bias", "j"], ["scores"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 6), ("scores", 3))
    ]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("nets")
    return written(Net(0), folder / "a.onnx"), written(Net(1), folder / "b.onnx")


@pytest.fixture(scope="session")
def vits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("vits")
    made = []
    for seed, name in enumerate("ab"):
        made.append(export(trained_vit(seed), folder / f"{name}.onnx", torch.randn(4, 1, 8, 8)))
    return made[0], made[1]
