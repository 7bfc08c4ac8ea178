"""Give the units of the merged model the mean and the spread that they have in the parents, front to back.

v = call(x, W, b)               -->   v' = d · v + c = call(x, d W, d b + c)
v = norm(call(x, W)) + shift    -->   v' = d · v + c, c in the shift

d = σ / σ(v), c = μ − d μ(v)          μ = Σ_k M_k μ_k, σ = Σ_k |M_k| σ_k: the parents' own, as M puts them together
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods import map_nodes
from fxmerge.methods.chains import Chain
from fxmerge.methods.one_trunk import OneTrunk
from fxmerge.methods.post.step import ROWS, Done, Merge
from fxmerge.methods.sampled import as_given
from fxmerge.methods.seen import Seen
from fxmerge.methods.walk import Values

ALL = 1 << 40
"""Rows of statistics: all there are."""
WHOLE = 1.001
"""A unit whose shares of parents' units sum to more than one is no mean of them: a stream in another basis has such."""
STILL = 1e-6
"""A unit that varies less than this share of the others has no spread to scale."""
EXACT = 1e-3
"""What a call gives may be this far from what scaled weights ought to give, relative to its largest entry."""


@dataclass(frozen=True)
class Site:
    """A call of the merged model that writes units, and the parents' calls that write theirs."""

    call: fx.Node
    chain: Chain
    """What happens to its result alone, unit by unit."""
    axis: int
    weights: Mapping[str, int]
    """The tensors that write units, by name, and the axis of theirs that does."""
    matrices: Mapping[int, Tensor]
    """M of every parent."""
    parents: Mapping[int, fx.Node]
    """Its value where the chain ends."""

    @property
    def name(self) -> str:
        return next(iter(self.weights))

    @property
    def needed(self) -> tuple[fx.Node, ...]:
        """What has to be there when the site is computed again."""
        return tuple(dict.fromkeys(n for node in self.chain.nodes for n in (*node.all_input_nodes, node)))


@dataclass(frozen=True)
class Repair:
    """Averaged units vary less than what they are averages of; each is scaled and shifted back, in its weights.

    Units are those of all calls that are linear in weights of the trunk and whose maps take shares of units. Without a
    bias, here or in a norm that follows, only the spread is set. Source: Jordan et al., REPAIR, ICLR 2023, §3.
    """

    name: ClassVar[str] = "repair"
    summary: ClassVar[str] = "mean and spread of every unit as they are in the parents, folded into weights and biases"

    rows: int = ROWS

    def __call__(self, merge: Merge) -> Done:
        net = merge.job.supernet
        if merge.trained:
            return Done(merge.program, left={"all units": "weights were trained after the fold: no unit is a parent's"})
        seen = Seen.of(net, as_given(merge.job, self.rows), merge.program, ALL)
        one = OneTrunk.of(net)
        sites, left = _sites(net.with_program(one.program) if one else net, seen.net.program)
        walk = _Walk(seen, sites)
        walk.run()
        tensors = {**merge.program.tensors, **walk.changed}
        return Done(merge.program.evolve(tensors=tensors), walk.facts, {**left, **walk.left})


def _sites(net: SuperNet, program: Program) -> tuple[list[Site], dict[str, str]]:
    """The calls of the folded program that can be repaired, in order, and why others cannot."""
    found, left = {}, {}
    for node in net.program.graph.nodes:
        joined = map_nodes.Merge.of(node)
        if joined is None or (net.copies and len(joined.parents) < len(net.parents)):  # a stem has its parent's units
            continue
        made = _site(net, program, node, joined)
        if isinstance(made, Site):
            found[made.call] = made
        else:
            left[made[0]] = made[1]
    return [found[node] for node in program.graph.nodes if node in found], left


