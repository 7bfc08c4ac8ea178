"""Which axis of every value counts the rows, in a program that takes one number of rows alone, found by running it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program

ROUGH = 1e-4
"""How far a value may move, as a share of its largest entry, when its rows come in another order."""


def row_axes(program: Program) -> Mapping[fx.Node, int | None]:
    """The axis that follows when the rows of all inputs come in another order; None for a value that stays as it is.

    A value that does neither (rows and time in one axis, say) is missing.
    """
    block = program.block
    assert block is not None
    given = list(probe(program).values())
    index = torch.randperm(block.rows, generator=torch.Generator().manual_seed(0))
    index = index.flip(0) if bool((index == torch.arange(block.rows)).all()) else index
    turned = [v.index_select(0, index) if has else v for v, has in zip(given, block.inputs, strict=True)]
    before, after = _values(program, given), _values(program, turned)
    found: dict[fx.Node, int | None] = {}
    for node, value in before.items():
        axes = [a for a in range(value.ndim) if value.shape[a] == block.rows]
        axis = next((a for a in axes if _close(value.index_select(a, index.to(value.device)), after[node])), None)
        if axis is not None or _close(value, after[node]):
            found[node] = axis
    return found


def _values(program: Program, inputs: list[Tensor]) -> dict[fx.Node, Tensor]:
    """Every node of the program that is one tensor, with its value."""
    module = program.module
    run = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        run.run(*inputs)
    # the module's graph may be a copy, with tensors under other names
    nodes = zip(program.graph.nodes, module.graph.nodes, strict=True)
    return {ours: v for ours, theirs in nodes if isinstance(v := run.env.get(theirs), Tensor)}


def _close(x: Tensor, y: Tensor) -> bool:
    """Whether two values are the same but for rounding."""
    if not x.is_floating_point():
        return bool((x == y).all())
    finite = x[x.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 1.0
    return torch.allclose(x, y, rtol=0, atol=ROUGH * largest + 1e-7, equal_nan=True)
