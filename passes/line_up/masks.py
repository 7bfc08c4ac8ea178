"""Masks of attention by what they hide, not by how they are computed.

    nothing              -->   no mask
    all later keys       -->   is_causal
    padding              -->   tokens ≠ 0, boolean

A mask that depends on sizes, and at most on one input of zeros and ones, is computed for random inputs, longer than any
number that stands in its computation, and compared. What that cannot prove is checked on the samples and noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call
from fxmerge.ir.program import Port, Program, target_name
from fxmerge.ir.shown import showing
from passes.rewrites.masks import MASKED

aten = torch.ops.aten
SDPA = "aten.scaled_dot_product_attention.default"
"""The one call whose masks are written anew; what computes them may be anything, for it is run."""

ROWS, LONGEST = 5, 1100
"""Rows of a probe, and its greatest length; a mask of a dynamic length that would need a greater one is left alone."""


@dataclass(frozen=True)
class _Meaning:
    """What a mask hides: nothing, what comes later, or where an input is zero."""

    causal: bool = False
    padding: str | None = None
    zeros_and_ones: bool = False
    """Whether that holds only where the input holds nothing else."""
    every_row: bool = False
    """Whether that holds only where every row is shown a key: what is hidden is low, not −∞."""

    @property
    def assumed(self) -> str:
        """What is taken for granted of the input; "" for nothing."""
        if self.zeros_and_ones:
            return "hold zeros and ones, and a one for every row"
        return "show every row a key" if self.every_row else ""


def plain_masks(program: Program) -> Program:
    """`program` with every mask of attention in its one spelling, where it is known what it hides."""
    graph, where = program.copy_graph()
    meanings: dict[fx.Node, _Meaning | None] = {}
    notes = list(program.notes)
    for node in program.graph.nodes:
        mask = _mask_of(node)
        if mask is None:
            continue
        if mask not in meanings:
            meanings[mask] = _meaning(program, mask, node)
        found = meanings[mask]
        if found is not None:
            _write(where[node], found, program)
            if found.assumed:
                notes.append(f"{found.padding} is taken to {found.assumed}")
    if not any(meanings.values()):
        return program
    return program.evolve(graph=graph, notes=tuple(dict.fromkeys(notes)))


def _mask_of(node: fx.Node) -> fx.Node | None:
    if node.op != "call_function" or target_name(node.target) != SDPA:
        return None
    given = Call.of(node).arguments
    mask = given["attn_mask"]
    return mask if isinstance(mask, fx.Node) and not given["is_causal"] else None


def _write(node: fx.Node, found: _Meaning, program: Program) -> None:
    given = Call.of(node).arguments
    mask = None
    if found.padding is not None:
        place = [port.name for port in program.inputs].index(found.padding)
        tokens = [n for n in node.graph.nodes if n.op == "placeholder"][place]
        with node.graph.inserting_before(node):
            seen = tokens
            if program.inputs[place].dtype is not torch.bool:
                seen = node.graph.call_function(aten.ne.Scalar, (tokens, 0))
            mask = node.graph.call_function(aten.unsqueeze.default, (seen, 1))
            mask = node.graph.call_function(aten.unsqueeze.default, (mask, 2))
        for made in (seen, mask):
            made.meta.setdefault("by", "plain-masks")
    names = ("query", "key", "value")
    node.args = (*(given[name] for name in names), mask, given["dropout_p"], found.causal)
    node.kwargs = {name: given[name] for name in ("scale", "enable_gqa") if given[name]}


# -- what a mask hides ---------------------------------------------------------------------------------------


def _meaning(program: Program, mask: fx.Node, attention: fx.Node) -> _Meaning | None:
    length = _length(program, mask)
    if length is None:
        return None
    shown = showing(program, {"mask": mask})
    keys = attention.args[1].meta["val"].shape[-2]  # type: ignore[union-attr]
    queries = attention.args[0].meta["val"].shape[-2]  # type: ignore[union-attr]
    found = []
    for highest in (1, 3):
        inputs = _probe(program, length, highest)
        seen, sizes = _seen(shown.run(inputs)["mask"]), _sizes(program, inputs)
        fitting = () if seen is None else _fitting(program, seen, inputs, sizes(queries), sizes(keys))
        found.append(next(iter(fitting), None))
    known, beyond = found
    if known is None:
        return None
    value = mask.meta["val"]
    finite = value.is_floating_point() and not _is_infinite(shown.run(_probe(program, length, 1))["mask"])
    if known.padding is None and beyond != known:
        return None
    if known.padding is not None:
        known = replace(known, zeros_and_ones=beyond != known, every_row=finite)
    return known if _samples_agree(program, known) else None


def _fitting(program: Program, seen: Tensor, inputs: dict[str, Tensor], queries: int, keys: int) -> Iterator[_Meaning]:
    """What may be hidden, if that is what is."""
    if bool(seen.all()):
        yield _Meaning()
    lower = torch.ones(queries, keys, dtype=torch.bool).tril()
    if _equal(seen, lower) and queries > 1:
        yield _Meaning(causal=True)
    for port in program.inputs:
        value = inputs[port.name]
        tokens = not port.dtype.is_floating_point and value.ndim == 2 and value.shape[1] == keys
        if tokens and _equal(seen, (value != 0)[:, None, None, :]):
            yield _Meaning(padding=port.name)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two masks are the same, spread over all rows, heads and queries; a broadcast axis stays one."""
    try:
        return bool((a == b).all())
    except RuntimeError:
        return False