def _site(net: SuperNet, program: Program, node: fx.Node, joined: map_nodes.Merge) -> Site | tuple[str, str]:
    weights, name = _weights(net, joined), joined.name
    if not weights:
        return name, "its weights are written through moves"
    name = next(iter(weights))
    users = {user for n in program.graph.nodes if n.op == "get_attr" and n.target in weights for user in n.users}
    if len(users) != 1 or any(each not in program.tensors for each in weights):
        return name, "its weights are used more than once"
    axis_map = net.program.maps[joined.name]
    assert isinstance(axis_map, AxisMap)
    matrices = {
        k: axis_map.to_merged(torch.eye(axis_map.sizes[k], dtype=torch.float64), k, 0).detach() for k in joined.parents
    }
    (call,) = users
    chain = Chain.of(call, joined.axis, program.tensors)
    theirs = Chain.of(node, joined.axis, net.program.tensors)
    if len(theirs.nodes) != len(chain.nodes):
        chain, theirs = (Chain((n,), torch.ones_like(chain.scale), torch.zeros_like(chain.scale)) for n in (call, node))
    twins = net.twins.get(theirs.last.name)
    if twins is None:
        return name, "a parent has no call like it"
    return Site(call, chain, joined.axis, weights, matrices, {k: twins[k] for k in joined.parents})


