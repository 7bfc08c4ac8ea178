"""A graph with its tensors as a module that runs, whatever the tensors are called."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

MODULE = frozenset(dir(nn.Module)) | frozenset(vars(nn.Module()))
ROOT = MODULE | frozenset(dir(fx.GraphModule)) | frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph())))
"""What the attributes of a module, and of the one that runs a graph, may not be called."""


def module_of(
    graph: fx.Graph, tensors: Mapping[str, Tensor], parameters: Set[str], maps: Mapping[str, nn.Module]
) -> tuple[fx.GraphModule, dict[str, str]]:
    """The runnable module, which shares tensors and maps, and the name that each of them has in it."""
    names = attribute_names([*tensors, *maps])
    if any(name != own for name, own in names.items()):
        graph = _renamed(graph, names)
    root = nn.Module()
    for name, tensor in tensors.items():
        owner, leaf = _owner(root, names[name])
        if name in parameters and tensor.is_floating_point():
            value = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, tensor.requires_grad)
            owner.register_parameter(leaf, value)
        else:
            owner.register_buffer(leaf, tensor)
    for name, module in maps.items():
        owner, leaf = _owner(root, names[name])
        owner.register_module(leaf, module)
    return fx.GraphModule(root, graph, class_name="Program"), names


@contextmanager
def any_part_names() -> Iterator[None]:
    """Let torch.fx run graphs of models with parts called like keywords: it writes `self.class`, which is no Python."""

    def formatted(base: str, target: str) -> str:
        for part in target.split("."):
            plain = part.isidentifier() and not keyword.iskeyword(part)
            base = f"{base}.{part}" if plain else f"getattr({base}, {part!r})"
        return base

    graphs: Any = fx.graph
    before = graphs._format_target
    graphs._format_target = formatted
    try:
        yield
    finally:
        graphs._format_target = before


def attribute_names(names: Iterable[str]) -> dict[str, str]:
    """Each name itself where it can be a path of attributes; otherwise with underscores where it cannot.

    A path's parts are no keywords and no attributes that modules have, and no path goes through another's end.
    """
    found: dict[str, str] = {}
    ends: set[str] = set()
    inner: set[str] = set()
    for name in names:
        parts = [_part(part, ROOT if depth == 0 else MODULE) for depth, part in enumerate(name.split("."))]
        own = ".".join(parts)
        while own in ends or own in inner or any(start in ends for start in _starts(own)):
            taken = next((start for start in _starts(own) if start in ends), own)
            own = taken + "_" + own[len(taken) :]
        ends.add(own)
        inner.update(_starts(own))
        found[name] = own
    return found


def _part(part: str, taken: frozenset[str]) -> str:
    part = re.sub(r"[\"\\\s]", "_", part) or "_"
    while part in taken or keyword.iskeyword(part):
        part += "_"
    return part


def _starts(path: str) -> list[str]:
    """The paths that lead to a path."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _renamed(graph: fx.Graph, names: Mapping[str, str]) -> fx.Graph:
    """A copy of a graph that reads tensors and maps by other names."""
    copy = fx.Graph()
    where: dict[fx.Node, fx.Node] = {}
    copy.output(copy.graph_copy(graph, where))
    for node in copy.nodes:
        if node.op == "get_attr":
            node.target = names[str(node.target)]
    return copy


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    *parts, leaf = path.split(".")
    for part in parts:
        child = root._modules.get(part)
        if child is None:
            child = nn.Module()
            root.add_module(part, child)
        root = child
    return root, leaf
