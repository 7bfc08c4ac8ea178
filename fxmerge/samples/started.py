"""Samples from nothing: a language model that nobody gave a text writes its own, each row from one token at random."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Port, Program
from fxmerge.samples.written import Writer

ROWS = 128
LONGEST = 64
"""Tokens of a row, where the length is free."""


def started(program: Program, seed: int = 0) -> dict[str, Tensor]:
    """Rows by input name; empty for a program that is no language model, or that looks ahead."""
    found = _writer(program)
    if found is None:
        return {}
    writer, tokens = found
    generator = torch.Generator().manual_seed(seed)
    for length in _lengths(program, writer.ids):
        rows = {port.name: torch.ones(ROWS, length, dtype=port.dtype) for port in program.inputs}
        rows[writer.ids] = torch.randint(tokens, (ROWS, length), generator=generator).to(rows[writer.ids].dtype)
        try:
            able = writer.looks_back(rows[writer.ids])
        except (IndexError, RuntimeError):  # more places than a table of positions has
            continue
        return writer.write(rows, ROWS, seed, 1, each=writer.incremental(rows)) if able else {}
    return {}


def _lengths(program: Program, ids: str) -> list[int]:
    """Lengths of rows to try, the longest first; the one that it was traced with last."""
    size = next(port.shape[1] for port in program.inputs if port.name == ids)
    if not isinstance(size, str):
        return [size]
    low, high = program.ranges.get(size, (1, LONGEST))
    halves = [LONGEST >> n for n in range(4)]
    return [*(length for length in halves if low <= length <= high), program.hints[size]]


def _writer(program: Program) -> tuple[Writer, int] | None:
    """What reads tokens from a table and gives a score to each of its rows at every place, and how many rows it has."""
    nodes = dict(zip(program.placeholders, program.inputs, strict=True))
    texts = [node for node, port in nodes.items() if not port.dtype.is_floating_point and len(port.shape) == 2]
    tables = {node: sizes for node in texts if (sizes := _looked_up(node))}
    if len(tables) != 1 or len(nodes) > 2:
        return None
    [(ids, sizes)] = tables.items()
    others = [port for node, port in nodes.items() if node is not ids]
    if any(port.shape[1:] != nodes[ids].shape[1:] for port in others):
        return None
    outputs = [port for port in program.outputs if _scores(port, nodes[ids], sizes)]
    if len(outputs) != 1:
        return None
    mask = others[0].name if others else None
    return Writer(program, nodes[ids].name, mask, outputs[0].name), int(outputs[0].shape[2])


def _scores(output: Port, ids: Port, sizes: set[int]) -> bool:
    shape = output.shape
    return output.dtype.is_floating_point and len(shape) == 3 and shape[:2] == ids.shape and shape[2] in sizes


def _looked_up(ids: fx.Node) -> set[int]:
    """How many rows the tables have that a call reads beside the tokens."""
    beside = [n for user in ids.users for n in user.all_input_nodes if n.op == "get_attr"]
    return {int(n.meta["val"].shape[0]) for n in beside if n.meta["val"].ndim == 2}
