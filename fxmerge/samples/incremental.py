"""Run a program of tokens one token at a time, the keys and values of earlier ones kept; other inputs are all ones.

    what depends on no token (positions, masks)     is read off a plain run of one row, its last place taken
    attention: a call with queries, keys, values    keys and values are appended to those of the places before;
                                                    of a mask the last query's row is taken
    everything else                                 runs on the last place alone

That is right for programs whose places meet in attention alone; `agrees` tries it out, and who does not agree is run
plainly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Program

ATTENDING = ("query", "key", "value")
"""The words of a schema for what attention reads; "attn_mask" and "is_causal" say which places see which."""
QUERY = -2
"""Axis of the places in queries, keys and values."""


class Incremental:
    """Scores of the next token for rows that grow by a token at a time."""

    def __init__(self, program: Program, ids: str, output: str) -> None:
        self.program, self.ids, self.output = program, ids, output
        self.ports = dict(zip(program.placeholders, program.inputs, strict=True))
        self.entry = next(node for node, port in self.ports.items() if port.name == ids)
        self.exit = next(n for n, port in zip(program.result, program.outputs, strict=True) if port.name == output)
        self.order = [node for node in program.graph.nodes if node.op != "output"]
        short, long = (self._plain(torch.zeros(1, size, dtype=torch.long)) for size in (2, 3))
        self.sizes = {node for node in self.order if isinstance(long[node], int | float)}
        self.moving = {self.entry}
        """What depends on the tokens themselves, and not on their number alone."""
        for node in self.order:
            if node not in self.sizes and self.moving.intersection(node.all_input_nodes):
                self.moving.add(node)
        self.axes = {node: _grown(short[node], long[node]) for node in self.order if node not in self.moving}
        self.kept: dict[tuple[fx.Node, str], Tensor] = {}

    def reset(self) -> None:
        """Forget all rows."""
        self.kept.clear()

    def step(self, ids: Tensor, place: int) -> Tensor:
        """(rows, vocabulary) after the token at `place`, once all before it have been seen."""
        plain = self._plain(ids[:1, : place + 1])
        values: dict[fx.Node, Any] = {self.entry: ids[:, place : place + 1]}
        for node in self.order:
            if node in self.sizes:
                values[node] = _call(node, {n: values.get(n, plain[n]) for n in node.all_input_nodes})
            elif node in self.moving and node is not self.entry:
                values[node] = self._moved(node, values, plain)
        found: Tensor = values[self.exit][:, -1]
        return found

    def agrees(self, row: Tensor) -> bool:
        """Whether a row read token by token gives what it gives at once."""
        try:
            whole = self._plain(row)[self.exit]
            self.reset()
            parts = torch.stack([self.step(row, place) for place in range(row.shape[1])], 1)
        except (RuntimeError, IndexError, TypeError, ValueError):
            return False
        finally:
            self.reset()
        close = parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-3, atol=1e-4 * _size(whole))
        return bool(close)

    def _plain(self, ids: Tensor) -> dict[fx.Node, Any]:
        """Every value of a plain run."""
        values: dict[fx.Node, Any] = {}
        for node in self.order:
            if node.op == "placeholder":
                values[node] = ids if node is self.entry else torch.ones(ids.shape, dtype=self.ports[node].dtype)
            elif node.op == "get_attr":
                values[node] = self.program.tensors[str(node.target)]
            else:
                values[node] = _call(node, values)
        return values

    def _moved(self, node: fx.Node, values: dict[fx.Node, Any], plain: dict[fx.Node, Any]) -> Any:
        """The value of a call at the last place."""
        given = {n: values[n] if n in values else self._last(n, plain[n]) for n in node.all_input_nodes}
        named = _named(node)
        if not named.keys() >= {*ATTENDING}:
            return _call(node, given)
        filled = dict(fx.node.map_arg(named, given.__getitem__))
        for word in ATTENDING[1:]:
            before = self.kept.get((node, word))
            filled[word] = filled[word] if before is None else torch.cat([before, filled[word]], QUERY)
            self.kept[node, word] = filled[word]
        mask = named.get("attn_mask")
        if isinstance(mask, fx.Node) and mask not in values and self.axes[mask] != plain[mask].ndim + QUERY:
            filled["attn_mask"] = plain[mask]
        return node.target(**{**filled, "is_causal": False})  # type: ignore[operator] # the last place sees all

    def _last(self, node: fx.Node, value: Any) -> Any:
        """What stands at the last place of a value that depends on no token."""
        axis = self.axes.get(node)
        return value if axis is None else value.narrow(axis, value.shape[axis] - 1, 1)


def _call(node: fx.Node, given: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _named(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by the words of its schema."""
    schema = getattr(node.target, "_schema", None)
    words = [argument.name for argument in schema.arguments] if schema is not None else []
    return {**dict(zip(words, node.args, strict=False)), **node.kwargs}


def _grown(short: Any, long: Any) -> int | None:
    """The first axis along which a value grows with the text."""
    if not isinstance(short, Tensor) or short.ndim != long.ndim:
        return None
    return next((axis for axis in range(short.ndim) if short.shape[axis] != long.shape[axis]), None)


def _size(values: Tensor) -> float:
    return float(values.abs().max())
