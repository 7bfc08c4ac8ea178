"""Elements of the spaces' groups that are trained: orders step through an assignment, turns by Cayley's map.

    order   P = the assignment of the scores S; its gradient is given to S as it is (straight through)
    turn    C = R (I + A)⁻¹ (I − A), A = V − Vᵀ, R what it starts from: orthogonal whatever V is

Every value of the parameters is an element of the group, so nothing is ever projected back onto it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fxmerge.methods.alignment import matches
from fxmerge.methods.alignment.layout import TURNED, Layout, Site
from fxmerge.methods.alignment.solve import Alignment, Carriers, Path
from fxmerge.methods.regress import beside_ones


class Order(nn.Module):
    """An order (with signs) of one parent's units in every place where a space stands: (places, d, d_k)."""

    def __init__(self, start: Tensor, signed: bool, margin: float) -> None:
        super().__init__()
        self.signed = signed
        self.scores = nn.Parameter((margin * start).float())

    def forward(self) -> Tensor:
        scores = self.scores.double()
        fit = matches.signed_permutation if self.signed else matches.permutation
        found = torch.stack([fit(each.detach().cpu()) for each in scores]).to(scores.device)
        return found + (scores - scores.detach())


class Turn(nn.Module):
    """A matrix with orthonormal rows or columns for every place: (places, d, d_k)."""

    def __init__(self, start: Tensor, centred: bool = False) -> None:
        super().__init__()
        self.centred = centred
        """Whether it keeps the vector of ones."""
        self.register_buffer("start", start.clone(), persistent=False)
        places, rows, columns = start.shape
        size = max(rows, columns) - centred
        self.skew = nn.Parameter(torch.zeros(places, size, size))

    def forward(self) -> Tensor:
        turn, start = cayley(self.skew.double()), self.start
        assert isinstance(start, Tensor)
        if self.centred:
            beside = beside_ones(start.shape[-1]).to(start.device)
            turn = beside @ turn @ beside.T + 1 / start.shape[-1]
        return turn @ start if start.shape[-2] >= start.shape[-1] else start @ turn


def cayley(free: Tensor) -> Tensor:
    """(…, n, n): an orthogonal matrix for any matrix, the identity for zero."""
    skew = free - free.mT
    eye = torch.eye(free.shape[-1], dtype=free.dtype, device=free.device)
    found: Tensor = torch.linalg.solve(eye + skew, eye - skew)
    return found


class Elements(nn.Module):
    """An alignment with what can be learned of it as parameters, one module for each space and parent.

    Scores of an order are ahead of all others by `margin` where it starts. Owners (heads) keep the order that they
    start with, and what has no free order or turn (rotary planes) stays.
    """

    def __init__(self, alignment: Alignment, margin: float = 1.0) -> None:
        super().__init__()
        self.start, self.layout, self.margin = alignment, alignment.layout, margin
        self.spaces = [name for name, site in self.layout.sites.items() if learns(self.layout, site)]
        self.paths = {space: list(paths(self.layout, space)) for space in self.spaces}
        self.of = nn.ModuleList(nn.ModuleList(self._elements(space)) for space in self.spaces)

    def _elements(self, space: str) -> Iterator[nn.Module]:
        site = self.layout.sites[space]
        for k in range(self.layout.count):
            start = torch.stack([self.start.of(space, path).to[k] for path in self.paths[space]])
            signs = site.group == "signed_permutation"
            yield Turn(start, site.centred) if site.group in TURNED else Order(start, signs, self.margin)

    @property
    def turns(self) -> tuple[nn.Parameter, ...]:
        return tuple(each.skew for each in self.modules() if isinstance(each, Turn))

    @property
    def orders(self) -> tuple[nn.Parameter, ...]:
        return tuple(each.scores for each in self.modules() if isinstance(each, Order))

    def forward(self) -> Alignment:
        """The alignment as it is now; gradients reach the parameters."""
        carriers: dict[tuple[str, Path], Carriers] = dict(self.start.carriers)
        for space, elements in zip(self.spaces, self.of, strict=True):
            assert isinstance(elements, nn.ModuleList)
            found = [element() for element in elements]
            for i, path in enumerate(self.paths[space]):
                carriers[space, path] = Carriers.of([each[i] for each in found])
        return Alignment(self.layout, self._there(carriers))

    def _there(self, carriers: Mapping[tuple[str, Path], Carriers]) -> dict[tuple[str, Path], Carriers]:
        """Those that are not learned beside those that are."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        return {key: moved(each, device) for key, each in carriers.items()}


def moved(carriers: Carriers, device: torch.device) -> Carriers:
    return Carriers(tuple(t.to(device) for t in carriers.to), tuple(b.to(device) for b in carriers.back))


def learns(layout: Layout, site: Site) -> bool:
    """Whether an element of a space's group is learned: an order or a turn of units that own nothing."""
    free = site.group in (*TURNED, "permutation", "signed_permutation")
    return free and site.size > 1 and min(site.sizes) > 1 and not layout.inside(site.space)


def paths(layout: Layout, space: str) -> Iterator[Path]:
    """The merged units of its owners for each of which a space has an element of its own."""
    found: Sequence[Path] = [()]
    for owner in layout.path(space):
        found = [(*path, unit) for path in found for unit in range(layout.sites[owner].size)]
    yield from found
