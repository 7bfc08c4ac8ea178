"""Which blocks of a deeper model are kept: runs of its blocks, one for each block that there is room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, fx

from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program
from fxmerge.ir.wide import call, values, widen
from passes.line_up.chains import Chain, Run

ROWS = 32
"""Rows that the errors are measured on."""


def best_cover(errors: Callable[[int, int, int], float], blocks: int, keep: int) -> list[int]:
    """The blocks kept, in order, so that the errors of their runs sum to the least.

    `errors(a, b, k)`: of block k, a <= k < b, in the place of the blocks a to b - 1. Dynamic programming over the
    borders of runs; runs follow each other and cover all blocks.
    """
    best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, 0): (0.0, [])}
    alone = {
        (a, b): min((errors(a, b, k), k) for k in range(a, b)) for a in range(blocks) for b in range(a + 1, blocks + 1)
    }
    for count in range(1, keep + 1):
        for b in range(count, blocks + 1):
            found = [
                (best[count - 1, a][0] + alone[a, b][0], [*best[count - 1, a][1], alone[a, b][1]])
                for a in range(count - 1, b)
                if (count - 1, a) in best
            ]
            if found:
                best[count, b] = min(found)
    return best[keep, blocks][1]


def spread(blocks: int, keep: int) -> list[int]:
    """The blocks kept where nothing is measured: evenly spread, the first among them."""
    return [place * blocks // keep for place in range(keep)]


def measured(chain: Chain, run: Run) -> Callable[[int, int, int], float]:
    """What a block misses in the place of several, in float64, as a share of how the value behind them varies.

    On the program's own samples, or on random inputs. Raises what torch raises where there is no form in float64.
    """
    program, count = chain.program, run.count
    cuts = [chain.cuts[run.border(block)] for block in range(count + 1)]
    insides = [chain.inside(a, b) for a, b in pairwise(cuts)]
    wanted = {*cuts, *(n for inside in insides for node in inside for n in node.all_input_nodes)}
    known = {node: value for node, value in _values(program) if node in wanted}
    spreads = [float((known[cut] - known[cut].mean(0)).square().sum()) + 1e-30 for cut in cuts]
    found: dict[tuple[int, int], Tensor] = {}

    def behind(a: int, k: int) -> Tensor:
        """What block k makes of the value in front of block a."""
        if (a, k) not in found:
            found[a, k] = _through(insides[k], {**known, cuts[k]: known[cuts[a]]}, cuts[k + 1])
        return found[a, k]

    def error(a: int, b: int, k: int) -> float:
        return float((behind(a, k) - known[cuts[b]]).square().sum()) / spreads[b]

    return error


def _values(program: Program) -> list[tuple[fx.Node, Tensor]]:
    rows = max((len(value) for value in program.samples.values() if value.ndim), default=ROWS)
    inputs = {name: widen(value) for name, value in probe(program, rows=min(ROWS, rows)).items()}
    tensors = {name: widen(tensor.detach()) for name, tensor in program.tensors.items()}
    return list(values(program, tensors, inputs))


def _through(inside: Sequence[fx.Node], given: dict[fx.Node, Tensor], end: fx.Node) -> Tensor:
    known = dict(given)
    with torch.no_grad():
        for node in inside:
            if node.op == "call_function":
                known[node] = call(node, known)
    return known[end]
