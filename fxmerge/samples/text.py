"""Text from tables (.csv, .tsv, .jsonl, .parquet) and .txt files, as the model's own tokenizer splits it."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxmerge.errors import DataError
from fxmerge.ir.program import Port, Program
from fxmerge.messages import listed, printable, reason
from fxmerge.samples.arrays import Array
from fxmerge.samples.fit import Raw

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
TEXTS = ("text", "sentence", "content", "document", "review", "question", "title")
LABELS = ("label", "labels", "y", "class", "target")
PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
LONGEST = 512
"""Rows are cut here where the model sets no limit of its own."""

BLOCK = 128
"""Tokens in a row of running text, for models that predict each next token."""


@dataclass(frozen=True)
class Table:
    """Rows of text, with their labels where a column holds some."""

    texts: list[str]
    labels: list[Any] | None
    notes: tuple[str, ...]


def read_text(path: Path, limit: int | None) -> Table:
    """The text and label columns of a file: by name, or, without a header, the longest text and the whole numbers.

    Raises `DataError` if the file cannot be read or has no text.
    """
    if path.suffix == ".txt":
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = [line for line in stream if line.strip()]
        return _checked(Table(lines[:limit], None, ()), path)
    rows, named = _rows(path, limit)
    if not rows:
        raise DataError(f"{path} has no rows", "write the samples again")
    columns = list(rows[0])
    text = next((c for c in columns if named and c.lower() in TEXTS), None) or _longest(rows, path)
    label = next((c for c in columns if named and c.lower() in LABELS and c != text), None)
    if not named:
        label = next((c for c in columns if c != text and all(str(row[c]).isdigit() for row in rows)), None)
    notes: tuple[str, ...] = ()
    if not named or text.lower() not in TEXTS:
        notes = (f"{path}: text taken from column {printable(text)}, labels from {printable(label or 'none')}",)
    labels = None if label is None else [row.get(label) for row in rows]
    if labels and any(value in (None, "") for value in labels):
        labels, notes = None, (*notes, f"{path}: some rows have no label, so none are used")
    return _checked(Table([row.get(text) for row in rows], labels, notes), path)  # type: ignore[misc]


def tokenize(table: Table, program: Program, where: str) -> Raw:
    """Input arrays for `program`. Raises `DataError` if it has no tokenizer or other inputs."""
    tokenizer = _tokenizer(program, where)
    ports = _ports(program, where)
    ids = ports["ids"]
    fixed = ids.shape[1] if isinstance(ids.shape[1], int) else None
    highest = program.ranges.get(str(ids.shape[1]), (0, LONGEST))[1]
    if "mask" not in ports and _continues(program, ids):
        block = fixed or min(highest, BLOCK)
        return _blocks(table, tokenizer, ids, block, where)
    tokenizer.enable_truncation(max_length=fixed or min(highest, LONGEST))
    pad = _pad(tokenizer)
    tokenizer.enable_padding(pad_id=pad[0], pad_token=pad[1], length=fixed)
    encoded = tokenizer.encode_batch(table.texts)
    inputs: dict[str, Array] = {ids.name: np.array([e.ids for e in encoded], dtype=np.int64)}
    if "mask" in ports:
        inputs[ports["mask"].name] = np.array([e.attention_mask for e in encoded], dtype=np.int64)
    if "types" in ports:
        inputs[ports["types"].name] = np.array([e.type_ids for e in encoded], dtype=np.int64)
    notes = table.notes
    if "mask" not in ports and any(0 in e.attention_mask for e in encoded):
        notes += (f"{where}: shorter rows are filled with token {pad[0]}: the model takes no mask",)
    return Raw(inputs, table.labels, notes)


def _rows(path: Path, limit: int | None) -> tuple[list[dict[str, Any]], bool]:
    """The first rows of a table, and whether its columns have names."""
    try:
        from datasets import Features, IterableDataset, Value
    except ImportError as error:
        raise DataError(
            "reading tables needs the datasets library", 'install it: pip install "fxmerge[text]"'
        ) from error
    named = True
    with tempfile.TemporaryDirectory() as folder:
        # A link with a plain name: the library would take "::", "*" and the like in a path for instructions.
        link = Path(folder) / f"data{path.suffix}"
        link.symlink_to(path.resolve())
        try:
            if path.suffix in (".csv", ".tsv"):
                columns, named, options = _columns(path)
                features = Features({name: Value("string") for name in columns})
                data = IterableDataset.from_csv(str(link), cache_dir=folder, features=features, **options)
            elif path.suffix == ".jsonl":
                data = IterableDataset.from_json(str(link), cache_dir=folder)
            else:
                data = IterableDataset.from_parquet(str(link), cache_dir=folder)
            return [dict(row) for row in (data if limit is None else data.take(limit))], named
        except Exception as error:  # pandas, pyarrow and the library itself each have their own errors
            raise DataError(
                f"{path} cannot be read: {reason(error.__cause__ or error)}", "repair the file, or write it again"
            ) from error


def _columns(path: Path) -> tuple[list[str], bool, dict[str, Any]]:
    """Column names of a .csv or .tsv file, whether its first line gives them, and how to read it.

    A .tsv file has no quoting, so that a text may hold quotation marks.
    """
    tabs = path.suffix == ".tsv"
    with open(path, encoding="utf-8-sig", newline="") as stream:
        line = next(stream, "").rstrip("\r\n")
    first = line.split("\t") if tabs else next(csv.reader([line]), [])
    named = any(cell.strip().lower() in (*TEXTS, *LABELS) for cell in first)
    columns = [cell.strip() for cell in first] if named else [str(i) for i in range(len(first))]
    options = {
        "sep": "\t" if tabs else ",",
        "quoting": csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        "header": 0 if named else None,
        "column_names": columns,
        "keep_default_na": False,
    }
    return columns, named, options


def _longest(rows: Sequence[dict[str, Any]], path: Path) -> str:
    """The column with most text."""
    lengths = {c: sum(len(row[c]) for row in rows if isinstance(row[c], str)) for c in rows[0]}
    best = max(lengths, key=lambda c: lengths[c])
    if lengths[best] == 0:
        raise DataError(f"{path} has no column of text (it has {printable(listed(rows[0]))})", f"name one {TEXTS[0]!r}")
    return best


def _checked(table: Table, path: Path) -> Table:
    bad = next((i for i, text in enumerate(table.texts) if not isinstance(text, str)), None)
    if bad is not None:
        raise DataError(f"{path}: row {bad + 1} has no text", "remove that row")
    if not table.texts:
        raise DataError(f"{path} has no text", "write the samples again")
    return table


def _tokenizer(program: Program, where: str) -> Any:
    data = program.assets.get("tokenizer.json")
    if data is None:
        raise DataError(
            f"{where} is text, but {program.task} has no tokenizer",
            "put tokenizer.json beside the model and capture it again, or give token ids as arrays (.npz)",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError(
            "reading text needs the tokenizers library", 'install it: pip install "fxmerge[text]"'
        ) from error
    try:
        return Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises plain Exception
        raise DataError(
            f"the tokenizer of {program.task} cannot be read: {reason(error)}",
            "capture it again with its tokenizer.json",
        ) from error


def _ports(program: Program, where: str) -> dict[str, Port]:
    """The inputs that text can fill, by what they hold: token ids, a mask, types."""
    found: dict[str, Port] = {}
    for port in program.inputs:
        kind = "mask" if "mask" in port.name else "types" if "type" in port.name else "ids"
        whole = len(port.shape) == 2 and (kind == "mask" or not port.dtype.is_floating_point)
        if not whole or kind in found:
            raise DataError(f"{where} is text, which cannot fill the input {port.name}", "give arrays (.npz) instead")
        found[kind] = port
    if "ids" not in found:
        raise DataError(f"{where} is text, but {program.task} takes no tokens", "give arrays (.npz) instead")
    return found


def _continues(program: Program, ids: Port) -> bool:
    """Whether the model gives one row of numbers per token, as those that predict the next one do."""
    return any(len(p.shape) == 3 and p.shape[1] == ids.shape[1] for p in program.outputs)


def _blocks(table: Table, tokenizer: Any, ids: Port, block: int, where: str) -> Raw:
    """Running text cut into rows of equal length: no padding, so no mask is needed."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoded = tokenizer.encode_batch(table.texts)
    flat = np.array([i for e in encoded for i in e.ids], dtype=np.int64)
    block = min(block, len(flat))
    if block == 0:
        raise DataError(f"{where} gives no tokens", "check the tokenizer and the text")
    rows = flat[: len(flat) // block * block].reshape(-1, block)
    note = f"{where}: joined and cut into {len(rows)} rows of {block} tokens"
    return Raw({ids.name: rows}, None, (*table.notes, note))


def _pad(tokenizer: Any) -> tuple[int, str]:
    """The padding token: the tokenizer's own, or the first usual name it knows, or token 0."""
    if tokenizer.padding:
        return tokenizer.padding["pad_id"], tokenizer.padding["pad_token"]
    for name in PADS:
        if (number := tokenizer.token_to_id(name)) is not None:
            return number, name
    return 0, tokenizer.id_to_token(0) or ""
