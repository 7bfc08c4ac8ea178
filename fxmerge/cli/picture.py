"""Where everything stands in the drawing of a program: blocks along the residual streams, calls and spaces in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, fx

from fxmerge.coupling import operator_name
from fxmerge.ir.program import Program
from fxmerge.ir.space import Spaces, Use

ROW, GAP, COLUMN_GAP, LANE, CHARACTER = 30, 10, 44, 26, 6.7
"""Pixels: height of an item, between items, between columns, between streams, width of a letter."""

LONGEST = 28
"""Letters of a module's name; of a longer one the last two parts are shown."""


@dataclass
class Item:
    """A call or a space in the drawing."""

    id: str
    kind: str
    """What a call does ("map", "norm", "scale"), or "space"."""
    title: str
    note: str = ""
    role: str = ""
    column: int = 0
    x: float = 0.0
    y: float = 0.0
    spaces: tuple[str, ...] = ()
    """Spaces that light up with this item."""

    @property
    def width(self) -> float:
        return round(18 + CHARACTER * max(len(self.title), len(self.note)), 1)

    height = float(ROW)


@dataclass(frozen=True)
class Edge:
    """A line between two items, or between an item and a stream ("read", "write")."""

    how: str
    x1: float
    y1: float
    x2: float
    y2: float
    space: str = ""
    below: float = 0.0
    """Height at which a line back to the stream runs, under everything else of its block."""

    @property
    def path(self) -> str:
        if self.how == "write":
            x, y = self.x1 + 14, self.below
            return (
                f"M{self.x1:.1f},{self.y1:.1f} H{x:.1f} Q{x + 8:.1f},{self.y1:.1f} {x + 8:.1f},{self.y1 + 8:.1f}"
                f" V{y - 8:.1f} Q{x + 8:.1f},{y:.1f} {x:.1f},{y:.1f} H{self.x2:.1f}"
            )
        middle = (self.x1 + self.x2) / 2
        points = ((self.x1, self.y1), (middle, self.y1), (middle, self.y2), (self.x2, self.y2))
        start, *curve = (f"{x:.1f},{y:.1f}" for x, y in points)
        return f"M{start} C{' '.join(curve)}"


@dataclass
class Block:
    """What lies between one write to a residual stream and the next."""

    title: str
    items: list[Item]
    edges: list[Edge] = field(default_factory=list)
    top: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class Lane:
    """A residual stream: the line beside the blocks."""

    space: str
    x: float
    top: float
    bottom: float
    label: str


@dataclass(frozen=True)
class Picture:
    blocks: tuple[Block, ...]
    lanes: tuple[Lane, ...]
    left: float
    width: float
    height: float


@dataclass
class Call:
    """A node with parameters: which spaces they read, write, or only scale and shift."""

    node: fx.Node
    number: int
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    along: set[str] = field(default_factory=set)
    tensors: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return f"c{self.number}"


def calls(program: Program, spaces: Spaces, shown: Iterable[str]) -> list[Call]:
    """The calls that touch a shown space with a parameter, in the order of the graph."""
    number = {node: i for i, node in enumerate(program.graph.nodes)}
    found: dict[fx.Node, Call] = {}
    for name in shown:
        space = spaces.spaces[name]
        for use, place in [
            *_each(space.readers, "reads"),
            *_each(space.writers, "writes"),
            *_each(space.others, "along"),
        ]:
            call = found.setdefault(use.node, Call(use.node, number[use.node]))
            getattr(call, place).add(name)
            if use.tensor not in call.tensors:
                call.tensors.append(use.tensor)
    return sorted(found.values(), key=lambda call: call.number)


def _each(uses: Iterable[Use], place: str) -> Iterator[tuple[Use, str]]:
    return ((use, place) for use in uses)


def kind_of(call: Call) -> str:
    """A map writes or reads; a norm scales what it has divided by its own size; the rest scales or shifts."""
    if call.reads or call.writes:
        return "map"
    return "norm" if "norm" in operator_name(call.node) or _divides_by_own_size(call.node) else "scale"