def _seen(mask: Tensor) -> Tensor | None:
    """Where a mask lets keys be seen; None for a bias, which is none."""
    if mask.dtype is torch.bool:
        return mask
    seen = mask == 0
    return seen if bool((seen | (mask <= MASKED)).all()) else None


def _is_infinite(mask: Tensor) -> bool:
    return bool(((mask == 0) | (mask == -torch.inf)).all())


def _samples_agree(program: Program, known: _Meaning) -> bool:
    """Whether the samples bear out what is taken for granted; where there are none, only a row without keys is open."""
    value = program.samples.get(str(known.padding))
    if value is None or not known.assumed:
        return not known.zeros_and_ones
    sound = bool(((value == 0) | (value == 1)).all()) or not known.zeros_and_ones
    return sound and bool((value != 0).any(-1).all())


# -- probing -------------------------------------------------------------------------------------------------


def _length(program: Program, mask: fx.Node) -> int | None:
    """A length behind all numbers in a mask's computation; None if it depends on parameters, or would be too long."""
    largest, seen, todo = 1, {mask}, [mask]
    while todo:
        node = todo.pop()
        if node.op == "get_attr":
            held = program.tensors[str(node.target)]
            table = held.is_floating_point() and held.ndim > 0
            if node.target in program.parameters or held.device.type == "meta" or table:
                return None
            largest = max([largest, *held.shape])
        if node.op == "call_function":
            largest = max([largest, *_numbers(node)])
        for operand in node.all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                todo.append(operand)
    length = 2 * largest + 3
    return length if length <= LONGEST or not _lengths(program) else None


def _numbers(node: fx.Node) -> list[int]:
    """The numbers that stand in a call; a slice to the end has none there."""
    found: list[int] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda a: found.append(abs(a)) if type(a) is int else None)
    return [n for n in found if n < 1 << 31]


def _lengths(program: Program) -> list[str]:
    """The dynamic sizes that are no number of rows."""
    rows = {port.shape[0] for port in program.inputs if port.shape}
    return [name for name in program.hints if name not in rows]


def _probe(program: Program, length: int, highest: int) -> dict[str, Tensor]:
    """Random inputs of a length; integers go from 0 to `highest`."""
    made = torch.Generator().manual_seed(highest)
    lengths, sizes = _lengths(program), {}
    for number, name in enumerate(program.hints):
        low, high = program.ranges.get(name, (2, 1 << 30))
        sizes[name] = min(max(low, number + (length if name in lengths else ROWS)), high)

    def value(port: Port) -> Tensor:
        shape = [sizes[n] if isinstance(n, str) else n for n in port.shape]
        if port.dtype.is_floating_point:
            return torch.randn(shape, generator=made).to(port.dtype)
        return torch.randint(0, highest + 1, shape, generator=made).to(port.dtype)

    return {port.name: value(port) for port in program.inputs}


def _sizes(program: Program, inputs: dict[str, Tensor]) -> Callable[[int], int]:
    """From a size at the program's hints to the size in a probe."""
    there = {
        program.hints[name]: int(n)
        for port in program.inputs
        for name, n in zip(port.shape, inputs[port.name].shape, strict=True)
        if isinstance(name, str)
    }
    return lambda size: there.get(size, size)
