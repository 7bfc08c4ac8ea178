"""Merged models written by hand, in milliseconds: two tasks on one trunk, and rows of tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxmerge.serving.batching import Limits
from fxmerge.serving.engine import Asked, Engine
from fxmerge.serving.metrics import Metrics
from fxmerge.serving.models import open_models
from fxmerge.serving.service import Service

Write = Callable[..., Path]


def _save(
    path: Path, nodes: list[onnx.NodeProto], inputs: object, outputs: object, weights: dict[str, object], **more: object
) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "merged", inputs, outputs, tensors)  # type: ignore[arg-type]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(
        model, {"fxmerge.tasks": json.dumps(["a", "b"])} | {k: json.dumps(v) for k, v in more.items()}
    )
    onnx.save(model, str(path))
    return path


@pytest.fixture
def two_tasks(tmp_path: Path) -> Write:
    """Writes a network of eight numbers a row, with a head for each of the tasks a and b."""

    def write(name: str = "two.onnx", seed: int = 0, *, mixed: bool = False) -> Path:
        draw = np.random.default_rng(seed).standard_normal
        weights = {n: draw(s).astype("f") for n, s in {"w": (8, 16), "wa": (16, 3), "wb": (16, 5)}.items()}
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["wide"]),
            helper.make_node("Relu", ["wide"], ["trunk"]),
            helper.make_node("MatMul", ["trunk", "wa"], ["a.logits"]),
            helper.make_node("MatMul", ["trunk", "wb"], ["b.logits" if not mixed else "b.rows"]),
        ]
        if mixed:  # what a row gets depends on the rows beside it
            nodes.append(helper.make_node("Softmax", ["b.rows"], ["b.logits"], axis=0))
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])]
        outputs = [
            helper.make_tensor_value_info("a.logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("b.logits", TensorProto.FLOAT, ["batch", 5]),
        ]
        return _save(tmp_path / name, nodes, inputs, outputs, weights)

    return write


@pytest.fixture
def tokens(tmp_path: Path) -> Write:
    """Writes a network over rows of ten kinds of tokens: a gives each token numbers, b gives each row some."""

    def write(name: str = "tokens.onnx", *, masked: bool = True, inverted: bool = False, **more: object) -> Path:
        draw = np.random.default_rng(0).standard_normal
        weights = {"table": draw((10, 4)).astype("f"), "wa": draw((4, 3)).astype("f"), "axes": np.array([1])}
        weights |= {"last": np.array([-1]), "one": np.array(1, "f")}
        mask = [
            helper.make_node("Cast", ["mask"], ["given"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["one", "given"], ["other"]),
            helper.make_node("Identity", ["other" if inverted else "given"], ["real"]),
            helper.make_node("Unsqueeze", ["real", "last"], ["column"]),
            helper.make_node("Mul", ["embedded", "column"], ["kept"]),
        ]
        count = [
            helper.make_node("ReduceSum", ["real", "axes"], ["count"], keepdims=1),
            helper.make_node("Div", ["b.sum", "count"], ["b.row"]),
        ]
        nodes = [
            helper.make_node("Gather", ["table", "ids"], ["embedded"]),
            *(mask if masked else [helper.make_node("Tanh", ["embedded"], ["kept"])]),
            helper.make_node("MatMul", ["kept", "wa"], ["a.each"]),
            helper.make_node("ReduceSum" if masked else "ReduceMean", ["kept", "axes"], ["b.sum"], keepdims=0),
            *(count if masked else [helper.make_node("Identity", ["b.sum"], ["b.row"])]),
        ]
        names = ["ids", "mask"] if masked else ["ids"]
        inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"]) for n in names]
        outputs = [
            helper.make_tensor_value_info("a.each", TensorProto.FLOAT, ["batch", "sequence", 3]),
            helper.make_tensor_value_info("b.row", TensorProto.FLOAT, ["batch", 4]),
        ]
        return _save(tmp_path / name, nodes, inputs, outputs, weights, **more)

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> Write:
    """Writes a network of pictures of 3 x 4 x 4 whose two tasks give the mean of each channel, b as probabilities."""

    def write(name: str = "pictures.onnx", **more: object) -> Path:
        nodes = [
            helper.make_node("ReduceMean", ["x", "axes"], ["a.logits"], keepdims=0),
            helper.make_node("Softmax", ["a.logits"], ["b.shares"], axis=1),
        ]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("a.logits", "b.shares")]
        return _save(tmp_path / name, nodes, inputs, outputs, {"axes": np.array([2, 3])}, **more)

    return write


@pytest.fixture
def apart(tmp_path: Path) -> Write:
    """Writes a network whose tasks a and b have inputs of their own; a has class names."""

    def write(name: str = "apart.onnx") -> Path:
        draw = np.random.default_rng(0).standard_normal
        weights = {"w": draw((8, 3)).astype("f"), "axes": np.array([1])}
        nodes = [
            helper.make_node("MatMul", ["a.x", "w"], ["a.logits"]),
            helper.make_node("MatMul", ["b.x", "w"], ["b.wide"]),
            helper.make_node("ReduceSum", ["b.wide", "axes"], ["b.sum"], keepdims=0),
        ]
        inputs = [helper.make_tensor_value_info(f"{t}.x", TensorProto.FLOAT, ["batch", 8]) for t in "ab"]
        outputs = [
            helper.make_tensor_value_info("a.logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("b.sum", TensorProto.FLOAT, ["batch"]),
        ]
        labels = {"a": ["bad", 'not "so" bad', "göod"], "b": None}
        return _save(tmp_path / name, nodes, inputs, outputs, weights, **{"fxmerge.labels": labels})

    return write


class Held:
    """An engine that runs a batch only when it is let, and notes what it ran."""

    def __init__(self, engine: Engine) -> None:
        self._run = engine.run
        self.go, self.began = threading.Event(), threading.Event()
        self.batches: list[int] = []
        engine.run = self.run  # type: ignore[method-assign]

    def run(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        self.began.set()
        assert self.go.wait(20)
        self.batches.append(sum(one.rows for one in asked))
        return self._run(asked)


Serve = Callable[..., Service]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Makes a service of files: `serve(path, …, max_queue=2)`."""
    made: list[Service] = []

    def make(*paths: Path, raw: bool = False, keys: Any = (), **changes: Any) -> Service:
        metrics, limits = Metrics(), Limits(**{"timeout": 20.0, "most_bytes": 1 << 20} | changes)
        models = open_models([str(path) for path in paths], limits, metrics, "cpu", raw=raw)
        made.append(Service(models, metrics, limits, keys=keys))
        return made[-1]

    yield make
    for served in (served for service in made for served in service.models.values()):
        if served.raw:
            served.raw.close()


@pytest.fixture
def hold() -> Iterator[Callable[[Service], Held]]:
    """Holds the only model of a service; it is let go when the test ends."""
    made: list[Held] = []

    def make(service: Service) -> Held:
        [served] = service.models.values()
        made.append(Held(served.engine))
        return made[-1]

    yield make
    for held in made:
        held.go.set()