def _divides_by_own_size(node: fx.Node, depth: int = 4) -> bool:
    """True if one operand is a product of a value and of a reduction of that value, as in a norm written out."""
    for operand in node.all_input_nodes:
        inputs = [n for n in operand.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        if len(inputs) == 2 and len({tuple(n.meta["val"].shape) for n in inputs}) == 2:
            wide, thin = sorted(inputs, key=lambda n: -n.meta["val"].numel())
            if _comes_from(thin, wide):
                return True
        if depth and len(inputs) == 1 and _divides_by_own_size(operand, depth - 1):
            return True
    return False


def _comes_from(node: fx.Node, source: fx.Node, steps: int = 8) -> bool:
    if node is source:
        return True
    return steps > 0 and any(_comes_from(n, source, steps - 1) for n in node.all_input_nodes)


def blocks(found: list[Call], streams: set[str]) -> list[list[Call]]:
    """Calls cut after each write to a stream; what precedes the first read of one is the stem."""
    made: list[list[Call]] = [[]]
    for call in found:
        made[-1].append(call)
        if call.writes & streams:
            made.append([])
    made = [group for group in made if group]
    for first, second in pairwise(made):
        while second and kind_of(second[0]) == "scale" and first[-1].writes & streams:  # positions added to the stem
            first.append(second.pop(0))
    made = [group for group in made if group]
    reading = next((i for i, group in enumerate(made) if any(c.reads & streams for c in group)), 0)
    if reading > 1:
        made = [[call for group in made[:reading] for call in group], *made[reading:]]
    return made


def draw(program: Program, spaces: Spaces, shown: Iterable[str]) -> Picture:
    """The whole drawing. `shown`: ids of the spaces that parameters carry."""
    wanted = [name for name in shown if spaces.spaces[name].size > 1]
    streams = [name for name in wanted if spaces.spaces[name].role == "residual"]
    left = 24.0 + LANE * len(streams)
    made, top = [], 16.0
    groups = blocks(calls(program, spaces, wanted), set(streams))
    for number, group in enumerate(groups):
        block = _block(group, spaces, streams, left + 20, top, _title(group, number, len(groups)))
        made.append(block)
        top += block.height + 14
    lanes = tuple(_lanes(made, spaces, streams))
    width = max((item.x + item.width for block in made for item in block.items), default=200) + 60
    return Picture(tuple(made), lanes, left + 20, width, top)


def _title(group: list[Call], number: int, count: int) -> str:
    parts = [name.split(".") for call in group for name in call.tensors]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common) or ("first" if number == 0 else "last" if number == count - 1 else f"block {number}")


def _block(group: list[Call], spaces: Spaces, streams: list[str], left: float, top: float, title: str) -> Block:
    places: dict[str, Item] = {}
    lines: list[tuple[str, str, str]] = []  # from, to, space
    known = {call.node: call for call in group}
    hidden = set(streams)
    for call in group:
        item = _call_item(call, title)
        inner = [name for name in sorted(call.reads - hidden) if name in places or name not in _written(group)]
        for name in inner:
            places.setdefault(name, _space_item(name, spaces))
            lines.append((name, call.id, name))
        joined = [c for c in _feeding(call, known) if not (c.writes & call.reads - hidden)]
        lines += [(other.id, call.id, "") for other in joined if other.id in places]
        sources = [places[start] for start, end, _ in lines if end == call.id]
        item.column = max((source.column + 1 for source in sources), default=0)
        places[call.id] = item
        for name in sorted(call.writes - hidden):
            space = places.setdefault(name, _space_item(name, spaces))
            space.column = max(space.column, item.column + 1)
            lines.append((call.id, name, name))
    block = Block(title, list(places.values()), top=top)
    _place(block, spaces, left)
    bottom = max(item.y for item in block.items) + ROW + 16
    block.height = bottom - top
    lane = {name: 24.0 + LANE * i for i, name in enumerate(streams)}
    block.edges = [_between(places[start], places[end], space) for start, end, space in lines]
    block.edges += _to_streams(group, places, lane, lines, bottom - 6)
    return block


