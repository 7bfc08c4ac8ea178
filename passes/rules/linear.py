"""Linear maps, matrix products and tables."""

from __future__ import annotations

from fxmerge.coupling import Call, couples

linear = couples("aten.linear.default", "... i, o i, o -> ... o", "input * weight + bias")
mm = couples("aten.mm.default", "a k, k b -> a b", "self * mat2")
bmm = couples("aten.bmm.default", "n a k, n k b -> n a b", "self * mat2")
dot = couples("aten.dot.default", "k, k -> ", "self * tensor")
mv = couples("aten.mv.default", "a k, k -> a", "self * vec")
outer = couples("aten.outer.default", "a, b -> a b", "self * vec2")
bilinear = couples("aten.bilinear.default", "... i, ... j, o i j, o -> ... o", "input1 * input2 * weight + bias")
embedding = couples("aten.embedding.default", "v! d, ... -> ... d", "weight")


@couples("aten.addmm.default")
def addmm(call: Call) -> tuple[str, str]:
    added = "b" if call.rank("self") == 1 else "a b"
    return f"{added}, a k, k b -> a b", "self + mat1 * mat2" if call["beta"] else "mat1 * mat2"


@couples("aten.baddbmm.default", "aten.addbmm.default")
def baddbmm(call: Call) -> tuple[str, str]:
    added = " ".join("n a b".split()[3 - call.rank("self") :])
    return f"{added}, n a k, n k b -> n a b", "self + batch1 * batch2" if call["beta"] else "batch1 * batch2"


@couples("aten.matmul.default")
def matmul(call: Call) -> tuple[str, str]:
    vectors = call.rank("self") == 1, call.rank("other") == 1
    left = "k" if vectors[0] else "... a k"
    right = "k" if vectors[1] else "... k b"
    out = " ".join((["..."] if not all(vectors) else []) + ["a"] * (not vectors[0]) + ["b"] * (not vectors[1]))
    return f"{left}, {right} -> {out}", "self * other"


@couples("aten.einsum.default")
def einsum(call: Call) -> tuple[str, str]:
    left, arrow, right = call["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    law = " * ".join(f"tensors{i}" for i in range(len(terms)))
    return ", ".join(map(_spaced, terms)) + " -> " + _spaced(right), law


def _spaced(term: str) -> str:
    return " ".join(term.replace("...", ".")).replace(".", "...")
