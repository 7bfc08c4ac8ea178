"""A laboratory of good files, and the tools to damage them. What is made of them: hostile_models, hostile_samples."""

from __future__ import annotations

import copy
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from fxmerge.capturing import capture
from fxmerge.sources.bundle import save_bundle

Edit = Callable[[dict[str, Any]], Any]
Case = Callable[["Lab"], tuple[str, ...]]
"""Writes a hostile file and gives the command line that reads it."""

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film"]
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(WORDS)}, "unk_token": "[UNK]"},
}  # fmt: skip
NET = """import torch
def build():
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
"""


class Reader(nn.Module):
    """Token ids and a mask to 3 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head((self.table(input_ids) * attention_mask[..., None]).sum(1))


class Lab:
    """A folder with good files (`a.pt`, `text.pt`, `pictures.pt`, `a.pt2`, `net.py`) and room for bad ones."""

    def __init__(self, folder: Path, trap: Any) -> None:
        self.folder, self.trap = folder, trap

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def members(self) -> dict[str, bytes]:
        return _members(self / "a.pt")

    def bundle(self, edit: Edit | None = None, *, only: str = "a.pt", **replaced: Any) -> tuple[str, ...]:
        """Inspect a copy of a bundle with its description edited and members replaced (None removes one)."""
        members = _members(self / only)
        if edit is not None:
            description = json.loads(members["bundle.json"])
            edit(description)
            members["bundle.json"] = json.dumps(description).encode()
        for name, data in replaced.items():
            key = {"graph": "bundle.json", "weights": "weights.safetensors", "samples": "samples.safetensors"}[name]
            members[key] = data
        write_zip(self / "bad.pt", {n: d for n, d in members.items() if d is not None})
        return "inspect", "bad.pt"

    def call(self, target: str, args: list[Any], **kwargs: Any) -> tuple[str, ...]:
        """Inspect a bundle whose graph calls `target` as well, and adds what it gives to its output."""

        def edit(d: dict[str, Any]) -> None:
            at, result = len(d["nodes"]), d["results"][0]
            d["nodes"].append({"op": "call_function", "target": target, "args": args, "kwargs": kwargs})
            d["nodes"].append({"op": "call_function", "target": "aten.sum.default", "args": [{"node": at}]})
            total = {"op": "call_function", "target": "aten.add.Tensor", "args": [{"node": result}, {"node": at + 1}]}
            d["nodes"].append(total)
            d["results"] = [at + 2]

        self.bundle(edit)
        return "merge", "bad.pt", "a2.pt", "--method", "average", "--out", "m.onnx"

    def pt2(self, edit: Edit | None = None, **members: Any) -> tuple[str, ...]:
        found = _members(self / "a.pt2")
        model = next(n for n in found if n.endswith("models/model.json"))
        root = model.removesuffix("models/model.json")
        if edit is not None:
            description = json.loads(found[model])
            edit(description)
            found[model] = json.dumps(description).encode()
        found |= {root + name.replace("__", "/"): data for name, data in members.items()}
        write_zip(self / "bad.pt2", found)
        return "inspect", "bad.pt2"

    def file(self, name: str, data: bytes | str, *args: str) -> tuple[str, ...]:
        """A file with this content; the command is `inspect` unless given."""
        (self / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return args or ("inspect", name)

    def weights(self, name: str = "w.pt") -> tuple[str, ...]:
        return "inspect", name, "--arch", "net.py:build", "--inputs", "x.npz"

    def data(self, name: str, content: bytes | str | None = None, *, to: str = "a") -> tuple[str, ...]:
        """A merge of two copies of a model that reads this file as samples, and writes nothing."""
        if content is not None:
            self.file(name, content)
        return "merge", f"{to}.pt", f"{to}2.pt", "--data", f"{to}={name}", "--out", "m.onnx", "--dry-run"

    def folder_of(self, config: Any, **files: Any) -> tuple[str, ...]:
        """A folder in Hugging Face layout."""
        folder = self / "hub"
        folder.mkdir()
        (folder / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
        files = {"model.safetensors": to_safetensors({"x": torch.ones(2)})} | files
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return "inspect", "hub"

    def tokenizer(self, value: Any) -> tuple[str, ...]:
        """Text read with this tokenizer."""
        members = _members(self / "text.pt")
        members["assets/tokenizer.json"] = value if isinstance(value, bytes) else json.dumps(value).encode()
        write_zip(self / "bad.pt", members)
        self.file("t.csv", "text,label\n" + "good film,1\nbad film,0\n" * 20)
        return "merge", "bad.pt", "text2.pt", "--data", "t.csv", "--out", "m.onnx", "--dry-run"


@dataclass(frozen=True)
class Outcome:
    code: int
    error: str


def build(folder: Path) -> None:
    """The good files of a laboratory."""
    torch.manual_seed(0)
    x = torch.rand(8, 4)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    program = capture(net, (x,), task="a")
    ids = torch.tensor([[2, 3, 4, 1], [3, 4, 0, 0], [2, 2, 4, 0]])
    text = capture(Reader(), {"input_ids": ids, "attention_mask": (ids != 0).long()}, task="text")
    text = text.evolve(assets={"tokenizer.json": json.dumps(TOKENIZER).encode()})
    pictures = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    seen = capture(pictures, (torch.rand(3, 1, 8, 8),), task="pictures")
    for name, made in {"a": program, "text": text, "pictures": seen}.items():
        save_bundle(made, folder / f"{name}.pt")
        save_bundle(made.evolve(task=f"{name}2"), folder / f"{name}2.pt")
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=shapes), folder / "a.pt2")
    np.savez(folder / "x.npz", x=x.numpy())
    (folder / "net.py").write_text(NET)


def write_zip(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + data


def shape_of(shape: Any, kind: str = "'<f4'") -> str:
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}"


def npz(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def header(entries: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def sparse(path: Path, size: int, start: bytes = b"") -> Path:
    """A file of `size` bytes that takes no room on the disk."""
    with open(path, "wb") as stream:
        stream.write(start)
        stream.truncate(size)
    return path


def special(lab: Lab, name: str, kind: str) -> None:
    """A link that leads nowhere good, a pipe, a folder, or a device."""
    path = lab / name
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


def _members(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return copy.copy({name: archive.read(name) for name in archive.namelist()})
