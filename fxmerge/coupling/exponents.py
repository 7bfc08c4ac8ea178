"""Linear equations in the exponents with which values scale, solved exactly: over the rationals, or over GF(2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction

Row = dict[int, Fraction]
"""A linear form: coefficient by variable."""

ONE = Fraction(1)


class System:
    """Linear forms in exponents that must vanish, over the rationals or (`signs`) over GF(2).

    A worked example, `up` (0) and `gate` (3) of a gated MLP, their product (1) and the columns of `down` (2). A
    contraction cancels, e1 + e2 = 0; the product goes with `up`, e1 = e0, since the gate is rigid, e3 = 0. One exponent
    is free: `up` may be scaled if `down` is scaled by the inverse.

    >>> system = System(signs=False)
    >>> for form in ([(1, ONE), (2, ONE)], [(1, ONE), (0, -ONE)], [(3, ONE)]):
    ...     system.vanish(form)
    >>> system.solve()
    >>> [{v: int(c) for v, c in system.express(which).items()} for which in (0, 1, 2, 3)]
    [{0: 1}, {0: 1}, {0: -1}, {}]

    Forms of one and two terms, nearly all of them, are settled at once by union-find with factors; only longer ones are
    eliminated.
    """

    def __init__(self, signs: bool) -> None:
        self.signs = signs
        self.parent: dict[int, tuple[int, Fraction]] = {}
        self.zero: set[int] = set()
        self.long: list[Row] = []

    def find(self, variable: int) -> tuple[int, Fraction]:
        """The representative of a variable and the factor by which they differ."""
        path, ratio = [], ONE
        node = variable
        while node in self.parent:
            path.append(node)
            node, step = self.parent[node]
            ratio *= step
        rest = ratio
        for each in path:
            step = self.parent[each][1]
            self.parent[each] = (node, rest)
            rest /= step
        return node, ratio

    def vanish(self, form: Iterable[tuple[int, Fraction]]) -> None:
        """Add the equation that a form is zero."""
        row = self._reduce(form)
        if len(row) == 1:
            self.zero.update(row)
        elif len(row) == 2:
            (a, x), (b, y) = row.items()
            self.parent[a] = (b, ONE if self.signs else -y / x)
        elif row:
            self.long.append(row)

    def _reduce(self, form: Iterable[tuple[int, Fraction]]) -> Row:
        row: Row = defaultdict(Fraction)
        for variable, coefficient in form:
            root, ratio = self.find(variable)
            if root not in self.zero:
                row[root] += coefficient * ratio
        if self.signs:
            return {v: ONE for v, c in row.items() if c % 2}
        return {v: c for v, c in row.items() if c}

    def solve(self) -> None:
        """Eliminate what is left: afterwards every variable is a combination of free ones (see `express`)."""
        before = -1
        while before != (before := sum(map(len, self.long))):
            rows, self.long = self.long, []
            for row in rows:
                self.vanish(row.items())
        self.pivots: dict[int, Row] = {}
        for row in self.long:
            row = self._substitute(row)
            if row:
                pivot = min(row)
                scale = row.pop(pivot)
                self.pivots[pivot] = {v: ONE if self.signs else -c / scale for v, c in row.items()}

    def _substitute(self, row: Row) -> Row:
        result = self._reduce(row.items())
        while (pivot := next((v for v in result if v in self.pivots), None)) is not None:
            coefficient = result.pop(pivot)
            terms = [*result.items(), *((v, c * coefficient) for v, c in self.pivots[pivot].items())]
            result = self._reduce(terms)
        return result

    def express(self, variable: int) -> Row:
        """A variable as a combination of free ones."""
        return self._substitute({variable: ONE})


def pivots(rows: Iterable[Row], signs: bool) -> set[int]:
    """The pivots of a row echelon form; in each row the largest variable is the pivot."""
    basis: dict[int, Row] = {}
    for row in rows:
        row = dict(row)
        while row and (pivot := max(row)) in basis:
            other = basis[pivot]
            factor = row[pivot] / other[pivot]
            terms = {v: row.get(v, Fraction(0)) - factor * other.get(v, Fraction(0)) for v in {**row, **other}}
            row = {v: ONE for v, c in terms.items() if c % 2} if signs else {v: c for v, c in terms.items() if c}
        if row:
            basis[max(row)] = row
    return set(basis)
