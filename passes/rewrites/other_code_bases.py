"""Spellings in which code bases differ: how patches are cut out, how rows are looked up, how keys serve many queries.

    conv(x, W, stride = kernel)             -->   linear(patches of x, W)
    unfold(x, k, stride = k)                -->   patches of x
    table[tokens]                           -->   embedding(table, tokens)
    attention(q, k, v, enable_gqa=True)     -->   attention(q, repeat(k), repeat(v))
    add(x, y, alpha=a)                      -->   x + a · y

Patches are reshapes and permutes: windows that do not overlap are a grid of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import fx

from fxmerge.rewrite import Match, Refusal, either, op, rewrite, var
from passes.rewrites.common import called, fixed, is_tensor, is_tensor_of_program, operators_of, rank, shape

x, w, b = var("x"), var("w"), var("b")
SDPA = "aten.scaled_dot_product_attention.default"


# -- patches ---------------------------------------------------------------------------------------------


def _blocks(match: Match, kernel: Sequence[int], stride: Sequence[int], others: Sequence[Sequence[int]]) -> str:
    """Why windows are no grid of blocks that covers the image; empty if they are."""
    padding, dilation = (list(given) * (len(kernel) // len(given)) for given in others)
    image = match.shape("x")[-len(kernel) :]
    if list(stride) * (len(kernel) // len(stride)) != list(kernel):
        return "windows overlap or leave gaps"
    if any(padding) or any(d != 1 for d in dilation):
        return "windows reach over the border or are dilated"
    if any(n % k for n, k in zip(image, kernel, strict=True)):
        return "windows do not cover the image"
    return "" if all(fixed(match.program, n) for n in image) else "the size of the image depends on the input"


def _grid(match: Match, kernel: Sequence[int]) -> tuple[fx.Node, list[int], int]:
    """x (rows, channels, image…) as (rows, channels, grid, block, grid, block …); sizes of the grid; number of axes."""
    _, channels, *image = match.shape("x")
    grid = [n // k for n, k in zip(image, kernel, strict=True)]
    sizes = [n for pair in zip(grid, kernel, strict=True) for n in pair]
    return match.call("aten.reshape.default", match["x"], [-1, channels, *sizes]), grid, len(kernel)


def _is_patches(match: Match) -> Refusal | None:
    kernel = shape(match["w"])[2:]
    if match["groups"] != 1 or rank(match["x"]) != len(kernel) + 2:
        return Refusal("channels are in groups, or there is no batch", match.root)
    why = _blocks(match, kernel, match["stride"], (match["padding"], match["dilation"]))
    return Refusal(why, match.root) if why else None


CONVOLUTIONS = either(
    *(
        op(f"aten.conv{n}d.default", x, w, b, var("stride"), var("padding"), var("dilation"), var("groups"))
        for n in (1, 2, 3)
    )
)


@rewrite(CONVOLUTIONS, check=_is_patches)
def convolution_of_patches(match: Match) -> fx.Node:
    """conv(x, W, stride = kernel)  -->  linear(patches, W)"""
    out, *inner = shape(match["w"])
    blocks, grid, n = _grid(match, inner[1:])
    rows = match.call("aten.permute.default", blocks, [0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2)])
    rows = match.call("aten.reshape.default", rows, [-1, *grid, prod(inner)])
    weight = match.call("aten.reshape.default", match["w"], [out, prod(inner)])
    result = match.call("aten.linear.default", rows, weight, *([] if match["b"] is None else [match["b"]]))
    return match.call("aten.permute.default", result, [0, n + 1, *range(1, n + 1)])


def _is_unfold(match: Match) -> Refusal | None:
    if rank(match["x"]) != 4:
        return Refusal("there is no batch", match.root)
    why = _blocks(match, match["kernel"], match["stride"], (match["padding"], match["dilation"]))
    return Refusal(why, match.root) if why else None


@rewrite(op("aten.im2col.default", x, var("kernel"), var("dilation"), var("padding"), var("stride")), check=_is_unfold)
def unfold_as_moves(match: Match) -> fx.Node:
    """unfold(x, k, stride = k)  -->  patches"""
    kernel = match["kernel"]
    blocks, grid, _ = _grid(match, kernel)
    columns = match.call("aten.permute.default", blocks, [0, 1, 3, 5, 2, 4])
    return match.call("aten.reshape.default", columns, [-1, match.shape("x")[1] * prod(kernel), prod(grid)])


def _steps_by_size(match: Match) -> Refusal | None:
    length = match.shape("x")[match["dim"] % rank(match["x"])]
    if match["size"] != match["step"] or not fixed(match.program, length) or length % match["size"]:
        return Refusal("windows overlap, leave gaps, or are as many as the input is long", match.root)
    return None


@rewrite(op("aten.unfold.default", x, var("dim"), var("size"), var("step")), check=_steps_by_size)
def windows_as_moves(match: Match) -> fx.Node | Refusal:
    """x.unfold(axis, k, k)  -->  permute(reshape(x))"""
    sizes, axis = list(match.shape("x")), match["dim"] % rank(match["x"])
    free = [i for i, n in enumerate(sizes) if not fixed(match.program, n)]
    if len(free) > 1:
        return Refusal("several sizes depend on the input", match.root)
    sizes = [-1 if i in free else n for i, n in enumerate(sizes)]
    split = [*sizes[:axis], sizes[axis] // match["size"], match["size"], *sizes[axis + 1 :]]
    ranks = len(split)
    order = [*range(axis + 1), *range(axis + 2, ranks), axis + 1]
    return match.call("aten.permute.default", match.call("aten.reshape.default", match["x"], split), order)


# -- keys and values of a group ----------------------------------------------------------------------------


def _has_groups(match: Match) -> Refusal | None:
    queries, keys = match.shape("q")[-3], match.shape("k")[-3]
    same = keys == match.shape("v")[-3] and not queries % keys
    return None if same else Refusal("keys and values are in different groups", match.root)


@rewrite(
    op(SDPA, var("q"), var("k"), var("v"), var("mask"), var("p"), var("causal"), scale=var("scale"), enable_gqa=True),
    check=_has_groups,
)
def groups_as_repeats(match: Match) -> fx.Node:
    """attention(q, k, v, enable_gqa=True)  -->  attention(q, repeat(k), repeat(v))"""
    times = match.shape("q")[-3] // match.shape("k")[-3]
    keys, values = match["k"], match["v"]
    if times > 1:
        keys, values = (match.call("aten.repeat_interleave.self_int", n, times, -3) for n in (keys, values))
    more = {} if match["scale"] is None else {"scale": match["scale"]}
    return match.call(SDPA, match["q"], keys, values, match["mask"], match["p"], match["causal"], **more)


# -- nothing added -----------------------------------------------------------------------------------------


def _keeps_kind(match: Match) -> Refusal | None:
    before, after = match["x"].meta["val"], match.root.meta["val"]
    return None if before.dtype == after.dtype else Refusal("the sum has another dtype", match.root)


@rewrite(op("aten.add.Tensor", x, 0, alpha=var("alpha")), check=_keeps_kind)
def plus_nothing(match: Match) -> fx.Node:
    """x + 0  -->  x"""
    found: fx.Node = match["x"]
    return found


def _is_weighted(match: Match) -> Refusal | None:
    return Refusal("its terms count alike", match.root) if match["alpha"] == 1 else None


@rewrite(op("aten.add.Tensor", x, var("y"), alpha=var("alpha")), check=_is_weighted)
def weight_apart(match: Match) -> fx.Node:
    """add(x, y, alpha=a)  -->  x + a · y"""
    return match.call("aten.add.Tensor", match["x"], match.call("aten.mul.Tensor", match["y"], match["alpha"]))


# -- rows of a table ---------------------------------------------------------------------------------------


def _are_tokens(match: Match) -> Refusal | None:
    if not is_tensor_of_program(match["x"], match) or rank(match["x"]) != 2:
        return Refusal("what is indexed is no table of the model", match.root)
    numbers, operators = match["numbers"], operators_of(match)
    while is_tensor(numbers) and (moved := operators.moved(numbers)) is not None and not (moved.by or moved.cast):
        numbers = moved.source
    if not is_tensor(numbers) or numbers.meta["val"].dtype not in (torch.int32, torch.int64):
        return Refusal("rows are picked by something else than integers", match.root)
    given = numbers.op == "placeholder" or called(numbers, "aten.arange.default")
    return None if given else Refusal("the row numbers are computed, and may be negative", numbers)


@rewrite(op("aten.index.Tensor", x, [var("numbers")]), check=_are_tokens)
def index_as_embedding(match: Match) -> fx.Node:
    """table[tokens]  -->  embedding(table, tokens)"""
    return match.call("aten.embedding.default", match["x"], match["numbers"])


SPELLINGS = (
    plus_nothing,
    weight_apart,
    index_as_embedding,
    convolution_of_patches,
    unfold_as_moves,
    windows_as_moves,
    groups_as_repeats,
)