def _weights(net: SuperNet, joined: map_nodes.Merge) -> dict[str, int]:
    """The folded tensors that write a merged axis, by the template's names, and which of their axes does; none if one
    of them is not the template's tensor itself."""
    if joined.folds is None or joined.folds.template not in joined.parents:
        return {}
    call = joined.calls[joined.parents.index(joined.folds.template)]
    operands = [n for n in call.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    found: dict[str, int] = {}
    for weight in joined.folds.weights:
        axes = [a for a, m in zip(weight.axes, weight.maps, strict=True) if str(m.target) == joined.name]
        node = operands[weight.position]
        if axes and (not weight.at_root or node.op != "get_attr" or len(axes) > 1):
            return {}
        if axes:
            found[net.program.origins[str(node.target)].name] = axes[0]
    return found


class _Walk:
    """The merged program and the parents side by side; a site is set before anything reads it."""

    def __init__(self, seen: Seen, sites: list[Site]) -> None:
        self.seen, self.sites = seen, sites
        self.merged, self.parents = seen.merged(), seen.parents()
        self.changed: dict[str, Tensor] = {}
        self.facts: dict[str, dict[str, float]] = {}
        self.left: dict[str, str] = {}
        for site in sites:
            for node in site.needed:
                self.merged.hold(node)
            for k, node in site.parents.items():
                self.parents[k].hold(node)

    def run(self) -> None:
        for site in self.sites:
            self._repair(site)
            for node in site.needed:
                self.merged.release(node)
            for k, node in site.parents.items():
                self.parents[k].release(node)

    def _repair(self, site: Site) -> None:
        shares = torch.stack([matrix.abs().sum(1) for matrix in site.matrices.values()]).sum(0)
        mean, spread = torch.zeros_like(shares), torch.zeros_like(shares)
        for k, matrix in site.matrices.items():
            middle, deviation = self._statistics(self.parents[k], site.parents[k], site.axis)
            mean, spread = mean + matrix @ middle, spread + matrix.abs() @ deviation
        own, varied = self._own(site)
        units = (shares <= WHOLE) & (shares > 0) & (varied > STILL * float(varied.max()))
        if not bool(units.any()):
            self.left[site.name] = "its units mix parents' units, or never vary"
            return
        scale = torch.where(units, spread / varied.clamp_min(1e-300), torch.ones_like(spread))
        if not self._scales(site, scale):
            self.left[site.name] = "it is not linear in its weights"
            return
        shift = torch.where(units, mean - scale * own, torch.zeros_like(mean))
        self._set(site, scale, shift)
        self.facts[site.name] = {
            "units": int(units.sum()),
            "scale": round(float(scale[units].mean()), 4),
            "shift": round(float((shift[units].abs() / varied[units]).mean()), 4),
        }

    def _own(self, site: Site) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the merged units: of every task on its own rows, in the shares of its parent."""
        if self.seen.trunk is None:
            return self._statistics(self.merged, site.chain.last, site.axis)
        found = [self._statistics(self.merged, site.chain.last, site.axis, k) for k in site.matrices]
        shares = torch.stack([matrix.abs().sum(1) for matrix in site.matrices.values()])
        shares = shares / shares.sum(0).clamp_min(1e-300)
        mean, spread = (torch.stack([each[i] for each in found]) for i in range(2))
        return (shares * mean).sum(0), (shares * spread).sum(0)

    def _statistics(self, values: Values, node: fx.Node, axis: int, task: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and deviation of every unit over all places of all batches, or of a task's, in two passes in float64."""
        wanted = [task in (None, batch.task) for batch in self.seen.batches]

        def parts() -> Iterator[Tensor]:
            for own, rows in zip(wanted, self.seen.part(values.of(node), axis), strict=True):
                if own and rows is not None:
                    yield rows

        count = sum(len(part) for part in parts())
        mean = torch.stack([part.sum(0) for part in parts()]).sum(0) / count
        square = torch.stack([(part - mean).square().sum(0) for part in parts()]).sum(0) / count
        return mean, square.sqrt()

    def _scales(self, site: Site, scale: Tensor) -> bool:
        """Whether the call's result scales with its weights."""
        before = self.merged.of(site.call)[0].double()
        nodes = {n: site.weights[str(n.target)] for n in site.call.all_input_nodes if n.target in site.weights}
        scaled = {n: _along(self.merged.of(n)[0], scale, axis) for n, axis in nodes.items()}
        with torch.no_grad():
            after = self.merged.value(site.call, 0, scaled).double()
        wanted = _along(before, scale, site.axis)
        return bool(torch.allclose(after, wanted, rtol=EXACT, atol=EXACT * float(wanted.abs().max()) + 1e-30))

    def _set(self, site: Site, scale: Tensor, shift: Tensor) -> None:
        """Scale the weights and shift where there is a bias: the call's own, or one of the chain."""
        chain, tensors = site.chain, {n: self.merged.tensors[n].double() for n in site.weights}
        moved = (scale - 1) * chain.shift + shift
        tensors = {name: _along(tensor, scale, site.weights[name]) for name, tensor in tensors.items()}
        bias = self._bias(site)
        if bias is not None:
            slope = torch.where(chain.scale == 0, torch.ones_like(chain.scale), chain.scale)
            tensors[bias] = tensors[bias] + moved / slope
        elif chain.bias is not None:
            name = str(chain.bias.target)
            tensors[name] = self.merged.tensors[name].double() + moved
        else:
            self.left[f"mean of {site.name}"] = "there is no bias: only the spread is set"
        for name, tensor in tensors.items():
            self.changed[name] = self.merged.tensors[name] = tensor.to(self.merged.tensors[name].dtype)
        for node in site.needed:
            if (node.op == "get_attr" and node.target in tensors) or node in chain.nodes:
                self.merged.again(node)

    def _bias(self, site: Site) -> str | None:
        """The tensor of the call that is added as it is."""
        for node in site.call.all_input_nodes:
            if node.target in site.weights and node.meta["val"].ndim == 1:
                values = {n: self.merged.of(n)[0] for n in site.call.all_input_nodes}
                with torch.no_grad():
                    more = self.merged.value(site.call, 0, {**values, node: values[node] + 1})
                if torch.allclose(more, self.merged.of(site.call)[0] + 1, rtol=EXACT, atol=EXACT):
                    return str(node.target)
        return None


def _along(value: Tensor, scale: Tensor, axis: int) -> Tensor:
    """A value with every unit along an axis times its own factor."""
    return (value.movedim(axis, -1) * scale.to(value.dtype)).movedim(-1, axis)
