"""Hostile samples and the files beside models: arrays, pictures, text, tokenizers, class names, YAML, ONNX."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.sources.hostile import TOKENIZER, Case, Lab, header, npy, npz, shape_of, sparse, special


def _array(lab: Lab, value: Any, **options: Any) -> tuple[str, ...]:
    np.save(lab / "bad.npy", value, **options)
    return lab.data("bad.npy")


def _special(name: str, kind: str) -> Case:
    def make(lab: Lab) -> tuple[str, ...]:
        special(lab, name, kind)
        return lab.data(name)

    return make


ARRAYS: Mapping[str, Case] = {
    "empty": lambda lab: lab.data("bad.npz", b""),
    "noise": lambda lab: lab.data("bad.npz", b"noise" * 99),
    "half": lambda lab: lab.data("bad.npz", (lab / "x.npz").read_bytes()[:150]),
    "no arrays": lambda lab: lab.data("bad.npz", npz()),
    "objects": lambda lab: _array(lab, np.array([lab.trap.object], dtype=object), allow_pickle=True),
    "objects zipped": lambda lab: lab.data(
        "bad.npz", npz(x=npy(shape_of("(1,)", "'|O'"), pickle.dumps(lab.trap.object)))
    ),
    "pickle": lambda lab: lab.data("bad.npy", pickle.dumps(lab.trap.object)),
    "40 GB": lambda lab: lab.data("bad.npy", npy(shape_of(f"({10 << 30},)"), bytes(16))),
    "2^200 numbers": lambda lab: lab.data("bad.npy", npy(shape_of(f"({1 << 100}, {1 << 100})"), bytes(16))),
    "nothing times 2^60": lambda lab: lab.data("bad.npy", npy(shape_of(f"(0, {1 << 60})"))),
    "negative": lambda lab: lab.data("bad.npy", npy(shape_of("(-4, 4)"), bytes(64))),
    "code as header": lambda lab: lab.data("bad.npy", npy(lab.trap.text)),
    "header is deep": lambda lab: lab.data("bad.npy", npy("(" * 30_000)),
    "other version": lambda lab: lab.data("bad.npy", npy(shape_of("(1,)"), bytes(4), (9, 9))),
    "truth in shape": lambda lab: lab.data("bad.npy", npy(shape_of("(True, 4)"), bytes(64))),
    "bomb": lambda lab: lab.data("bad.npz", npz(x=bytes(300 << 20))),
    "4 GB of nothing": lambda lab: (
        sparse(lab / "bad.npy", 4 << 30, npy(shape_of(f"({(4 << 30) // 16 - 9}, 4)"))).name and lab.data("bad.npy")
    ),
    "one row of 4 GB": lambda lab: (
        sparse(lab / "bad.npy", 4 << 30, npy(shape_of(f"(1, {(1 << 30) - 99})"))).name and lab.data("bad.npy")
    ),
    "complex": lambda lab: _array(lab, np.ones((8, 4), dtype=complex)),
    "text": lambda lab: _array(lab, np.array([["a"] * 4] * 8)),
    "dates": lambda lab: _array(lab, np.zeros((8, 4), dtype="datetime64[s]")),
    "long doubles": lambda lab: _array(lab, np.zeros((8, 4), dtype=np.longdouble)),
    "records": lambda lab: _array(lab, np.zeros(8, dtype=[("a", "<f4"), ("b", "<f4")])),
    "not a number": lambda lab: _array(lab, np.full((8, 4), np.nan, dtype=np.float32)),
    "no axes": lambda lab: _array(lab, np.float32(1)),
    "safetensors without end": lambda lab: lab.data("bad.safetensors", b"\xff" * 8 + b"{"),
    "safetensors deep": lambda lab: lab.data("bad.safetensors", header(b'{"x":' + b"[" * 100_000)),
    "safetensors of 2^60": lambda lab: lab.data(
        "bad.safetensors", header({"x": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]}}, bytes(4))
    ),
    "pipe": _special("bad.npz", "pipe"),
    "device": _special("bad.npy", "device"),
    "loop of links": _special("bad.npz", "loop"),
    "no such kind": lambda lab: lab.data("bad.exe", b"MZ"),
}


def _picture(lab: Lab, name: str, data: bytes, others: int = 0) -> tuple[str, ...]:
    (lab / "images").mkdir(exist_ok=True)
    (lab / "images" / name).write_bytes(data)
    return lab.data("images", to="pictures")


def _png(width: int, height: int, data: bytes = b"", depth: int = 8) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) (w) file\nshowpage\n"
IMAGES: Mapping[str, Case] = {
    "empty": lambda lab: _picture(lab, "a.png", b""),
    "noise": lambda lab: _picture(lab, "a.jpg", b"\xff\xd8\xff" + bytes(99)),
    "cut": lambda lab: _picture(lab, "a.png", _png(8, 8, bytes(10))),
    "postscript": lambda lab: _picture(lab, "a.png", EPS),
    "drawing": lambda lab: _picture(lab, "a.gif", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "bomb": lambda lab: _picture(lab, "a.png", _png(60_000, 60_000)),
    "large": lambda lab: _picture(lab, "a.png", _png(9_500, 9_400, bytes(1 << 20))),
    "no pixels": lambda lab: _picture(lab, "a.png", _png(0, 8)),
    "sixteen bits": lambda lab: _picture(lab, "a.png", _png(8, 8, bytes(17 * 8), depth=16)),
    "bitmap of 2^31": lambda lab: _picture(
        lab, "a.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 70, 0, 0, 54, 40, (1 << 31) - 1, 9, 1, 24, *[0] * 6)
    ),
    "tags without end": lambda lab: _picture(
        lab, "a.tif", b"II*\0" + struct.pack("<IHHHII", 8, 65_535, 256, 3, 1 << 31, 8) + bytes(100)
    ),
    "two lines": lambda lab: _picture(lab, "a\nb.png", b"noise"),
    "no images": lambda lab: _picture(lab, "a.txt", b"x"),
    "pipe among them": lambda lab: (_picture(lab, "b.txt", b""), special(lab, "images/a.png", "pipe"))[0],
    "loop among them": lambda lab: (_picture(lab, "b.txt", b""), special(lab, "images/a.png", "loop"))[0],
}


def _parquet(lab: Lab, name: str = "bad.parquet", cut: int | None = None, **columns: Any) -> tuple[str, ...]:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    return lab.data(name, stream.getvalue()[:cut], to="text")


def _long_parquet(lab: Lab) -> tuple[str, ...]:
    """30 million rows in a small file."""
    import pyarrow
    import pyarrow.parquet

    part = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(np.zeros(1_000_000, np.int8), ["good film"])})
    with pyarrow.parquet.ParquetWriter(lab / "bad.parquet", part.schema) as writer:
        for _ in range(30):
            writer.write_table(part)
    assert (lab / "bad.parquet").stat().st_size < 1 << 20
    return lab.data("bad.parquet", to="text")


TEXT: Mapping[str, Case] = {
    "ragged": lambda lab: (*lab.data("bad.csv", "text,label\na,1\nb,0,1,2\n", to="text"), "--strict-data"),
    "zero bytes": lambda lab: lab.data("bad.csv", b"text,label\n\0\0,1\n", to="text"),
    "not utf-8": lambda lab: lab.data("bad.csv", b"text,label\n\xff\xfe,1\n", to="text"),
    "open quote": lambda lab: lab.data("bad.csv", 'text,label\n"' + "a\n" * 99_999, to="text"),
    "no rows": lambda lab: lab.data("bad.tsv", "text\tlabel\n", to="text"),
    "a million columns": lambda lab: lab.data("bad.csv", "text" + "," * 10**6 + "\n", to="text"),
    "a line of 4 GB": lambda lab: sparse(lab / "bad.txt", 4 << 30).name and lab.data("bad.txt", to="text"),
    "a table line of 4 GB": lambda lab: sparse(lab / "bad.csv", 4 << 30).name and lab.data("bad.csv", to="text"),
    "deep json": lambda lab: lab.data("bad.jsonl", '{"text": ' + "[" * 200_000, to="text"),
    "huge number": lambda lab: lab.data("bad.jsonl", '{"text": ' + "9" * 99_999 + "}\n", to="text"),
    "json lists": lambda lab: lab.data("bad.jsonl", "[]\n[]\n", to="text"),
    "text is an object": lambda lab: lab.data("bad.jsonl", '{"text": {}}\n', to="text"),
    "labels are lists": lambda lab: lab.data("bad.jsonl", '{"text": "good", "label": [1]}\n' * 4, to="text"),
    "half a surrogate": lambda lab: lab.data("bad.jsonl", '{"text": "\\ud800"}\n' * 4, to="text"),
    "parquet of noise": lambda lab: lab.data("bad.parquet", b"PAR1" + bytes(range(256)) + b"PAR1", to="text"),
    "half a parquet": lambda lab: _parquet(lab, cut=200, text=["good"] * 9),
    "parquet footer of 2^31": lambda lab: lab.data(
        "bad.parquet", b"PAR1" + bytes(99) + struct.pack("<I", 1 << 31) + b"PAR1", to="text"
    ),
    "parquet without text": lambda lab: _parquet(lab, a=[1, 2, 3]),
    "30 million rows": _long_parquet,
    "pipe": lambda lab: (special(lab, "bad.csv", "pipe"), lab.data("bad.csv", to="text"))[1],
    "device": lambda lab: (special(lab, "bad.txt", "device"), lab.data("bad.txt", to="text"))[1],
}


def _model(**changes: Any) -> dict[str, Any]:
    return {**TOKENIZER, "model": {**TOKENIZER["model"], **changes}}  # type: ignore[dict-item]


OPEN = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
TOKENIZERS: Mapping[str, Case] = {
    "empty object": lambda lab: lab.tokenizer({}),
    "not json": lambda lab: lab.tokenizer(b"noise"),
    "not utf-8": lambda lab: lab.tokenizer(b"\xff\xff"),
    "deep": lambda lab: lab.tokenizer(b'{"model":' * 50_000),
    "unknown type": lambda lab: lab.tokenizer(_model(type="Mine")),
    "ids beyond the table": lambda lab: lab.tokenizer(_model(vocab={"[UNK]": 1 << 20, "good": 1 << 20})),
    "ids of 2^40": lambda lab: lab.tokenizer(_model(vocab={"[UNK]": 1 << 40})),
    "negative ids": lambda lab: lab.tokenizer(_model(vocab={"[UNK]": -1})),
    "no unknown token": lambda lab: lab.tokenizer(_model(unk_token="missing")),
    "padding to 2^40": lambda lab: lab.tokenizer({**TOKENIZER, "padding": {
        "strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]"}}),
    "pattern without end": lambda lab: lab.tokenizer({**TOKENIZER, "pre_tokenizer": OPEN}),
    "text without end": lambda lab: lab.tokenizer({**TOKENIZER, "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": c}, "content": c * 40} for c in "odif" * 8]}}),
}  # fmt: skip


def _names(lab: Lab, content: bytes | str | None, name: str = "names.txt") -> tuple[str, ...]:
    if content is not None:
        lab.file(name, content)
    return "capture", "a.pt", "--out", "c.pt", "--labels", name


def _yaml(lab: Lab, content: bytes | str) -> tuple[str, ...]:
    lab.file("bad.yaml", content)
    return "merge", "a.pt", "a2.pt", "--config", "bad.yaml", "--out", "m.onnx", "--dry-run"


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
NAMES: Mapping[str, Case] = {
    "a million": lambda lab: _names(lab, "".join(f"{i}\n" for i in range(500_000))),
    "too many": lambda lab: _names(lab, "a\nb\nc\nd\n"),
    "zero bytes without end": lambda lab: (special(lab, "names.txt", "device"), _names(lab, None))[1],
    "pipe": lambda lab: (special(lab, "names.txt", "pipe"), _names(lab, None))[1],
    "folder": lambda lab: (special(lab, "names.txt", "folder"), _names(lab, None))[1],
    "deep": lambda lab: _names(lab, "[" * 200_000),
    "not utf-8": lambda lab: _names(lab, b"\xff\xfe\n"),
    "4 GB of nothing": lambda lab: sparse(lab / "names.txt", 4 << 30).name and _names(lab, None),
}
YAML: Mapping[str, Case] = {
    "deep": lambda lab: _yaml(lab, "[" * 100_000),
    "deep blocks": lambda lab: _yaml(lab, "".join(f"{' ' * i}a:\n" for i in range(400))),
    "laughs": lambda lab: _yaml(lab, LAUGHS),
    "itself": lambda lab: _yaml(lab, "data: &x\n  a: *x\n"),
    "python": lambda lab: _yaml(lab, f"!!python/object/apply:eval [{json.dumps(lab.trap.text)}]"),
    "list": lambda lab: _yaml(lab, "- a\n- b\n"),
    "said twice": lambda lab: _yaml(lab, "method: average\nmethod: condense\n"),
    "no date": lambda lab: _yaml(lab, "seed: 2001-99-99\n"),
    "not a number": lambda lab: _yaml(lab, "atol: .nan\n"),
    "huge number": lambda lab: _yaml(lab, "steps: " + "9" * 9_999 + "\n"),
    "text of two lines": lambda lab: _yaml(lab, 'method: "a\\n\\e[31mb"\n'),
    "data is a number": lambda lab: _yaml(lab, "data: 3\n"),
    "data inside data": lambda lab: _yaml(lab, "data: {a: {b: {c: d}}}\n"),
    "not utf-8": lambda lab: _yaml(lab, b"\xff\xfe\x00"),
    "large": lambda lab: _yaml(lab, "a: b\n" * 99_999),
}


def _onnx(lab: Lab, nodes: list[Any] | None = None, kind: int = TensorProto.FLOAT, **said: str) -> tuple[str, ...]:
    """Measure an ONNX file with these calls before its output, which has this metadata."""
    made = nodes or [helper.make_node("Identity", ["x"], ["a.logits"])]
    x = helper.make_tensor_value_info("x", kind, ["batch", 4])
    y = helper.make_tensor_value_info("a.logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(made, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {f"fxmerge.{key}": value for key, value in said.items()})
    onnx.save(model, lab / "bad.onnx")
    return "eval", "bad.onnx", "--data", "x.npz"


def _filled(lab: Lab, size: int) -> list[Any]:
    """A constant of this many numbers, summed and added to the input."""
    shape = helper.make_tensor("s", TensorProto.INT64, [1], [size])
    return [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["a.logits"]),
    ]


def _endless() -> list[Any]:
    """A loop of 2^60 turns."""
    number, truth = TensorProto.INT64, TensorProto.BOOL
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "b",
        [helper.make_tensor_value_info("i", number, []), helper.make_tensor_value_info("c", truth, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("d", truth, []), helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return [
        helper.make_node("Constant", [], ["n"], value=helper.make_tensor("n", number, [], [1 << 60])),
        helper.make_node("Constant", [], ["t"], value=helper.make_tensor("t", truth, [], [True])),
        helper.make_node("Loop", ["n", "t", "x"], ["a.logits"], body=body),
    ]


def _outside(lab: Lab) -> tuple[str, ...]:
    """Weights that are said to lie in a file outside the folder."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "../../../../etc/passwd", "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    model = onnx.load(lab / _onnx(lab)[1])
    model.graph.initializer.append(tensor)
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["a.logits"]))
    (lab / "bad.onnx").write_bytes(model.SerializeToString())
    return "eval", "bad.onnx", "--data", "x.npz"


