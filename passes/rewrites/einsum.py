"""Sums of products, written with letters: of many tensors two by two, of two `linear` and `matmul`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import fx

from fxmerge.rewrite import Match, Refusal, op, rewrite, var
from passes.rewrites.common import is_tensor_of_program, shape


@dataclass(frozen=True)
class Terms:
    """`left, right -> out`, each a string with one letter per axis."""

    left: str
    right: str
    out: str

    @property
    def batch(self) -> str:
        return "".join(c for c in self.out if c in self.left and c in self.right)

    @property
    def rows(self) -> str:
        return "".join(c for c in self.out if c not in self.right)

    @property
    def columns(self) -> str:
        return "".join(c for c in self.out if c not in self.left)

    @property
    def summed(self) -> str:
        return "".join(c for c in self.left if c not in self.out)

    def swapped(self) -> Terms:
        return Terms(self.right, self.left, self.out)


def terms_of(match: Match) -> Terms | Refusal:
    """The equation as the product of two matrices (with batch axes), or why it is none."""
    left, arrow, out = match["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) == 2 and "..." in left:
        terms, out = _spelt_out(terms, out, [len(shape(tensor)) for tensor in match["tensors"]])
    if len(terms) != 2 or not arrow or "." in out + "".join(terms):
        return Refusal(f"{match['equation']} is no product of two tensors with an explicit result", match.root)
    a, b = terms
    if any(len(set(term)) < len(term) for term in (a, b, out)):
        return Refusal(f"{match['equation']} takes a diagonal", match.root)
    if set(a) - set(out) != set(b) - set(out):
        return Refusal(f"{match['equation']} sums over an axis of one factor", match.root)
    sizes = dict(zip(a, shape(match["tensors"][0]), strict=True))
    if any(sizes.get(c, size) != size for c, size in zip(b, shape(match["tensors"][1]), strict=True)):
        return Refusal("a factor broadcasts", match.root)
    return Terms(a, b, out)


def _spelt_out(terms: list[str], out: str, ranks: list[int]) -> tuple[list[str], str]:
    """An equation with its "..." as letters: as many as the longest needs, the last of them in every term."""
    counts = [n - len(term.replace("...", "")) if "..." in term else 0 for term, n in zip(terms, ranks, strict=True)]
    free = [chr(c) for c in range(ord("A"), ord("z")) if chr(c).isalpha() and chr(c) not in out + "".join(terms)]
    letters = "".join(free[: max(counts)])
    spelt = [term.replace("...", letters[len(letters) - n :]) for term, n in zip(terms, counts, strict=True)]
    return spelt, out.replace("...", letters)


@rewrite(op("aten.einsum.default", var("equation"), var("tensors")))
def einsum_in_pairs(match: Match) -> fx.Node | Refusal:
    """einsum("bd,dk,kh->bh", x, A, B)  -->  einsum("bk,kh->bh", einsum("bd,dk->bk", x, A), B)

    It starts with data, and goes on with what makes the smallest product: parameters meet data one by one.
    """
    left, arrow, out = match["equation"].replace(" ", "").partition("->")
    terms, tensors = left.split(","), list(match["tensors"])
    if len(terms) < 3 or not arrow:
        return Refusal(f"{match['equation']} has no three tensors and an explicit result", match.root)
    if "..." in left:
        terms, out = _spelt_out(terms, out, [len(shape(tensor)) for tensor in tensors])
    if any(len(set(term)) < len(term) for term in terms):
        return Refusal(f"{match['equation']} takes a diagonal", match.root)
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        sizes.update({c: max(size, sizes.get(c, 1)) for c, size in zip(term, shape(tensor), strict=True)})
    todo = sorted(zip(terms, tensors, strict=True), key=lambda each: is_tensor_of_program(each[1], match))
    product: fx.Node
    term, product = todo.pop(0)
    while todo:
        rest = [term for term, _ in todo]
        products = [_product(term, other, out, rest[:i] + rest[i + 1 :]) for i, other in enumerate(rest)]
        least = min(range(len(todo)), key=lambda i: prod(sizes[c] for c in products[i]))
        other, tensor = todo.pop(least)
        product = match.call("aten.einsum.default", f"{term},{other}->{products[least]}", [product, tensor])
        term = products[least]
    return product


def _product(left: str, right: str, out: str, rest: list[str]) -> str:
    """The letters of a product of two terms that are still needed; in the order of the result for the last one."""
    both = left + "".join(c for c in right if c not in left)
    return "".join(c for c in both if c in out or any(c in term for term in rest)) if rest else out


def places(source: str, target: str) -> list[int]:
    return [source.index(c) for c in target]


def weight_last(terms: Terms, match: Match) -> tuple[Terms, fx.Node, fx.Node]:
    """The factors of a product, a weight behind data, and their terms in that order."""
    x, y = match["tensors"]
    if is_tensor_of_program(x, match) and not is_tensor_of_program(y, match):
        return terms.swapped(), y, x
    return terms, x, y


@rewrite(op("aten.einsum.default", var("equation"), var("tensors")))
def einsum_as_product(match: Match) -> fx.Node | Refusal:
    """einsum("bik,bjk->bij", x, y)  -->  matmul(x, yᵀ)"""
    terms = terms_of(match)
    if isinstance(terms, Refusal):
        return terms
    terms, x, y = weight_last(terms, match)
    if is_tensor_of_program(y, match) and not terms.batch and len(terms.summed) == len(terms.columns) == 1:
        x = match.call("aten.permute.default", x, places(terms.left, terms.rows + terms.summed))
        y = match.call("aten.permute.default", y, places(terms.right, terms.columns + terms.summed))
        product = match.call("aten.linear.default", x, y)
    else:
        if terms.out.rfind(terms.rows[-1:]) > terms.out.rfind(terms.columns[-1:]):
            terms, x, y = terms.swapped(), y, x
        if (len(terms.rows), len(terms.summed), len(terms.columns)) != (1, 1, 1):
            return Refusal(f"{match['equation']} has several axes in one place of a matrix", match.root)
        x = match.call("aten.permute.default", x, places(terms.left, terms.batch + terms.rows + terms.summed))
        y = match.call("aten.permute.default", y, places(terms.right, terms.batch + terms.summed + terms.columns))
        product = match.call("aten.matmul.default", x, y)
    order = places(terms.batch + terms.rows + terms.columns, terms.out)
    return match.call("aten.permute.default", product, order)


EINSUM = (einsum_in_pairs, einsum_as_product)
