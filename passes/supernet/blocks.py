"""The blocks of a program, and what stays apart where the trunk ends behind one of them.

    stem, block 0, block 1 | block 2, norm, head     the trunk is shared until block 1: what follows it is part of the
                                                     tail, which stands once for every task

Blocks are read off the names of parameters, in the order in which the graph uses them: what stands under one numbered
module is one block, or several where the values that lead from one to the next are as few as those that lead out of it.
A program without such names has a block for every module with parameters; what only scales and shifts (a norm) belongs
to the block before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import fx

from fxmerge.errors import OptionError
from fxmerge.ir.supernet import Part
from fxmerge.messages import nearest
from passes.supernet.site import Site, Sites

NOTHING = "input"
"""The name of the place in front of all blocks: a trunk that is shared until there is empty."""


@dataclass(frozen=True)
class Block:
    """A part of the trunk: the name of its module, the places of its first and last site, its parameters."""

    name: str
    first: int
    last: int
    parameters: tuple[str, ...]


class Blocks:
    """The trunk of a program in the order of its graph."""

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self.nodes = list(sites.program.graph.nodes)
        self.place = {node: number for number, node in enumerate(self.nodes)}
        self.crossing = self._crossing()
        self.used = sorted(
            ((self.place[node], site) for node, site in sites.sites.items() if node not in sites.tail),
            key=lambda each: each[0],
        )
        named = [(place, path) for place, site in self.used if (path := _path(site))]
        self.blocks = tuple(self._joined(self._split(named, 1)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.blocks)

    def tail(self, until: str) -> frozenset[fx.Node]:
        """The nodes of the tail where the trunk is shared until the end of this module, or of the block of this number.

        Raises `OptionError` where no parameters of the trunk stand under that name.
        """
        end = self._end(until)
        if end is None:
            return self.sites.tail
        tail = set(self.sites.tail)
        for node in self.nodes[end + 1 :]:
            if node.op != "call_function" or self.sites.values[node] != "data":
                continue
            reads = node.all_input_nodes
            if node in self.sites.sites or any(n in tail or self._carries(n) for n in reads):
                tail.add(node)
        return frozenset(tail)

    def parts(self, until: str = "") -> tuple[Part, ...]:
        """The blocks as what they are to a merge; without `until` all of them are shared."""
        end = self._end(until) if until else None
        return tuple(Part(b.name, b.parameters, end is not None and b.last > end) for b in self.blocks)

    # -- where --------------------------------------------------------------------------------------

    def _end(self, until: str) -> int | None:
        """The place of the trunk's last node; None for the whole trunk."""
        last = self._last(until)
        if last is None:
            return max((i for i, node in enumerate(self.nodes) if node.op == "placeholder"), default=0)
        after = min((place for place, _ in self.used if place > last), default=None)
        if after is None:
            return None
        return min(range(last, after), key=lambda place: (self.crossing[place], -place))

    def _last(self, until: str) -> int | None:
        """The place of the last site of a module, or of a numbered block; None for nothing at all."""
        found = [place for place, site in self.used if any(_within(o.root, until) for o in site.operands)]
        if found:
            last = max(found)
            whole = (b.last for b in self.blocks if b.first <= last <= b.last)
            return max((end for end in whole if not self._maps(last + 1, end)), default=last)
        if until.isdigit() and int(until) < len(self.blocks):
            return self.blocks[int(until)].last
        if until == NOTHING:
            return None
        known = ", ".join(f"{number} {name}" for number, name in enumerate(self.names))
        raise OptionError(
            f"--share-until {until}: {self.sites.program.task} has no such block{nearest(until, self.names)}",
            f"name one of {known}; or {NOTHING}, to share nothing",
        )

    # -- what -----------------------------------------------------------------------------------------

    def _split(self, sites: Sequence[tuple[int, str]], depth: int) -> Iterator[Block]:
        """Blocks by the first numbered module of each name, or by the second, … where these part as well."""
        groups = self._groups(sites, depth)
        for name, group in groups:
            finer = self._groups(group, depth + 1)
            start, end = group[0][0], group[-1][0]
            outside = max(self._least(start - 1, start), self._least(end, self._next(end)))
            inside = [self._least(part[-1][0], self._next(part[-1][0])) for _, part in finer[:-1]]
            if len(finer) > 1 and all(count <= outside for count in inside):
                yield from self._split(group, depth + 1)
            else:
                used = (site for place, site in self.used if start <= place <= end)
                names = dict.fromkeys(operand.root for site in used for operand in site.operands)
                yield Block(name, start, end, tuple(names))

    def _joined(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks, those that hold no linear map joined to the one before."""
        before: Block | None = None
        for block in blocks:
            if before is None or self._maps(block.first, block.last):
                if before is not None:
                    yield before
                before = block
            else:
                names = dict.fromkeys((*before.parameters, *block.parameters))
                before = Block(before.name, before.first, block.last, tuple(names))
        if before is not None:
            yield before

    def _maps(self, first: int, last: int) -> bool:
        """Whether there is a linear map among the sites from one place to another."""
        return any(site.maps for place, site in self.used if first <= place <= last)

    def _groups(self, sites: Sequence[tuple[int, str]], depth: int) -> list[tuple[str, list[tuple[int, str]]]]:
        return [(name, list(group)) for name, group in groupby(sites, lambda each: _unit(each[1], depth))]

    def _next(self, place: int) -> int:
        return min((other for other, _ in self.used if other > place), default=len(self.nodes))

    def _least(self, start: int, end: int) -> int:
        return min(self.crossing[start:end] or [1])

    def _carries(self, node: fx.Node) -> bool:
        """Whether a value of the trunk is in the merged model's spaces."""
        if self.sites.values.get(node) != "data":
            return False
        several = isinstance(node.meta["val"], tuple | list)
        axes = self.sites.spaces.axes.get(node, ())
        flat = [axis for part in axes for axis in part] if several else axes  # type: ignore[union-attr]
        return any(self.sites.is_merged(axis) for axis in flat)

    def _crossing(self) -> list[int]:
        """Behind every place in the graph: how many merged values are read later on."""
        change = [0] * (len(self.nodes) + 1)
        for place, node in enumerate(self.nodes):
            if node.op != "output" and node not in self.sites.tail and self._carries(node) and node.users:
                change[place] += 1
                change[max(self.place[user] for user in node.users)] -= 1
        found, total = [], 0
        for step in change[:-1]:
            total += step
            found.append(total)
        return found


def _path(site: Site) -> str:
    """The module of the parameters of a site; empty where they stand in none."""
    return next((path for o in site.operands if (path := o.root.rpartition(".")[0])), "")


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _unit(path: str, depth: int) -> str:
    """A module's path up to its `depth`-th number; all of it where it has fewer."""
    parts = path.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[depth - 1] + 1]) if len(numbers) >= depth else path