ONNX: Mapping[str, Case] = {
    "noise": lambda lab: lab.file("bad.onnx", b"noise" * 9, "eval", "bad.onnx", "--data", "x.npz"),
    "empty": lambda lab: lab.file("bad.onnx", b"", "eval", "bad.onnx", "--data", "x.npz"),
    "half": lambda lab: lab.file(
        "bad.onnx", (lab / _onnx(lab, tasks='["a"]')[1]).read_bytes()[:90], "eval", "bad.onnx", "--data", "x.npz"
    ),
    "tasks are a number": lambda lab: _onnx(lab, tasks="3"),
    "tasks are an object": lambda lab: _onnx(lab, tasks='{"a": 1}'),
    "tasks are numbers": lambda lab: _onnx(lab, tasks="[1]"),
    "tasks are no json": lambda lab: _onnx(lab, tasks="a"),
    "tasks are deep": lambda lab: _onnx(lab, tasks="[" * 100_000),
    "task without output": lambda lab: _onnx(lab, tasks='["b"]'),
    "task twice": lambda lab: _onnx(lab, tasks='["a", "a"]'),
    "no tasks": lambda lab: _onnx(lab, tasks="[]"),
    "task of two lines": lambda lab: _onnx(lab, tasks='["a\\nb"]'),
    "labels are a list": lambda lab: _onnx(lab, tasks='["a"]', labels="[1]"),
    "labels are numbers": lambda lab: _onnx(lab, tasks='["a"]', labels='{"a": [1]}'),
    "parents are a list": lambda lab: _onnx(lab, tasks='["a"]', parents="[1]"),
    "parents are numbers": lambda lab: _onnx(lab, tasks='["a"]', parents='{"a": 1}'),
    "text input": lambda lab: _onnx(lab, kind=TensorProto.STRING),
    "40 GB": lambda lab: _onnx(lab, _filled(lab, 10 << 30), tasks='["a"]'),
    "3 GB": lambda lab: _onnx(lab, _filled(lab, 800 << 20), tasks='["a"]'),
    "loop without end": lambda lab: _onnx(lab, _endless(), tasks='["a"]'),
    "data elsewhere": _outside,
    "pipe": lambda lab: (special(lab, "bad.onnx", "pipe"), ("eval", "bad.onnx", "--data", "x.npz"))[1],
    "device": lambda lab: (special(lab, "bad.onnx", "device"), ("eval", "bad.onnx", "--data", "x.npz"))[1],
}

SAMPLES: Mapping[str, Mapping[str, Case]] = {
    "arrays": ARRAYS, "images": IMAGES, "text": TEXT, "tokenizer": TOKENIZERS, "names": NAMES, "yaml": YAML,
    "onnx": ONNX,
}  # fmt: skip
