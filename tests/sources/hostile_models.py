"""Hostile models: bundles, torch.export archives, pickles, safetensors, folders."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save as to_safetensors

from tests.sources.hostile import Case, Lab, header, sparse, special, write_zip

X = {"node": 0}
"""The input of the graph, as its calls name it."""

BERT: dict[str, Any] = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 8, "vocab_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16,
}  # fmt: skip


def _first(d: dict[str, Any]) -> dict[str, Any]:
    return next(n for n in d["nodes"] if n["op"] == "call_function")


def _flipped(lab: Lab, at: float) -> tuple[str, ...]:
    whole = bytearray((lab / "a.pt").read_bytes())
    place = int(len(whole) * at)
    whole[place : place + 64] = bytes(b ^ 0x55 for b in whole[place : place + 64])
    return lab.file("bad.pt", bytes(whole))


def _cut(lab: Lab, name: str, share: float) -> tuple[str, ...]:
    whole = (lab / name).read_bytes()
    return lab.file(f"bad{name[1:]}", whole[: int(len(whole) * share)])


def _more(lab: Lab, name: str, data: bytes) -> tuple[str, ...]:
    write_zip(lab / "bad.pt", {**lab.members, name: data})
    return "inspect", "bad.pt"


def _squares(d: dict[str, Any]) -> None:
    at = len(d["nodes"])
    d["nodes"].append({"op": "call_function", "target": "operator.mul", "args": [2, 1 << 20]})
    for i in range(40):
        d["nodes"].append({"op": "call_function", "target": "operator.mul", "args": [{"node": at + i}] * 2})


def _many(d: dict[str, Any]) -> None:
    """Five constants of 240 MiB that live at once."""
    at = len(d["nodes"])
    d["nodes"] += [{"op": "call_function", "target": "aten.full.default", "args": [[60 << 20], 1.0]}] * 5
    parts = [{"node": at + i} for i in range(5)]
    d["nodes"].append({"op": "call_function", "target": "aten.stack.default", "args": [parts]})


def _chain(lab: Lab, *calls: tuple[str, list[Any]]) -> tuple[str, ...]:
    """Merge a bundle whose graph has these calls before its output, -1 standing for the call before."""

    def edit(d: dict[str, Any]) -> None:
        for target, args in calls:
            filled = [{"node": len(d["nodes"]) - 1} if a == -1 else a for a in args]
            d["nodes"].append({"op": "call_function", "target": target, "args": filled})
        last = [{"node": d["results"][0]}, {"node": len(d["nodes"]) - 1}]
        d["nodes"].append({"op": "call_function", "target": "aten.add.Tensor", "args": last})
        d["results"] = [len(d["nodes"]) - 1]

    lab.bundle(edit)
    return "merge", "bad.pt", "a2.pt", "--method", "average", "--out", "m.onnx"


def _special(kind: str) -> Case:
    def make(lab: Lab) -> tuple[str, ...]:
        special(lab, "bad.pt", kind)
        return "inspect", "bad.pt"

    return make


BUNDLES: Mapping[str, Case] = {
    "empty": lambda lab: lab.file("bad.pt", b""),
    "noise": lambda lab: lab.file("bad.pt", bytes(range(256)) * 40),
    "zip without end": lambda lab: lab.file("bad.pt", b"PK\x03\x04" + bytes(100)),
    "half": lambda lab: _cut(lab, "a.pt", 0.5),
    "all but a byte": lambda lab: _cut(lab, "a.pt", 0.999),
    "flipped early": lambda lab: _flipped(lab, 0.1),
    "flipped late": lambda lab: _flipped(lab, 0.9),
    "pickle inside": lambda lab: _more(lab, "data.pkl", pickle.dumps(lab.trap.object)),
    "path upwards": lambda lab: _more(lab, "../evil.py", b"x"),
    "absolute path": lambda lab: _more(lab, "/tmp/evil.py", b"x"),
    "zip bomb": lambda lab: (
        write_zip(lab / "bad.pt", {**lab.members, "bundle.json": bytes(100 << 20)}, zipfile.ZIP_DEFLATED).name
        and ("inspect", "bad.pt")
    ),
    "deep json": lambda lab: lab.bundle(graph=b"[" * 300_000),
    "deep arguments": lambda lab: lab.bundle(lambda d: _first(d).update(args=[json.loads("[" * 400 + "]" * 400)])),
    "huge number": lambda lab: lab.bundle(graph=b'{"version": ' + b"9" * 100_000 + b"}"),
    "json list": lambda lab: lab.bundle(graph=b"[]"),
    "not utf-8": lambda lab: lab.bundle(graph=b"\xff\xfe{}"),
    "no members": lambda lab: lab.bundle(weights=None),
    "other version": lambda lab: lab.bundle(lambda d: d.update(version=float("nan"))),
    "no nodes": lambda lab: lab.bundle(lambda d: d.update(nodes={})),
    "two inputs of one name": lambda lab: lab.bundle(lambda d: d["nodes"].insert(0, d["nodes"][0])),
    "code as input": lambda lab: lab.bundle(lambda d: d["nodes"][0].update(target=f"x={lab.trap.text}")),
    "keyword as input": lambda lab: lab.bundle(lambda d: d["nodes"][0].update(target="lambda")),
    "code as weight": lambda lab: lab.bundle(
        lambda d: d["nodes"].insert(1, {"op": "get_attr", "target": f"x'), {lab.trap.text}, ('"})
    ),
    "system": lambda lab: lab.bundle(lambda d: _first(d).update(target="os.system", args=["true"])),
    "eval": lambda lab: lab.bundle(lambda d: _first(d).update(target="builtins.eval.x", args=["1"])),
    "dunder": lambda lab: lab.bundle(lambda d: _first(d).update(target="aten.__class__.mro", args=[])),
    "reads a file": lambda lab: lab.call("aten.from_file.default", ["/etc/passwd"]),
    "in place": lambda lab: lab.call("aten.add_.Tensor", [X, 1]),
    "profiler": lambda lab: lab.call("profiler._record_function_enter.default", ["x"]),
    "module call": lambda lab: lab.bundle(lambda d: _first(d).update(op="call_module", target="x")),
    "future node": lambda lab: lab.bundle(lambda d: _first(d).update(args=[{"node": 10**6}])),
    "itself": lambda lab: lab.call("aten.add.Tensor", [{"node": 10**3}, X]),
    "power": lambda lab: lab.bundle(lambda d: _first(d).update(target="operator.pow", args=[9, 10**9])),
    "squares of squares": lambda lab: lab.bundle(_squares),
    "zeros, 4 TiB": lambda lab: lab.call("aten.zeros.default", [[1 << 40]]),
    "full, 40 GB": lambda lab: lab.call("aten.full.default", [[10 << 30], 1.0]),
    "full, 1.5 GB": lambda lab: lab.call("aten.full.default", [[400 << 20], 1.0]),
    "arange, 8 GB": lambda lab: lab.call("aten.arange.default", [1 << 30]),
    "expanded, then copied": lambda lab: _chain(
        lab, ("aten.sum.default", [X]), ("aten.expand.default", [-1, [1 << 30]]), ("aten.clone.default", [-1])
    ),
    "repeated": lambda lab: lab.call("aten.repeat.default", [X, [1 << 20, 64]]),
    "many at once": lambda lab: lab.bundle(_many),
    "a tensor for every number": lambda lab: _chain(
        lab, ("aten.sum.default", [X]), ("aten.expand.default", [-1, [1 << 28]]), ("aten.unbind.int", [-1])
    ),
    "outer product": lambda lab: _chain(lab, ("aten.arange.default", [1 << 16]), ("aten.outer.default", [-1, -1])),
    "pooling backward": lambda lab: lab.call(
        "aten.max_pool2d_with_indices_backward.default", [X, X, [1, 1], [1, 1], [0, 0], [1, 1], False, X]
    ),
    "embedding backward": lambda lab: lab.call("aten.embedding_dense_backward.default", [X, X, 10, -1, False]),
    "recurrent backward": lambda lab: lab.call("aten.mkldnn_rnn_layer_backward.default", [X] * 7),
    "unpooling": lambda lab: lab.call("aten.max_unpool2d.default", [X, X, [4, 4]]),
    "sparse": lambda lab: lab.call("aten.to_sparse.default", [X]),
    "quantized": lambda lab: lab.call("aten.quantize_per_tensor.default", [X, 0.1, 0, {"dtype": "quint8"}]),
    "strides beyond the end": lambda lab: lab.call("aten.as_strided.default", [X, [1 << 20], [1 << 20], 0]),
    "sizes from data": lambda lab: _chain(
        lab, ("aten.sum.default", [X]), ("aten.item.default", [-1]), ("aten.zeros.default", [[-1]])
    ),
    "packed weights": lambda lab: lab.call("mkldnn._linear_pointwise.default", [X, X, None, "none", [], None]),
    "list operator": lambda lab: lab.call("aten._foreach_abs.default", [[X, X]]),
    "text argument": lambda lab: lab.call("aten.sum.default", ["x" * 1000]),
    "huge integer argument": lambda lab: lab.call("aten.mul.Tensor", [X, 10**400]),
    "input of 2 GiB": lambda lab: lab.bundle(lambda d: d["inputs"][0].update(shape=["batch", 1 << 29])),
    "input of 2^60": lambda lab: lab.bundle(lambda d: d["inputs"][0].update(shape=["batch", 1 << 60])),
    "input of objects": lambda lab: lab.bundle(lambda d: d["inputs"][0].update(dtype="object")),
    "port is a list": lambda lab: lab.bundle(lambda d: d.update(inputs=[[]])),
    "more ports": lambda lab: lab.bundle(lambda d: d["inputs"].append(d["inputs"][0])),
    "ghost parameter": lambda lab: lab.bundle(lambda d: d["parameters"].append("ghost")),
    "alias of itself": lambda lab: lab.bundle(lambda d: d.update(aliases={"y": "y"})),
    "aliases are a list": lambda lab: lab.bundle(lambda d: d.update(aliases=["y"])),
    "a million labels": lambda lab: lab.bundle(lambda d: d.update(labels=[str(i) for i in range(10**6)])),
    "labels are numbers": lambda lab: lab.bundle(lambda d: d.update(labels=[1, 2, 3])),
    "escape codes": lambda lab: lab.bundle(lambda d: d.update(task="\x1b[2Jred")),
    "task of two lines": lambda lab: lab.bundle(lambda d: d.update(task="a\nb")),
    "ranges turned round": lambda lab: lab.bundle(lambda d: d.update(ranges={"batch": [1 << 30, 2]})),
    "ranges of text": lambda lab: lab.bundle(lambda d: d.update(ranges={"batch": "many"})),
    "weights without header": lambda lab: lab.bundle(weights=b"\xff" * 8),
    "weights of another size": lambda lab: lab.bundle(
        weights=header({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, bytes(4))
    ),
    "weights missing": lambda lab: lab.bundle(weights=to_safetensors({})),
    "weights of truth values": lambda lab: lab.bundle(
        weights=to_safetensors({"0.weight": torch.ones(6, 4, dtype=torch.bool)})
    ),
    "loop of links": _special("loop"),
    "pipe": _special("pipe"),
    "device": _special("device"),
    "folder": _special("folder"),
    "name of two lines": lambda lab: lab.file("bad\n\x1b[31m.pt", b"noise", "inspect", "bad\n\x1b[31m.pt"),
}

PT2: Mapping[str, Case] = {
    "half": lambda lab: _cut(lab, "a.pt2", 0.5),
    "deep json": lambda lab: lab.pt2(**{"models__model.json": b"[" * 300_000}),
    "other schema": lambda lab: lab.pt2(lambda d: d.update(schema_version={"major": 99})),
    "no schema": lambda lab: lab.pt2(lambda d: d.pop("schema_version")),
    "compiled code": lambda lab: lab.pt2(**{"data__aotinductor__m__x.so": b"\x7fELF"}),
    "python file": lambda lab: lab.pt2(**{"extra__x.py": lab.trap.text.encode()}),
    "older": lambda lab: lab.pt2(archive_format=b"pt1"),
    "pickled inputs": lambda lab: lab.pt2(**{"data__sample_inputs__model.pt": pickle.dumps(lab.trap.object)}),
    "two models": lambda lab: lab.pt2(**{"models__other.json": b"{}"}),
    "weights config is a list": lambda lab: lab.pt2(**{"data__weights__model_weights_config.json": b"[]"}),
    "system": lambda lab: lab.pt2(
        lambda d: d["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.os.system")
    ),
    "40 GB": lambda lab: lab.pt2(
        lambda d: d["graph_module"]["graph"]["nodes"][0].update(
            target="torch.ops.aten.full.default",
            inputs=[
                {"name": "size", "arg": {"as_ints": [10 << 30]}, "kind": 1},
                {"name": "fill_value", "arg": {"as_float": 1.0}, "kind": 1},
            ],
        )
    ),
    "code as size": lambda lab: lab.pt2(
        lambda d: next(iter(d["graph_module"]["graph"]["tensor_values"].values()))["sizes"].__setitem__(
            0, {"as_expr": {"expr_str": lab.trap.text, "hint": None}}
        )
    ),
    "no graph": lambda lab: lab.pt2(lambda d: d.pop("graph_module")),
}


def _saved(lab: Lab, value: Any, **options: Any) -> tuple[str, ...]:
    torch.save(value, lab / "w.pt", **options)
    return lab.weights()


def _pickled(lab: Lab, value: Any) -> tuple[str, ...]:
    """A file of torch.save with another pickle in it."""
    torch.save({"x": torch.ones(2)}, lab / "w.pt")
    with zipfile.ZipFile(lab / "w.pt") as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    data = value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)
    write_zip(lab / "w.pt", {n: data if n.endswith("data.pkl") else d for n, d in members.items()})
    return lab.weights()


def _itself() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["state_dict"] = value["model"] = value
    return value


def _nested(depth: int) -> Any:
    value: Any = ()
    for _ in range(depth):
        value = (value, value)
    return value


def _quantized() -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # old files hold such tensors; torch warns whoever makes a new one
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)


WEIGHTS: Mapping[str, Case] = {
    "payload": lambda lab: _saved(lab, {"x": lab.trap.object}),
    "payload, older format": lambda lab: _saved(lab, [lab.trap.object], _use_new_zipfile_serialization=False),
    "bare payload": lambda lab: lab.file("w.pt", pickle.dumps(lab.trap.object)) and lab.weights(),
    "whole module": lambda lab: _saved(lab, torch.nn.Linear(2, 2)),
    "refers to itself": lambda lab: _saved(lab, _itself()),
    "deep": lambda lab: _pickled(lab, b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "hash of a billion": lambda lab: _pickled(lab, b"\x80\x02}q\x00(" + b")" + b"2\x86" * 60 + b"K\x01u."),
    "huge pickle": lambda lab: _pickled(lab, b"\x80\x02" + b"N0" * (20 << 20) + b"N."),
    "expanded": lambda lab: _saved(lab, {"0.weight": torch.zeros(1).expand(1 << 33)}),
    "sparse": lambda lab: _saved(lab, {"0.weight": torch.eye(4).to_sparse()}),
    "quantized": lambda lab: _saved(lab, {"x": _quantized()}),
    "torchscript": lambda lab: (
        write_zip(lab / "w.pt", {"m/constants.pkl": b"", "m/data.pkl": b"", "m/version": b"3"}).name and lab.weights()
    ),
    "half of the older format": lambda lab: (
        _saved(lab, {"x": torch.ones(99)}, _use_new_zipfile_serialization=False)
        and lab.file("w.pt", (lab / "w.pt").read_bytes()[:300])
        and lab.weights()
    ),
    "numbers only": lambda lab: _saved(lab, {"epoch": 3, "loss": 0.1}),
    "nothing": lambda lab: _saved(lab, {}),
    "other names": lambda lab: _saved(lab, {"a\nb\x1b[31m": torch.ones(2)}),
    "not a number": lambda lab: _saved(
        lab,
        {
            f"{i}.{n}": torch.full(s, float("nan"))
            for i, n, s in ((0, "weight", (6, 4)), (0, "bias", (6,)), (2, "weight", (3, 6)), (2, "bias", (3,)))
        },
    ),
    "header of 2^62": lambda lab: lab.file("w.safetensors", b"\xff" * 7 + b"\x3f{") and lab.weights("w.safetensors"),
    "header is deep": lambda lab: (
        lab.file("w.safetensors", header(b'{"x":' + b"[" * 200_000)) and lab.weights("w.safetensors")
    ),
    "offsets outside": lambda lab: (
        lab.file("w.safetensors", header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)))
        and lab.weights("w.safetensors")
    ),
    "weights file is a pipe": lambda lab: (special(lab, "p.pt", "pipe"), ("inspect", "p.pt"))[1],
    "a place far away": lambda lab: _pickled(lab, b"\x80\x02}r" + (1 << 30).to_bytes(4, "little") + b"."),
    "4 GB of nothing": lambda lab: ("inspect", sparse(lab / "w.pt", 4 << 30, b"\x80\x02").name),
}

FOLDERS: Mapping[str, Case] = {
    "config is a list": lambda lab: lab.folder_of([]),
    "config is deep": lambda lab: lab.folder_of(b'{"a":' * 100_000),
    "no type": lambda lab: lab.folder_of({}),
    "type is a list": lambda lab: lab.folder_of({"model_type": ["bert"]}),
    "own code": lambda lab: lab.folder_of(
        {"model_type": "mine", "auto_map": {"AutoModel": "evil.Model"}}, **{"evil.py": lab.trap.text.encode()}
    ),
    "a billion layers": lambda lab: lab.folder_of({**BERT, "num_hidden_layers": 10**9}),
    "a thousand layers": lambda lab: lab.folder_of({**BERT, "num_hidden_layers": 1000}),
    "layers inside": lambda lab: lab.folder_of({"model_type": "llava", "text_config": {"num_hidden_layers": 10**9}}),
    "width of a billion": lambda lab: lab.folder_of({**BERT, "hidden_size": 10**9}),
    "vocabulary of 10^18": lambda lab: lab.folder_of({**BERT, "vocab_size": 10**18}),
    "positions of 10^9": lambda lab: lab.folder_of({**BERT, "max_position_embeddings": 10**9}),
    "negative": lambda lab: lab.folder_of({**BERT, "hidden_size": -8}),
    "not a number": lambda lab: lab.folder_of({**BERT, "hidden_size": float("nan")}),
    "class is a number": lambda lab: lab.folder_of({**BERT, "architectures": 3}),
    "class of another kind": lambda lab: lab.folder_of({**BERT, "architectures": ["os"]}),
    "a million labels": lambda lab: lab.folder_of({**BERT, "id2label": {str(i): "x" for i in range(10**6)}}),
    "quantized": lambda lab: lab.folder_of({**BERT, "quantization_config": {"bits": 4}}),
    "index is a list": lambda lab: (
        lab.folder_of(BERT, **{"model.safetensors.index.json": b"[]"}) and _without(lab, "model.safetensors")
    ),
    "shard elsewhere": lambda lab: (
        lab.folder_of(BERT, **{"model.safetensors.index.json": b'{"weight_map": {"x": "../a.pt"}}'})
        and _without(lab, "model.safetensors")
    ),
    "pickled weights": lambda lab: (
        lab.folder_of(BERT, **{"pytorch_model.bin": pickle.dumps(lab.trap.object)})
        and _without(lab, "model.safetensors")
    ),
    "no weights": lambda lab: lab.folder_of(BERT) and _without(lab, "model.safetensors"),
}


def _without(lab: Lab, name: str) -> tuple[str, ...]:
    (lab / "hub" / name).unlink()
    return "inspect", "hub"


MODELS: Mapping[str, Mapping[str, Case]] = {"bundle": BUNDLES, "pt2": PT2, "weights": WEIGHTS, "folder": FOLDERS}
