"""Text as the model's own tokenizer splits it, in the rows that the model takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from fxmerge.errors import DataError
from fxmerge.io.child import ChildError, ask
from fxmerge.ir.program import Port, Program
from fxmerge.messages import listed
from fxmerge.samples.arrays import Array
from fxmerge.samples.columns import Table
from fxmerge.samples.fit import Raw

PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
LONGEST = 512
"""Rows are cut here where neither the tokenizer nor the model sets a limit of its own."""

BLOCK = 128
"""Tokens in a row of running text, for models that predict each next token."""

MOST_TOKENS = 1 << 25
"""Padded to one length, the first rows up to so many tokens are used."""

TOKENS = "fxmerge.samples.workers:tokens"


def tokenize(table: Table, program: Program, where: str) -> Raw:
    """Input arrays for `program`. Raises `DataError` if it has no tokenizer or other inputs."""
    if "tokenizer.json" not in program.assets:
        raise DataError(
            f"{where} is text, but {program.task} has no tokenizer",
            "put tokenizer.json beside the model and capture it again, or give token ids as arrays (.npz)",
        )
    if find_spec("tokenizers") is None:
        raise DataError("reading text needs the tokenizers library", 'install it: pip install "fxmerge[text]"')
    ports = _ports(program, where)
    ids = ports["ids"]
    fixed = ids.shape[1] if isinstance(ids.shape[1], int) else None
    highest = program.ranges.get(str(ids.shape[1]), (0, LONGEST))[1]  # the model's own number of positions
    if "mask" not in ports and _continues(program, ids):
        encoded = _encode(table, program, None, where)
        return _blocks(encoded, table, ids, fixed or min(highest, BLOCK), where)
    encoded = _encode(table, program, fixed or highest, where)
    length = fixed or max((len(row) for row in encoded.ids), default=0)
    rows = min(len(encoded.ids), MOST_TOKENS // max(length, 1))
    inputs: dict[str, Array] = {ids.name: padded(encoded.ids[:rows], length, encoded.pad)}
    if "mask" in ports:
        inputs[ports["mask"].name] = padded([[1] * len(row) for row in encoded.ids[:rows]], length, 0)
    if "types" in ports:
        inputs[ports["types"].name] = padded(encoded.types[:rows], length, 0)
    notes = table.notes
    if rows < len(encoded.ids):
        notes += (f"{where} is large: the first {rows} of {len(encoded.ids)} rows are used",)
    if "mask" not in ports and any(len(row) < length for row in encoded.ids[:rows]):
        notes += (f"{where}: shorter rows are filled with token {encoded.pad}: the model takes no mask",)
    return Raw(inputs, table.labels[:rows] if table.labels else None, notes)


@dataclass(frozen=True)
class Encoded:
    """Tokens of every text, and the one that fills shorter rows."""

    ids: list[list[int]]
    types: list[list[int]]
    pad: int


def _encode(table: Table, program: Program, longest: int | None, where: str) -> Encoded:
    """The texts split by the model's own tokenizer, in a child process. Raises `DataError` if that cannot be."""
    data = program.assets["tokenizer.json"]
    request = {"tokenizer": len(data), "longest": longest, "usual": LONGEST, "pads": PADS}
    encoded = Encoded([], [], 0)
    try:
        texts = [_whole(text) for text in table.texts]
        for answer, payload in ask(TOKENS, request, data + json.dumps(texts).encode()):
            if "pad" in answer:
                encoded = Encoded([], [], answer["pad"])
                continue
            ids, types = json.loads(payload)
            encoded.ids.extend(ids)
            encoded.types.extend(types)
    except ChildError as error:
        raise DataError(
            f"the tokenizer of {program.task} cannot be read: {error}", "capture it again with its tokenizer.json"
        ) from error
    return encoded


def _whole(text: str | tuple[str, str]) -> str | list[str]:
    """A text or a pair of texts without half characters, which JSON may hold."""
    if isinstance(text, tuple):
        return [part.encode("utf-8", "replace").decode() for part in text]
    return text.encode("utf-8", "replace").decode()


def padded(rows: list[list[int]], length: int, fill: int) -> np.ndarray[Any, Any]:
    filled = np.full((len(rows), length), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return filled


def token_ports(ports: Sequence[Port]) -> dict[str, Port]:
    """The inputs that text can fill, by what they hold: token ids, a mask, types. Nothing if one is of another kind."""
    found: dict[str, Port] = {}
    for port in ports:
        kind = "mask" if "mask" in port.name else "types" if "type" in port.name else "ids"
        whole = len(port.shape) == 2 and (kind == "mask" or not port.dtype.is_floating_point)
        if not whole or kind in found:
            return {}
        found[kind] = port
    return found if "ids" in found else {}


def _ports(program: Program, where: str) -> dict[str, Port]:
    found = token_ports(program.inputs)
    if not found:
        names = listed(port.name for port in program.inputs)
        raise DataError(f"{where} is text, which cannot fill the input {names}", "give arrays (.npz) instead")
    return found


def _continues(program: Program, ids: Port) -> bool:
    """Whether the model gives one row of numbers per token, as those that predict the next one do."""
    return any(len(p.shape) == 3 and p.shape[1] == ids.shape[1] for p in program.outputs)


def _blocks(encoded: Encoded, table: Table, ids: Port, block: int, where: str) -> Raw:
    """Running text cut into rows of equal length: no padding, so no mask is needed."""
    flat = np.fromiter((token for row in encoded.ids for token in row), dtype=np.int64)
    block = min(block, len(flat))
    if block == 0:
        raise DataError(f"{where} gives no tokens", "check the tokenizer and the text")
    rows = flat[: min(len(flat), MOST_TOKENS) // block * block].reshape(-1, block)
    note = f"{where}: joined and cut into {len(rows)} rows of {block} tokens"
    return Raw({ids.name: rows}, None, (*table.notes, note))
