"""Tables of tokens for a program of the template's structure whose tokens are those of another model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Program
from passes.operators import Operators

TOKENIZER = "tokenizer.json"


def own_words(template: Program, other: Program, order: Sequence[int], operators: Operators) -> dict[str, Tensor]:
    """By name in the template: tables for the tokens of `other`, where these are not the template's tokens.

    `order`: for every input of the template the place of the other model's. The tokens are taken to be the same where
    the tables have as many rows and no tokenizers say otherwise. A table starts as the other model's own, turned at
    random into the template's width: what is alike there is alike here.
    """
    words = [program.assets.get(TOKENIZER) for program in (template, other)]
    known = None not in words
    found = {}
    for node, k in zip(template.placeholders, order, strict=True):
        theirs = list(tables(other, other.placeholders[k], operators))
        for mine in tables(template, node, operators) if theirs else ():
            ours, own = template.tensors[mine], other.tensors[theirs[0]]
            same = words[0] == words[1] and len(own) <= len(ours) if known else len(own) == len(ours)
            if not same and ours.ndim == own.ndim == 2:
                found[mine] = _turned(own, ours)
    return found


def tables(program: Program, node: fx.Node, operators: Operators) -> Iterator[str]:
    """The tensors whose rows an input chooses, as it is or moved."""
    todo, seen = [node], {node}
    while todo:
        value = todo.pop()
        for user in value.users:
            moved = operators.moved(user) if user.op == "call_function" else None
            if moved is None or user in seen:
                continue
            seen.add(user)
            if value in moved.by and moved.source.op == "get_attr":
                yield str(moved.source.target)
            elif moved.source is value:
                todo.append(user)


def _turned(own: Tensor, like: Tensor) -> Tensor:
    """The rows of a table in the width, and about the size, of another's."""
    wide = own.detach().double()
    generator = torch.Generator().manual_seed(len(own))
    turn = torch.randn(wide.shape[1], like.shape[1], generator=generator, dtype=torch.float64)
    rows = (wide - wide.mean(0)) @ turn
    size = like.detach().double().std() / rows.std().clamp_min(1e-12)
    return (rows * size + like.detach().double().mean(0)).to(like.dtype)
