"""Streams set free to turn: scales and shifts of their norms are read where the norms are read, factors written.

    γ ⊙ n(x) + β, read by W_k      -->      n(x) + b, unmerged by diag(γ_k) C_kᵀ, read by W_k

A norm without its scale commutes with rotations (one that subtracts the mean with those that keep the vector of ones),
so the stream has the orthogonal group. b is the shift that all parents' readers see best: exact for one parent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxmerge.coupling.elements import Deviation
from fxmerge.ir.merge import NODES
from fxmerge.ir.probe import probe
from fxmerge.ir.space import leaves
from fxmerge.ir.supernet import Stream, SuperNet
from fxmerge.methods.alignment import matches
from fxmerge.methods.alignment.layout import FoldedNorm, Layout
from fxmerge.methods.alignment.maps import aligned
from fxmerge.methods.alignment.solve import Alignment, Carriers
from fxmerge.methods.map_nodes import Unmerge
from fxmerge.methods.probe import multiplies
from fxmerge.methods.scales import scales_of

CLOSE = 1e-3
"""Of the outputs' largest entry, in float32 if that is what the parents compute in."""


class Refused(Exception):
    """Why a stream is not set free."""


def freed(layout: Layout) -> Layout:
    """The layout with every stream whose norms can be folded free to turn; the others, and why, among `kept`."""
    sites, norms, kept = dict(layout.sites), list(layout.norms), dict(layout.kept)
    scales = list(layout.scales)
    for space, stream in layout.supernet.streams.items():
        try:
            norms += _Stream(layout, space, stream).norms()
        except Refused as refused:
            kept[space] = str(refused)
        else:
            sites[space] = replace(sites[space], group="orthogonal", centred=stream.centred)
            scales += scales_of(layout.supernet, space, stream)
    return replace(layout, sites=sites, norms=tuple(norms), scales=tuple(scales), kept=kept)


@dataclass(frozen=True)
class _Stream:
    layout: Layout
    space: str
    stream: Stream

    @property
    def net(self) -> SuperNet:
        return self.layout.supernet

    def norms(self) -> list[FoldedNorm]:
        """Raises `Refused` unless all of them can be folded."""
        site = self.layout.sites.get(self.space)
        if site is None or site.owner is not None:
            raise Refused("the parents' streams do not correspond")
        if self.stream.post:
            raise Refused("what its norms give goes on as the stream")
        if set(site.sizes) != {site.size}:
            raise Refused("the parents differ in width")
        nodes = {node.name: node for node in self.net.program.graph.nodes}
        found = [nodes.get(self.net.trunk.get(norm, "")) for norm in self.stream.norms]
        norms = [node for node in found if node is not None]
        if len(norms) < len(found):
            raise Refused("a norm of it is not shared by all tasks")
        reads = self._reads(norms)
        return [self._norm(node, [name for name, norm in reads.items() if norm is node]) for node in norms]

    def _reads(self, norms: list[fx.Node]) -> dict[str, fx.Node | None]:
        """By unmerge map of the space: the norm that it stands behind; None for the stream as it is."""
        reads: dict[str, fx.Node | None] = {}
        for node in self.net.program.graph.nodes:
            unmerged = Unmerge.of(node)
            if unmerged is None or not self._carries(unmerged.name):
                continue
            norm = _behind(unmerged.source, norms)
            if reads.setdefault(unmerged.name, norm) is not norm:
                raise Refused("one map reads several norms of it")
        return reads

    def _carries(self, name: str) -> bool:

        return any(leaf.space == self.space for leaf in leaves(self.net.places[name].merged))

    def _norm(self, node: fx.Node, reads: list[str]) -> FoldedNorm:
        given = [n for n in node.all_input_nodes if n.op == "get_attr"]
        if any(str(n.target) not in self.net.own or len(n.users) > 1 for n in given):
            raise Refused(f"{node.name} has a scale or a shift that is not its own alone")
        kinds = {"scale" if multiplies(n) else "shift": str(n.target) for n in given}
        if len(kinds) < len(given):
            raise Refused(f"{node.name} has several scales or shifts")
        scale, shift = kinds.get("scale", ""), kinds.get("shift", "")
        size = self.layout.sites[self.space].size
        ones = torch.ones(size, dtype=torch.float64)
        scales, shifts = self._values(scale) or (ones,) * self.layout.count, self._values(shift)
        tensors = frozenset(self._tensors(reads))
        places = tuple(_normed(twin) for twin in self.net.twins[node.name])
        return FoldedNorm(
            self.space, scale, shift, scales, shifts, frozenset(reads), tensors, places, self.stream.centred
        )

    def _values(self, name: str) -> tuple[Tensor, ...]:
        """The parents' versions of a tensor of the SuperNet's own."""
        own = self.net.own[name].names if name else ()
        return tuple(p.tensors[each].detach().double().cpu() for p, each in zip(self.net.parents, own, strict=False))

    def _tensors(self, reads: list[str]) -> Iterator[str]:
        """The template's tensors that read behind these maps."""
        for name in reads:
            calls = [user for node in self.net.nodes_of(name) if Unmerge.of(node) for user in node.users]
            for tensor in (n for call in calls for n in call.all_input_nodes if n.op == "get_attr"):
                origin = self.net.program.origins.get(str(tensor.target))
                if origin is not None and origin.owner == self.net.template:
                    yield origin.name


def _normed(norm: fx.Node) -> fx.Node:
    """What a norm norms: its operand that is no tensor of the program's own."""
    return next(n for n in norm.all_input_nodes if n.op != "get_attr" and isinstance(n.meta.get("val"), Tensor))


def _behind(node: fx.Node, norms: list[fx.Node]) -> fx.Node | None:
    """The norm that a value is read from, moved at most; None where there is another call with several operands."""
    while node not in norms:
        given = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        if node.op != "call_function" or node.target in NODES or len(given) != 1:
            return None
        node = given[0]
    return node


def turning(supernet: SuperNet) -> Layout:
    """The layout of a SuperNet with every stream whose norms can be folded free to turn.

    Turned at random, every parent alone must give what it gives; otherwise all streams are left as they were.
    """
    plain = Layout.of(supernet)
    layout = freed(plain)
    if layout.norms and not holds(layout):
        return replace(plain, kept={norm.space: "turned, it changes what the parents give" for norm in layout.norms})
    return layout


@torch.no_grad()
def holds(layout: Layout, seed: int = 0) -> bool:
    """Whether parents whose free streams are turned at random give what they give, on a few inputs."""
    net, generator, alignment = layout.supernet, torch.Generator().manual_seed(seed), Alignment(layout)
    for space in dict.fromkeys(norm.space for norm in layout.norms):
        site = layout.sites[space]
        given = torch.randn(site.size, site.size, generator=generator, dtype=torch.float64)
        turn = matches.centred_rotation(given) if site.centred else matches.rotation(given)
        alignment.carriers[space, ()] = Carriers.of([turn] * layout.count)
    inputs = probe(net.program)
    for k, parent in enumerate(net.parents):
        alone = aligned(alignment, "fixed", weights=[float(k == i) for i in range(layout.count)]).program
        ours = alone.only([f"{parent.task}.{port.name}" for port in parent.outputs], inputs=True).run(inputs)
        own = dict(zip((port.name for port in parent.inputs), (inputs[n] for n in net.inputs[k]), strict=True))
        for name, value in parent.run(own).items():
            if not Deviation.between(ours[f"{parent.task}.{name}"], value).error < CLOSE:
                return False
    return True
