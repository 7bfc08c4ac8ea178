"""Streams that may be turned: residual streams that are only added to, moved, normed and read by linear maps.

A norm without its scale and shift commutes with rotations (LayerNorm with those that keep the vector of ones), and what
reads the norm can absorb scale and shift. So such a stream takes any orthonormal basis, whatever it tolerates as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx

from fxmerge.ir.program import target_name
from fxmerge.ir.space import AxisExpr, Leaf
from fxmerge.ir.supernet import Stream
from passes.operators import OPERATORS
from passes.supernet.sites import Sites

NORMS = {"aten.layer_norm.default": True, "aten.rms_norm.default": False}
"""Norms, and whether they subtract the mean."""
SUMS = {"aten.mean.dim", "aten.sum.dim_IntList"}


def streams(sites: Sites) -> dict[str, Stream]:
    """By space: the streams of a program that may be turned."""
    found = {}
    for name, space in sites.spaces.spaces.items():
        if name in sites.mergeable and space.role == "residual":
            norms = [n for n in _touching(sites, name) if target_name(n.target) in NORMS]
            plain = all(_is_plain(n, sites) for n in _touching(sites, name))
            if norms and plain:
                centred = any(NORMS[target_name(n.target)] for n in norms)
                operands = {n.all_input_nodes[0]: None for n in norms}
                post = tuple(n for n in norms if any(_adds(user) for user in n.users))
                found[name] = Stream(centred, tuple(operands), tuple(norms), post)
    return found


def _touching(sites: Sites, space: str) -> Iterator[fx.Node]:
    """Calls of the trunk with an axis that is this space and nothing else."""
    for node in sites.program.graph.nodes:
        if node.op != "call_function" or node in sites.tail or sites.values[node] != "data":
            continue
        if any(axis == Leaf(space, axis.size) for n in (node, *node.all_input_nodes) for axis in _axes(sites, n)):
            yield node


def _axes(sites: Sites, node: fx.Node) -> tuple[AxisExpr, ...]:
    axes = sites.spaces.axes.get(node, ())
    return axes if isinstance(node.meta.get("val"), Tensor) else ()


def _adds(node: fx.Node) -> bool:
    return target_name(node.target) in ("aten.add.Tensor", "aten.sub.Tensor")


def _is_plain(node: fx.Node, sites: Sites) -> bool:
    name = target_name(node.target)
    site = sites.sites.get(node)
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    values = {n for n in tensors if n.meta["val"].is_floating_point()}
    moves = OPERATORS.moved(node) is not None or (bool(values) and values <= OPERATORS.joined(node))
    return moves or name in SUMS or name in NORMS or (site is not None and site.kind == "linear")
