"""Operators one by one: what is read computes what ONNX Runtime computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fxmerge.errors import ExtensionError, SourceError, VerificationError
from fxmerge.from_onnx.call import Call, from_onnx
from fxmerge.from_onnx.file import read_file
from fxmerge.from_onnx.module import OnnxModule
from fxmerge.from_onnx.runtime import onnx_session
from fxmerge.installed import known
from fxmerge.pipeline.extension import Extension
from fxmerge.sources.load import load
from fxmerge.sources.onnx import load_onnx
from passes.onnx_ops import ONNX_OPERATORS


@dataclass(frozen=True)
class Case:
    """One node: its operator, the shapes of its inputs (or constants), its attributes."""

    operator: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    outputs: int = 1

    def __str__(self) -> str:
        return "-".join([self.operator, *(f"{k}={v}" for k, v in self.attributes.items())]).replace(" ", "")


def case(operator: str, *inputs: Any, opset: int = 18, outputs: int = 1, **attributes: Any) -> Case:
    return Case(operator, inputs, attributes, opset, outputs)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int64)


X, IMAGE, TOKENS = (2, 3, 4), (2, 4, 7, 6), (2, 5, 8)
SAME = "Abs Ceil Cos Cosh Erf Exp Floor HardSwish Identity Mish Neg Relu Round Sigmoid Sign Sin Sinh Softplus Softsign"
PAIRS = "Add Sub Mul Div Max Min"
REDUCED = "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp"

CASES = [
    *(case(name, X) for name in [*SAME.split(), "Tanh"]),
    *(case(name, X, (3, 1)) for name in PAIRS.split()),
    *(case(name, X, ints(1), keepdims=keep) for name in REDUCED.split() for keep in (0, 1)),
    case("ReduceSum", X, axes=[1], opset=11),
    case("Gelu", X, opset=20),
    case("Gelu", X, approximate="tanh", opset=20),
    case("Elu", X, alpha=0.5),
    case("LeakyRelu", X, alpha=0.2),
    case("Selu", X),
    case("HardSigmoid", X, alpha=0.3),
    case("ThresholdedRelu", X),
    case("PRelu", IMAGE, (4, 1, 1)),
    case("Clip", X, np.float32(-0.5), np.float32(0.5)),
    case("Celu", X, alpha=0.7),
    case("Clip", X, min=-1.0, max=0.25, opset=7),
    case("Pow", X, np.float32(2)),
    case("Swish", X, alpha=0.5, opset=24),
    case("Softmax", X, axis=1),
    case("Softmax", X, opset=11),
    case("LogSoftmax", X, axis=-1),
    case("Hardmax", X),
    case("MatMul", X, (4, 5)),
    case("Gemm", (3, 4), (5, 4), (5,), transB=1),
    case("Gemm", (4, 3), (4, 5), (3, 5), transA=1, alpha=0.5, beta=2.0),
    case("Einsum", X, (2, 4, 5), equation="bij,bjk->bik"),
    case("Conv", IMAGE, (6, 2, 3, 3), (6,), group=2, strides=[2, 1], pads=[1, 0, 1, 0]),
    case("Conv", IMAGE, (6, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", X, (5, 3, 2), pads=[0, 1]),
    case("ConvTranspose", IMAGE, (4, 3, 3, 3), (3,), strides=[2, 2], output_padding=[1, 1], pads=[1, 1, 1, 1]),
    case("ConvTranspose", IMAGE, (4, 3, 3, 3), strides=[2, 2], pads=[0, 1, 1, 0]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]),
    case("GlobalAveragePool", IMAGE),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
    case("GlobalMaxPool", IMAGE),
    case("BatchNormalization", IMAGE, (4,), (4,), (4,), np.ones(4, np.float32)),
    case("InstanceNormalization", IMAGE, (4,), (4,)),
    case("LayerNormalization", TOKENS, (8,), (8,), epsilon=1e-3),
    case("LayerNormalization", TOKENS, (5, 8), axis=1),
    case("GroupNormalization", IMAGE, (4,), (4,), num_groups=2, opset=21),
    case("LRN", IMAGE, size=3),
    case("RMSNormalization", TOKENS, (8,), opset=23),
    case("LpNormalization", X, axis=1, p=1),
    case("Attention", (2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4), scale=0.3, opset=23),
    case("Attention", TOKENS, TOKENS, TOKENS, q_num_heads=4, kv_num_heads=4, is_causal=1, opset=23),
    case("Attention", TOKENS, (2, 5, 4), (2, 5, 4), q_num_heads=4, kv_num_heads=2, opset=23),
    case("RotaryEmbedding", (2, 3, 5, 4), (2, 5, 2), (2, 5, 2), opset=23),
    case("RotaryEmbedding", (2, 3, 5, 4), (2, 5, 2), (2, 5, 2), interleaved=1, opset=23),
    case("Reshape", X, ints(0, -1)),
    case("Flatten", IMAGE, axis=2),
    case("Flatten", X, axis=0),
    case("Squeeze", (2, 1, 3), ints(1)),
    case("Unsqueeze", X, ints(0, -1)),
    case("Unsqueeze", X, axes=[1], opset=11),
    case("Transpose", X, perm=[2, 0, 1]),
    case("Transpose", X),
    case("Concat", X, X, axis=-1),
    case("Split", X, ints(1, 3), axis=2, outputs=2),
    case("Split", X, axis=1, num_outputs=2, outputs=2),
    case("Split", X, split=[1, 2], axis=1, opset=11, outputs=2),
    case("Slice", X, ints(0, 1), ints(2, 9), ints(0, 2), ints(1, 2)),
    case("Slice", X, ints(-1), ints(-9), ints(2), ints(-1)),
    case("Slice", X, ints(2), ints(-9), ints(1), ints(-2)),
    case("Slice", X, starts=[1], ends=[3], axes=[1], opset=9),
    case("Expand", (3, 1), ints(2, 1, 4)),
    case("Tile", X, ints(1, 2, 1)),
    case("Trilu", (4, 4), upper=0),
    case("Pad", X, ints(0, 1, 0, 0, 0, 2), np.float32(1.5)),
    case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 2, 1), mode="reflect"),
    case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 0, 1), mode="edge"),
    case("DepthToSpace", IMAGE, blocksize=2, mode="CRD"),
    case("DepthToSpace", IMAGE, blocksize=2),
    case("SpaceToDepth", (2, 4, 6, 4), blocksize=2),
    case("Gather", X, ints(2, 0), axis=1),
    case("Gather", X, np.array(-1), axis=2),
    case("Gather", (5, 4), ints(3, 1, 1)),
    case("GatherElements", X, np.zeros((2, 1, 4), np.int64), axis=1),
    case("GatherND", X, np.array([[0, 1], [1, 2]])),
    case("ScatterND", X, np.array([[0], [1]]), (2, 3, 4)),
    case("ScatterElements", X, np.ones((2, 1, 4), np.int64), (2, 1, 4), axis=1),
    case("Where", np.array([[True], [False]] * 2)[:3], X, (3, 4)),
    case("CumSum", X, np.array(1), exclusive=1, reverse=1),
    case("TopK", X, ints(2), outputs=2),
    case("ArgMax", X, axis=1, keepdims=0),
    case("OneHot", ints(1, 3), np.array(4), np.array([0.0, 2.0], np.float32)),
    case("Cast", X, to=TensorProto.INT32),
    case("IsNaN", X),
    case("Mod", X, (4,), fmod=1),
    case("Sum", X, X, X),
    case("Mean", X, X),
    case("Resize", IMAGE, None, np.array([1, 1, 2, 2], np.float32), mode="linear"),
    case("Resize", IMAGE, None, None, ints(2, 4, 10, 9), mode="cubic"),
    case("Resize", IMAGE, None, np.array([1, 1, 2, 2], np.float32)),
    case(
        "Resize",
        IMAGE,
        None,
        np.array([1, 1, 2, 3], np.float32),
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    case(
        "Resize", IMAGE, None, None, ints(2, 4, 13, 11), mode="linear", coordinate_transformation_mode="align_corners"
    ),
    case("DFT", (2, 5, 3, 1), opset=20),
    case("DFT", (2, 5, 3, 2), inverse=1, axis=2),
    case("DFT", (2, 5, 1), onesided=1),
    case("GridSample", IMAGE, (2, 3, 5, 2), opset=20),
    case("LSTM", (5, 2, 3), (1, 16, 3), (1, 16, 4), (1, 32), hidden_size=4, outputs=3),
    case("LSTM", (5, 2, 3), (2, 16, 3), (2, 16, 4), hidden_size=4, direction="bidirectional", outputs=3),
    case(
        "GRU",
        (5, 2, 3),
        (1, 12, 3),
        (1, 12, 4),
        (1, 24),
        hidden_size=4,
        linear_before_reset=1,
        direction="reverse",
        outputs=2,
    ),
    case("RNN", (5, 2, 3), (1, 4, 3), (1, 4, 4), hidden_size=4, activations=["Relu"], outputs=2),
]


def _written(each: Case, path: Path) -> dict[str, torch.Tensor]:
    """The case as a file: what comes first is its input, what else has a shape is stored; the input's values."""
    rng = np.random.default_rng(0)
    held, names, fed = [], [], {}
    for i, given in enumerate(each.inputs):
        names.append("" if given is None else f"i{i}")
        if given is None:
            continue
        value = rng.standard_normal(given).astype(np.float32) if isinstance(given, tuple) else np.asarray(given)
        if i == 0 or (i == 1 and isinstance(given, tuple) and not isinstance(each.inputs[0], tuple)):
            fed[f"i{i}"] = value
        else:
            held.append(numpy_helper.from_array(value, f"i{i}"))
    outputs = [f"o{i}" for i in range(each.outputs)]
    node = helper.make_node(each.operator, names, outputs, **each.attributes)
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in fed.items()
    ]
    graph = helper.make_graph([node], "g", ports, [onnx.ValueInfoProto(name=n) for n in outputs], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", each.opset)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return {name: torch.from_numpy(np.array(value)) for name, value in fed.items()}


@pytest.mark.parametrize("each", CASES, ids=str)
def test_an_operator_is_what_onnx_runtime_computes(each: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    fed = _written(each, path)
    wanted = onnx_session(str(path)).run(None, {name: value.numpy() for name, value in fed.items()})
    with torch.no_grad():
        got = OnnxModule(read_file(path), known().operators)(**fed)
    for value, expected in zip(got.values(), wanted, strict=True):
        torch.testing.assert_close(value, torch.from_numpy(np.asarray(expected)), rtol=1e-4, atol=1e-5)


SIZES = {
    "Mod": (["r", "five"], {}, 2),
    "Tile": (["r", "two"], {}, 7),
    "ReduceMax": (["s"], {"keepdims": 1}, 7),
    "ReduceMin": (["s"], {"keepdims": 1}, 3),
    "ReduceProd": (["s"], {"keepdims": 1}, 21),
    "ScatterND": (["s", "where", "r"], {}, 7),
    "CastLike": (["s", "five"], {}, 3),
    "Sign": (["s"], {}, 1),
}


@pytest.mark.parametrize("operator", SIZES)
def test_sizes_are_known_through_operators(operator: str, tmp_path: Path) -> None:
    """Of an input (3, 7), s are both sizes and r is the last; the first number that is computed is a size."""
    inputs, attributes, first = SIZES[operator]
    make = helper.make_node
    nodes = [
        make("Shape", ["x"], ["s"]),
        make("Gather", ["s", "one"], ["r"], axis=0),
        make(operator, inputs, ["n"], **attributes),
        make("Slice", ["n", "zero", "one"], ["m"]),
        make("ConstantOfShape", ["m"], ["c"]),
        make("ReduceSum", ["x"], ["t"], keepdims=0),
        make("Add", ["c", "t"], ["y"]),
    ]
    numbers = {"zero": [0], "one": [1], "two": [2], "five": [5], "where": [[0]]}
    held = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["size"])
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    given = torch.randn(3, 7)
    got = OnnxModule(read_file(path), known().operators)(x=given)["y"]
    [wanted] = onnx_session(str(path)).run(None, {"x": given.numpy()})
    assert got.shape == wanted.shape == (first,)


def test_every_operator_has_one_reader() -> None:
    names = [name for each in ONNX_OPERATORS for name in each.names]
    assert len(names) == len(set(names)) and set(names) <= set(known().operators)


GATE = """
import torch
from fxmerge import Extension
from fxmerge.from_onnx import Call, from_onnx

@from_onnx("acme.Gate")
def gate(call: Call) -> torch.Tensor:
    return call.tensor(0) * torch.sigmoid(call.get("slope", 1.0) * call.tensor(0)) {wrong}

extension = Extension(onnx=gate)
"""


def _with_function(path: Path) -> Path:
    """A file with an operator of its own, as a function of it too, so that ONNX Runtime can run it."""
    body = [
        helper.make_node("Constant", [], ["s"], value_float=2.0),
        helper.make_node("Mul", ["x", "s"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Mul", ["x", "b"], ["y"]),
    ]
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("acme", 1)]
    function = helper.make_function("acme", "Gate", ["x"], ["y"], body, sets[:1])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Gate", ["x"], ["y"], domain="acme", slope=2.0)], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=sets, functions=[function], ir_version=8), path)
    return path


def test_functions_of_a_file_and_operators_of_an_extension(tmp_path: Path) -> None:
    path = _with_function(tmp_path / "m.onnx")
    x = torch.randn(3, 4)
    expected = x * torch.sigmoid(2 * x)
    torch.testing.assert_close(load(path)(x), expected)
    for name, wrong in (("gate", ""), ("other", "+ 0.001")):
        (tmp_path / f"{name}.py").write_text(GATE.format(wrong=wrong))
    torch.testing.assert_close(load(path, extensions=[f"{tmp_path}/gate.py:extension"])(x), expected)
    with pytest.raises(VerificationError, match=r"is not what ONNX Runtime computes: output y differs by 0.001"):
        load_onnx(path, extensions=[f"{tmp_path}/other.py:extension"])


def test_two_readers_of_one_operator_are_refused() -> None:
    @from_onnx("Relu")
    def mine(call: Call) -> torch.Tensor:
        return call.tensor(0)

    with pytest.raises(ExtensionError, match=r"two ONNX operators named 'Relu'"):
        known() + Extension("mine", onnx=mine)
    with pytest.raises(ExtensionError, match=r"has no name"):
        from_onnx()


def test_what_an_operator_cannot_say_is_refused(tmp_path: Path) -> None:
    each = case("GRU", (5, 2, 3), (1, 12, 3), (1, 12, 4), hidden_size=4)
    _written(each, tmp_path / "m.onnx")
    with pytest.raises(SourceError, match=r"its node GRU .* cannot be read: it resets before the product"):
        load(tmp_path / "m.onnx")
