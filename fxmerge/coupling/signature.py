"""Signatures: the axes of a call's operands and results as labels, fitted to the shapes of the call.

A signature has one term per tensor operand, in the order of the operator's schema. A term has one token per axis: a
label (`d`), a product of labels major to minor (`(h d)`), `...` for any leading axes (they broadcast), `1` for an
axis of size one, `_` for an axis of its own that tolerates nothing. A signature of dots alone says more: the operator
works entry by entry, whatever the axes are. `d!` says that the label tolerates nothing, `g=2`
how long it is where the shapes leave that open. An axis of size one beside a label of another size broadcasts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from fxmerge.coupling import law as laws
from fxmerge.coupling.call import Call, RuleRefusal


@dataclass(frozen=True)
class Signature:
    """One call in terms of labels. An axis is its label, or a product "(g i)"; "1" is an axis of size one."""

    operands: tuple[tuple[str, ...] | None, ...]
    """Per tensor operand, in the order of the schema; None if it was not given."""
    results: tuple[tuple[str, ...], ...]
    linear: frozenset[int] = frozenset()
    """Operands in which the operator is linear (affine), the others held fixed."""
    pinned: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict, compare=False)
    law: str = ""
    names: tuple[str, ...] = ()
    """Names of the operands in the schema."""

    @property
    def entrywise(self) -> bool:
        """Whether it consists of dots alone: every entry of a result depends on the entries at its place."""
        axes = [axis for term in (*self.operands, *self.results) if term is not None for axis in term]
        return all(axis == "1" or axis.startswith(".") for axis in axes)

    def __str__(self) -> str:
        terms = (" ".join(term) if term else "" for term in self.operands)
        return ", ".join(terms) + " -> " + ", ".join(" ".join(term) for term in self.results)


def labels_of(axis: str) -> tuple[str, ...]:
    """The labels of one axis of a signature, major to minor: "(g i)" has two, "1" none."""
    return tuple(label for label in axis.strip("()").split() if label != "1")


def tokens(term: str) -> list[str]:
    """One term of a signature, axis by axis."""
    return re.findall(r"\([^)]*\)|\.\.\.|[^\s()]+", term)


_MARKED = re.compile(r"(\w+)(?:=(\d+))?(!)?")


class Expansion:
    """Fits a signature's text to the shapes of a call."""

    def __init__(self, text: str, law: str, call: Call) -> None:
        self.text, self.law, self.call = text, law, call
        self.sizes: dict[str, int] = {}
        self.pinned: set[str] = set()
        self.own = 0

    def signature(self) -> Signature:
        left, _, right = self.text.partition("->")
        patterns = [tokens(term) for term in left.split(",")]
        operands = self.call.operands
        if len(operands) > len(patterns):
            extra = [name for name, node in operands[len(patterns) :] if node is not None]
            if extra:
                raise RuleRefusal(f"its signature says nothing about {', '.join(extra)}: {self.text!r}")
        shapes = [tuple(node.meta["val"].shape) if node is not None else None for _, node in operands]
        terms = [
            self._spread(tokens, shape) if shape is not None else None
            for tokens, shape in zip(patterns, shapes, strict=False)
        ]
        self.leading = max((sum(a.startswith(".") for a in term) for term in terms if term), default=0)
        outs = [tokens(term) for term in right.split(",")] if right.strip() else [[]]
        results = [self._spread(t, s) for t, s in zip(outs, self.call.results, strict=False)]
        shapes = [shape for shape, _ in zip(shapes, terms, strict=False)]
        self._solve([(t, s) for t, s in (*zip(terms, shapes, strict=True),) if t is not None and s is not None])
        self._solve(list(zip(results, self.call.results, strict=False)))
        fitted = tuple(
            self._fit(t, s) if t is not None and s is not None else None for t, s in zip(terms, shapes, strict=True)
        )
        names = tuple(name for name, _ in operands[: len(terms)])
        linear = laws.linear_in(laws.parse(self.law)) if self.law else frozenset()
        return Signature(
            operands=fitted,
            results=tuple(self._fit(t, s) for t, s in zip(results, self.call.results, strict=False)),
            linear=frozenset(i for i, name in enumerate(names) if name in linear),
            pinned=frozenset(self.pinned),
            sizes=dict(self.sizes),
            law=self.law,
            names=names,
        )

    def _spread(self, tokens: list[str], shape: tuple[int, ...] | None) -> tuple[str, ...]:
        """One token per axis: the dots become labels numbered from the right, `_` a label of its own."""
        assert shape is not None
        missing = len(shape) - (len(tokens) - ("..." in tokens))
        if missing < 0 or (missing > 0 and "..." not in tokens):
            raise RuleRefusal(f"its signature expects {' '.join(tokens)!r}, the shape is {list(shape)}")
        found: list[str] = []
        for token in tokens:
            if token == "...":
                found += [f".{missing - 1 - i}" for i in range(missing)]
            elif token == "_":
                self.own += 1
                found.append(f"_{self.own}")
                self.pinned.add(f"_{self.own}")
            else:
                found.append(re.sub(_MARKED, self._mark, token))
        return tuple(found)

    def _mark(self, marked: re.Match[str]) -> str:
        """Note what is marked on a label: `!` that it tolerates nothing, `=3` its size."""
        label, size, pinned = marked.groups()
        if pinned:
            self.pinned.add(label)
        if size:
            self.sizes[label] = int(size)
        return label

    def _solve(self, terms: list[tuple[tuple[str, ...], tuple[int, ...]]]) -> None:
        """Sizes of labels: those of plain axes first, then those of products of which all but one factor are known."""
        plain = [(a, n) for term, shape in terms for a, n in zip(term, shape, strict=True)]
        for axis, size in plain:
            if not axis.startswith("(") and axis != "1":
                self.sizes[axis] = max(size, self.sizes.get(axis, 1)) if size != 0 else 0
        for _ in plain:
            for axis, size in plain:
                unknown = [label for label in labels_of(axis) if label not in self.sizes]
                if len(unknown) == 1:
                    known = prod(self.sizes[label] for label in labels_of(axis) if label in self.sizes)
                    self.sizes[unknown[0]] = size // known

    def _fit(self, term: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
        """The term with broadcast axes written as "1"; every other axis must have the size its labels say."""
        fitted = []
        for axis, size in zip(term, shape, strict=True):
            labels = labels_of(axis)
            if any(label not in self.sizes for label in labels):
                raise RuleRefusal(f"its signature leaves the size of {axis!r} open: {self.text!r}")
            wanted = prod(self.sizes[label] for label in labels)
            if size != wanted and size != 1:
                raise RuleRefusal(f"its signature makes {axis!r} {wanted} long, it is {size}: {self.text!r}")
            fitted.append(axis if size == wanted else "1")
        return tuple(fitted)
