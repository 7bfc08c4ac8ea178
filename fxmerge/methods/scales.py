"""Learnt factors of what one linear map writes into a stream (LayerScale): the map to the merged stream takes them in.

    γ ⊙ W_k y + x      -->      1 ⊙ merge([W_k y], M diag(γ_k)) + x

So the stream takes any basis, and the merged model keeps its factors, as ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fxmerge.ir.supernet import Stream, SuperNet
from fxmerge.methods.map_nodes import Merge


@dataclass(frozen=True)
class WriteScale:
    """The factors of what one merge map writes."""

    space: str
    tensor: str
    """Name of the SuperNet's own tensor that holds them."""
    merge: str
    """The merge map in front of them."""
    values: tuple[Tensor, ...]
    """Per parent, in float64."""
    writers: frozenset[str]
    """The template's tensors that write there."""


def scales_of(net: SuperNet, space: str, stream: Stream) -> Iterator[WriteScale]:
    """Everything that scales a single write into a stream."""
    nodes = {node.name: node for node in net.program.graph.nodes}
    for scale in stream.scales:
        merged = Merge.of(nodes[net.trunk[scale.written]])
        assert merged is not None, "a map that writes into a stream is merged"
        names = net.names[scale.tensor]
        values = tuple(
            p.tensors[n].detach().double().cpu().reshape(-1) for p, n in zip(net.parents, names, strict=True)
        )
        given = (n for call in merged.calls for n in call.all_input_nodes if n.op == "get_attr")
        origins = [net.program.origins[str(n.target)] for n in given if n.target in net.program.origins]
        writers = frozenset(origin.name for origin in origins if origin.owner == net.template)
        yield WriteScale(space, scale.tensor, merged.name, values, writers)
