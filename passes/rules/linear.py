"""Linear maps, matrix products and tables."""

from __future__ import annotations

from fxmerge.coupling import Call, RuleRefusal, couples
from passes.rules.names import aten

linear = couples("aten.linear.default", "... i, o i, o -> ... o", "input * weight + bias")
mm = couples("aten.mm.default", "a k, k b -> a b", "self * mat2")
bmm = couples("aten.bmm.default", "n a k, n k b -> n a b", "self * mat2")
dot = couples("aten.dot.default", "k, k -> ", "self * tensor")
mv = couples("aten.mv.default", "a k, k -> a", "self * vec")
outer = couples("aten.outer.default", "aten.ger.default", "a, b -> a b", "self * vec2")
addmv = couples("aten.addmv.default", "a, a k, k -> a", "self + mat * vec")
addr = couples("aten.addr.default", "a b, a, b -> a b", "self + vec1 * vec2")
kron = couples("aten.kron.default", "a b, c d -> (a c) (b d)", "self * other")
bilinear = couples("aten.bilinear.default", "... i, ... j, o i j, o -> ... o", "input1 * input2 * weight + bias")
embedding = couples("aten.embedding.default", "v! d, ... -> ... d", "weight", exact=True)


@couples("aten.addmm.default")
def addmm(call: Call) -> tuple[str, str]:
    added = "b" if call.rank("self") == 1 else "a b"
    return f"{added}, a k, k b -> a b", "self + mat1 * mat2" if call["beta"] else "mat1 * mat2"


@couples("aten.baddbmm.default")
def baddbmm(call: Call) -> tuple[str, str]:
    added = " ".join(["n", "a", "b"][3 - call.rank("self") :])
    return f"{added}, n a k, n k b -> n a b", "self + batch1 * batch2" if call["beta"] else "batch1 * batch2"


@couples("aten.matmul.default", "aten.linalg_matmul.default")
def matmul(call: Call) -> tuple[str, str]:
    vectors = call.rank("self") == 1, call.rank("other") == 1
    left = "k" if vectors[0] else "... a k"
    right = "k" if vectors[1] else "... k b"
    out = " ".join((["..."] if not all(vectors) else []) + ["a"] * (not vectors[0]) + ["b"] * (not vectors[1]))
    return f"{left}, {right} -> {out}", "self * other"


@couples("aten.inner.default", "aten.vdot.default")
def inner(call: Call) -> tuple[str, str]:
    left, right = ([f"{side}{i}" for i in range(call.rank(name) - 1)] for side, name in (("a", "self"), ("b", "other")))
    return f"{' '.join(left)} k, {' '.join(right)} k -> {' '.join(left + right)}", "self * other"


@couples("aten.linalg_vecdot.default")
def vecdot(call: Call) -> tuple[str, str]:
    if call["dim"] not in (-1, None) and call.dim("dim", "x") != call.rank("x") - 1:
        raise RuleRefusal("products along another axis than the last are not known")
    return "... k, ... k -> ...", "x * y"


@couples("aten.tensordot.default")
def tensordot(call: Call) -> tuple[str, str]:
    left, right = ([f"{side}{i}" for i in range(call.rank(name))] for side, name in (("a", "self"), ("b", "other")))
    for i, j in zip(call["dims_self"], call["dims_other"], strict=True):
        right[j] = left[i]
    kept = [axis for axis in left if axis not in right] + [axis for axis in right if axis not in left]
    return f"{' '.join(left)}, {' '.join(right)} -> {' '.join(kept)}", "self * other"


@couples("aten.cosine_similarity.default")
def cosine_similarity(call: Call) -> tuple[str, str]:
    axes = [f"x{i}" for i in range(call.rank("x1"))]
    along = axes[call["dim"]]
    kept = " ".join(axis for axis in axes if axis != along)
    text = " ".join(axes)
    return f"{text}, {text} -> {kept}", f"isotropic(x1, {along}) * isotropic(x2, {along})"


@couples(*aten("cdist.default _cdist_forward.default _euclidean_dist.default"))
def cdist(call: Call) -> tuple[str, str]:
    euclidean = call["p"] in (2, 2.0, None)
    return "... a k, ... b k -> ... a b", "length(x1 + x2, k)" if euclidean else "rigid(x1 + x2)"


@couples(
    *aten(
        """
        embedding_bag.default embedding_bag.padding_idx _embedding_bag.default _embedding_bag_forward_only.default
        """
    )
)
def embedding_bag(call: Call) -> tuple[str, str]:
    more = "".join(", " + "_ " * len(shape) for shape in call.results[1:])
    return f"v! d, {'_ ' * call.rank('indices')}, _, _ -> _ d{more}", "weight"


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
