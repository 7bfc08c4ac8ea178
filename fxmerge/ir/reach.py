"""Which nodes of a graph lie behind others, and which come of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx


def behind(nodes: Iterable[fx.Node], without: Collection[fx.Node] = ()) -> set[fx.Node]:
    """These nodes and all that they are computed from, without looking behind nodes of `without`, nor counting them."""
    todo = [node for node in nodes if node not in without]
    found = set(todo)
    while todo:
        new = [n for n in todo.pop().all_input_nodes if n not in found and n not in without]
        found.update(new)
        todo += new
    return found


def reached(starts: Iterable[fx.Node], stop: Collection[fx.Node] = ()) -> set[fx.Node]:
    """These nodes and all that is computed from them; nothing behind a node of `stop`."""
    todo = list(starts)
    found = set(todo)
    while todo:
        node = todo.pop()
        new = [n for n in node.users if n not in found] if node not in stop else []
        found.update(new)
        todo += new
    return found
