"""Streams that may be turned: residual streams that are only added to, moved, normed and read by linear maps.

A norm without its scale and shift commutes with rotations (LayerNorm with those that keep the vector of ones), and what
reads the norm can absorb scale and shift. What scales a single write before it is added (LayerScale), the weights that
write can absorb. So such a stream takes any orthonormal basis, whatever it tolerates as it is. Where a norm reads a
parameter (queries that are learnt), no merge map stands in front of it, so nothing is turned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, fx

from fxmerge.ir.space import Leaf
from fxmerge.ir.supernet import Scale, Stream
from passes.operators import Norm
from passes.supernet.site import Sites


def streams(sites: Sites) -> dict[str, Stream]:
    """By space: the streams of a program that may be turned."""
    found = {}
    for name, space in sites.spaces.spaces.items():
        if name in sites.mergeable and space.role == "residual":
            touching = list(_touching(sites, name))
            norms = {n: norm for n in touching if (norm := _norm(sites, n, name)) is not None}
            shown = all(sites.values[norm.source] == "data" for norm in norms.values())
            scales = {n: scale for n in touching if (scale := _scale(sites, n, name)) is not None}
            if norms and shown and all(n in norms or n in scales or _is_plain(n, sites, name) for n in touching):
                centred = any(norm.centred for norm in norms.values())
                operands = dict.fromkeys(norm.source for norm in norms.values())
                post = tuple(n for n in norms if any(_adds(user, n, sites) for user in n.users))
                found[name] = Stream(centred, tuple(operands), tuple(norms), post, tuple(scales.values()))
    return found


def _touching(sites: Sites, space: str) -> Iterator[fx.Node]:
    """Calls of the trunk with an axis that is this space and nothing else."""
    for node in sites.program.graph.nodes:
        if node.op != "call_function" or node in sites.tail or sites.values[node] != "data":
            continue
        if any(_along(sites, n, space) for n in (node, *node.all_input_nodes)):
            yield node


def _along(sites: Sites, node: fx.Node, space: str) -> list[int]:
    """The axes of a value that are this space and nothing else."""
    axes = sites.spaces.axes.get(node, ()) if isinstance(node.meta.get("val"), Tensor) else ()
    return [number for number, axis in enumerate(axes) if axis == Leaf(space, axis.size)]


def _norm(sites: Sites, node: fx.Node, space: str) -> Norm | None:
    """How a call norms the space, if it does."""
    norm = sites.operators.norm(node)
    return norm if norm is not None and set(_along(sites, norm.source, space)) & set(norm.axes) else None


def _adds(node: fx.Node, norm: fx.Node, sites: Sites) -> bool:
    found = sites.operators.added(node) if node.op == "call_function" else frozenset()
    return norm in found and len(found) > 1


def _scale(sites: Sites, node: fx.Node, space: str) -> Scale | None:
    """How a call scales what one linear map alone writes there, by a parameter that has a number for every unit."""
    given = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    held = [n for n in given if sites.values[n] == "parameter"]
    if len(given) != 2 or len(held) != 1 or not all(sites.operators.scales_with(node, [n]) for n in given):
        return None
    (data,) = (n for n in given if n not in held)
    tensor, writer = _before(sites, held[0]), _before(sites, data)
    site = sites.sites.get(writer)
    if tensor.op != "get_attr" or site is None or site.kind != "linear":
        return None
    reads = Counter(n.target for n in sites.program.graph.nodes if n.op == "get_attr")
    alone = all(reads[name] == 1 for name in (tensor.target, *(each.root for each in site.operands)))
    single = all(len(n.users) == 1 for n in (tensor, writer, *given))
    along = all(_along(sites, n, space) for n in (held[0], writer))
    plain = (
        tensor.meta["val"].numel() == sites.spaces.spaces[space].size
        and data.meta["val"].shape == node.meta["val"].shape
    )
    return Scale(writer, str(tensor.target)) if alone and single and along and plain else None


def _before(sites: Sites, node: fx.Node) -> fx.Node:
    """What a value is made of by moves alone, as far as nothing else reads it on the way."""
    while len(node.users) == 1 and node.op == "call_function" and (moved := sites.operators.moved(node)) is not None:
        node = moved.source
    return node


def _is_plain(node: fx.Node, sites: Sites, space: str) -> bool:
    site = sites.sites.get(node)
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    values = {n for n in tensors if n.meta["val"].is_floating_point()}
    known, along = sites.operators, _along(sites, node, space)
    moves = known.moved(node) is not None or (bool(values) and values <= known.joined(node))
    alike = bool(along) and all(known.alike(node, axis) for axis in along)
    return moves or alike or (site is not None and site.kind == "linear")
