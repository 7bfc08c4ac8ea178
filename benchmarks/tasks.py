"""Data sets as tensors, read from a folder of plain files (`--data`)."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LENGTH = 48
"""Tokens a row in the text classification tasks; longer rows are cut."""


@dataclass(frozen=True)
class Task:
    """A supervised task. `train` and `test` are the model's inputs by name, rows first; merging never sees labels."""

    name: str
    train: dict[str, Tensor]
    train_labels: Tensor
    test: dict[str, Tensor]
    test_labels: Tensor
    classes: int

    def unlabeled(self, count: int, seed: int) -> dict[str, Tensor]:
        """`count` random training inputs without their labels."""
        rows = torch.randperm(len(self.train_labels), generator=torch.Generator().manual_seed(seed))[:count]
        return {name: x[rows] for name, x in self.train.items()}


def images(folder: Path, name: str, classes: Sequence[int] = range(10), task: str = "", flat: bool = False) -> Task:
    """Images (N, C, H, W) in 0..1, or flat (N, C * H * W), of the given classes, which are numbered from 0."""
    data = np.load(_existing(folder, f"{name}.npz"), allow_pickle=False)
    number = torch.full((10,), -1)
    number[list(classes)] = torch.arange(len(classes))
    parts: dict[str, Any] = {}
    for part in ("train", "test"):
        labels = number[torch.tensor(data[f"y_{part}"].astype(np.int64))]
        x = torch.tensor(data[f"x_{part}"], dtype=torch.float32) / 255
        x = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()
        parts[part] = {"x": (x.flatten(1) if flat else x)[labels >= 0]}
        parts[f"{part}_labels"] = labels[labels >= 0]
    return Task(task or name, classes=len(classes), **parts)


def texts(folder: Path, names: Sequence[str], vocabulary: int, learnt: Sequence[str] = ()) -> list[Task]:
    """Sentence classification tasks under one word-piece tokenizer, trained on the sentences of `learnt`, or of all."""
    rows = {name: _tsv(_existing(folder, f"{name}.tsv")) for name in (*names, *learnt)}
    encoder = _word_pieces(
        [text for name in (learnt or names) for part, _, text in rows[name] if part == "train"], vocabulary
    )
    tasks = []
    for name in names:
        parts: dict[str, Any] = {}
        for part in ("train", "test"):
            chosen = [(label, text) for where, label, text in rows[name] if where == part]
            encoded = encoder.encode_batch([text for _, text in chosen])
            parts[part] = {
                "input_ids": torch.tensor([row.ids for row in encoded]),
                "attention_mask": torch.tensor([row.attention_mask for row in encoded]),
            }
            parts[f"{part}_labels"] = torch.tensor([label for label, _ in chosen])
        tasks.append(Task(name, classes=int(parts["train_labels"].max()) + 1, **parts))
    return tasks


def bytes_of(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Training and validation text as byte values (N,). Shakespeare's last tenth is its validation part."""
    if name == "wikitext2":
        return tuple(_bytes(_existing(folder, f"wikitext2_{part}.txt")) for part in ("train", "valid"))  # type: ignore[return-value]
    whole = _bytes(_existing(folder, f"{name}.txt"))
    cut = len(whole) * 9 // 10
    return whole[:cut], whole[cut:]


def _bytes(path: Path) -> Tensor:
    return torch.tensor(np.fromfile(path, dtype=np.uint8).astype(np.int64))


def _tsv(path: Path) -> list[tuple[str, int, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(part, int(label), text) for part, label, text in rows]


def _word_pieces(sentences: Sequence[str], vocabulary: int) -> Any:
    """A tokenizer trained on sentences, and kept: each training orders the pieces anew, and parents know one order."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    digest = hashlib.sha256("\n".join([str(vocabulary), str(LENGTH), *sentences]).encode()).hexdigest()[:12]
    path = Path(__file__).parent / ".cache" / f"tokenizer-{digest}.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    path.parent.mkdir(exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise SystemExit(
            f"{name} is not in {folder}\ngive the folder of the data sets with --data (benchmarks/README.md)"
        )
    return path