def _written(group: list[Call]) -> set[str]:
    return {name for call in group for name in call.writes}


def _feeding(call: Call, known: Mapping[fx.Node, Call]) -> list[Call]:
    """The calls of the same block whose result reaches this one through calls without parameters."""
    found: list[Call] = []
    seen: set[fx.Node] = set()
    waiting = list(call.node.all_input_nodes)
    first = min(c.number for c in known.values())
    while waiting and len(seen) < 400:
        node = waiting.pop()
        if node in seen or node.op != "call_function":
            continue
        seen.add(node)
        if node in known:
            found.append(known[node])
        else:
            waiting += node.all_input_nodes
    return sorted((c for c in found if c.number >= first), key=lambda c: c.number)


def _call_item(call: Call, title: str) -> Item:
    name = operator_name(call.node).split(".")
    first = call.tensors[0]
    owner = first.removeprefix(title + ".").rpartition(".")[0] or first.rpartition(".")[2]
    shown = ".".join(owner.split(".")[-2:]) if len(owner) > LONGEST else owner
    touched = tuple(sorted(call.reads | call.writes | call.along))
    return Item(call.id, kind_of(call), shown, name[-2] if len(name) > 1 else name[0], spaces=touched)


def _space_item(name: str, spaces: Spaces) -> Item:
    space = spaces.spaces[name]
    role = space.role.replace("_", "·")
    return Item(name, "space", f"{name} {role}", f"{space.size} {space.tolerance}", role=space.role, spaces=(name,))


def _place(block: Block, spaces: Spaces, left: float) -> None:
    """Coordinates: columns left to right; in a column, spaces stand under the one they are within."""
    columns: dict[int, list[Item]] = {}
    for item in block.items:
        columns.setdefault(item.column, []).append(item)
    x = left
    for _, items in sorted(columns.items()):
        items.sort(key=lambda item: _order(item, spaces))
        for row, item in enumerate(items):
            inner = item.kind == "space" and spaces.spaces[item.id].within in {other.id for other in items}
            item.x, item.y = x + (14 if inner else 0), block.top + 24 + row * (ROW + GAP)
        x = max(item.x + item.width for item in items) + COLUMN_GAP


def _order(item: Item, spaces: Spaces) -> list[int]:
    """Calls first, in their order; then each space under the chain of those it is within."""
    if item.kind != "space":
        return [0, int(item.id[1:])]
    chain, name = [], item.id
    while name not in chain:
        chain.append(name)
        name = spaces.spaces[name].within or name
    return [1, *(list(spaces.spaces).index(each) for each in reversed(chain))]


def _between(start: Item, end: Item, space: str) -> Edge:
    return Edge("link", start.x + start.width, start.y + ROW / 2, end.x, end.y + ROW / 2, space)


def _to_streams(
    group: list[Call],
    places: Mapping[str, Item],
    lane: Mapping[str, float],
    lines: list[tuple[str, str, str]],
    bottom: float,
) -> Iterator[Edge]:
    fed = {end for _, end, _ in lines}
    for call in group:
        item = places[call.id]
        for name in sorted((call.reads | call.along - call.writes) & lane.keys()):
            if call.id not in fed:  # what a norm before it has read already is not drawn again
                yield Edge("read", lane[name], item.y + ROW / 2, item.x, item.y + ROW / 2, name)
        for name in sorted(call.writes & lane.keys()):
            yield Edge("write", item.x + item.width, item.y + ROW / 2, lane[name], bottom, name, bottom)


def _lanes(made: list[Block], spaces: Spaces, streams: list[str]) -> Iterator[Lane]:
    for number, name in enumerate(streams):
        own = [block for block in made if any(edge.space == name and edge.how != "link" for edge in block.edges)]
        if own:
            label = f"{name} residual {spaces.spaces[name].size}"
            yield Lane(name, 24.0 + LANE * number, own[0].top, own[-1].top + own[-1].height, label)
