"""Products with a weight of three axes or more are `linear` with one whose axes are joined.

In a merge only: a weight that is moved is one of its own then, of another shape than the model's.
"""

from __future__ import annotations

from string import ascii_letters

from torch import fx

from fxmerge.rewrite import Match, Refusal, op, rewrite, var
from passes.rewrites.common import axes_of, is_tensor_of_program, shape
from passes.rewrites.einsum import Terms, places, terms_of, weight_last

x, w = var("x"), var("w")


def _letters(match: Match) -> tuple[str, str] | Refusal:
    """The axes of x and of a weight with more than two, where x has those that come before the weight's last two."""
    if not is_tensor_of_program(match["w"], match) or len(shape(match["w"])) < 3:
        return Refusal("the second factor is no weight of three axes", match.root)
    letters = ascii_letters[: len(shape(match["x"]))]
    if len(letters) < len(shape(match["w"])):
        return Refusal("the first factor has fewer axes than the weight", match.root)
    return letters, letters[-len(shape(match["w"])) : -2] + letters[-1] + "Z"


@rewrite(op("aten.matmul.default", x, w))
def product_with_every_part(match: Match) -> fx.Node | Refusal:
    """matmul(unsqueeze(x, 1), w)  -->  einsum("bsd,hde->bhse", x, w)"""
    letters = _letters(match)
    if isinstance(letters, Refusal):
        return letters
    left, right = letters
    parts = [left.index(c) for c in right[:-2]]
    if any(match.shape("x")[i] != 1 for i in parts) or 1 in match.shape("w")[:-2]:
        return Refusal("the parts of the weight meet parts of the first factor", match.root)
    one = match.call("aten.squeeze.dims", match["x"], parts)
    given = "".join(c for c in left if c not in right[:-2])
    return match.call("aten.einsum.default", f"{given},{right}->{left[:-1]}Z", [one, match["w"]])


@rewrite(op("aten.sum.dim_IntList", op("aten.matmul.default", x, w), var("dims")))
def sum_of_products_by_part(match: Match) -> fx.Node | Refusal:
    """sum(matmul(x, w), 1)  -->  einsum("bhse,hed->bsd", x, w)"""
    letters = _letters(match)
    if isinstance(letters, Refusal):
        return letters
    left, right = letters
    parts = tuple(left.index(c) for c in right[:-2])
    if axes_of(match["dims"], len(left)) != parts or [match.shape("x")[i] for i in parts] != [*match.shape("w")[:-2]]:
        return Refusal("what is summed is not one product for each part of the weight", match.root)
    given = "".join(c for c in left[:-1] if c not in right)
    return match.call("aten.einsum.default", f"{left},{right}->{given}Z", [match["x"], match["w"]])


@rewrite(op("aten.einsum.default", var("equation"), var("tensors")))
def sum_over_joined_axes(match: Match) -> fx.Node | Refusal:
    """einsum("bsd,hde->bhse", x, w)  -->  linear(x, joined w), its result taken apart again"""
    terms = terms_of(match)
    if isinstance(terms, Refusal):
        return terms
    terms, x, y = weight_last(terms, match)
    if not is_tensor_of_program(y, match) or terms.batch or not terms.summed or not terms.columns:
        return Refusal(f"{match['equation']} is no product with a weight alone", match.root)
    product = _linear(match, terms, x, y)
    return match.call("aten.permute.default", product, places(terms.rows + terms.columns, terms.out))


def _linear(match: Match, terms: Terms, x: fx.Node, weight: fx.Node) -> fx.Node:
    """x times a weight, along rows and then columns."""
    split = [shape(weight)[terms.right.index(c)] for c in terms.columns]
    x = match.call("aten.permute.default", x, places(terms.left, terms.rows + terms.summed))
    weight = match.call("aten.permute.default", weight, places(terms.right, terms.columns + terms.summed))
    if len(terms.summed) > 1:
        x = match.call("aten.flatten.using_ints", x, len(terms.rows), -1)
        weight = match.call("aten.flatten.using_ints", weight, len(split), -1)
    if len(split) == 1:
        return match.call("aten.linear.default", x, weight)
    weight = match.call("aten.flatten.using_ints", weight, 0, len(split) - 1)
    return match.call("aten.unflatten.int", match.call("aten.linear.default", x, weight), -1, split)


JOINED = (product_with_every_part, sum_of_products_by_part, sum_over_joined_axes)
