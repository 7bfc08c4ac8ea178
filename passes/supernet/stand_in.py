"""A program of the template's structure that stands for a model of another one: it learns that model's outputs.

    template   x → trunk → F → its head            stand-in   x → trunk → F → fresh head, of the other model's outputs
    other      x → anything else → outputs

It lines up with the template node beside node, so everything behind it sees parents of one structure. None of the other
model's weights is in it: what a merge does for that model is distillation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import fx

from fxmerge.coupling import RuleSet
from fxmerge.errors import LineUpError
from fxmerge.ir.fresh_head import FreshHead
from fxmerge.ir.program import Port, Program, Teacher
from fxmerge.ir.shown import shape_of
from passes.supernet.maps import free
from passes.supernet.own_words import own_words
from passes.supernet.site import Sites
from passes.supernet.sites import SitesOf

Shape = tuple[int | str, ...]
STREAMS = ("residual", "channels")
"""Roles of spaces whose values a head may read where no head of the template reads anything that fits."""
CONVOLUTIONS = {3: torch.ops.aten.conv1d.default, 4: torch.ops.aten.conv2d.default, 5: torch.ops.aten.conv3d.default}


def stand_in(template: Program, other: Program, rules: RuleSet, why: str) -> Program:
    """The template's trunk with heads for the outputs of `other`, their weights zero, and `other` as its teacher.

    Raises `LineUpError` where the template cannot be given what `other` takes, or cannot give what it gives.
    """
    inputs = _inputs(template, other)
    sites = template.get(SitesOf(rules))
    names = _names(template, other, inputs)
    graph, where = template.copy_graph()
    words = own_words(template, other, inputs, sites.operators)
    tensors, results, heads = {**template.tensors, **words}, [], []
    last = where[next(iter(reversed(template.graph.nodes)))]
    for number, port in enumerate(other.outputs):
        found = _best(template, sites, tuple(names.get(size, size) for size in port.shape))  # type: ignore[arg-type]
        if found is None or not port.dtype.is_floating_point:
            raise LineUpError(
                f"{template.task} can learn nothing that gives {port.name} of {other.task} "
                f"({', '.join(map(str, port.shape))}, {str(port.dtype).removeprefix('torch.')})",
                "leave this model out, or choose another template with --like",
            )
        with graph.inserting_before(last):
            made = _Head(graph, number, found, free(f"{port.name}.head", [_first(n) for n in tensors]))
            results.append(made.build(where[found.node]))
        for name, shape in ((made.weight, made.weight_shape), (made.bias, (made.numbers,))):
            tensors[name] = torch.zeros(shape, dtype=found.node.meta["val"].dtype)
        heads.append(made.fresh)
    last.args = (tuple(results),)
    own = {name for head in heads for name in (head.weight, head.bias)}
    return template.evolve(
        graph=graph,
        tensors=tensors,
        parameters=template.parameters | own,
        inputs=tuple(replace(port, name=other.inputs[k].name) for port, k in zip(template.inputs, inputs, strict=True)),
        outputs=tuple(
            replace(port, shape=tuple(names.get(size, size) for size in port.shape))  # type: ignore[arg-type]
            for port in other.outputs
        ),
        task=other.task,
        labels=other.labels,
        samples=other.samples,
        assets=other.assets,
        turned=other.turned,
        notes=other.notes,
        teacher=Teacher(other, why, tuple(heads)),
    )


def pairs_of(template: Program, made: Program) -> dict[fx.Node, fx.Node]:
    """The node of a stand-in for every node of the program that it was made from: they have one name."""
    known = {node.name: node for node in made.graph.nodes}
    return {node: known[node.name] for node in template.graph.nodes if node.op != "output"}


def sites_of(template: Program, made: Program, rules: RuleSet) -> Sites:
    """The sites of a stand-in, where what its own heads leave unread has the axes that it has in the template."""
    own, like, pairs = made.get(SitesOf(rules)), template.get(SitesOf(rules)).spaces, pairs_of(template, made)
    axes = {theirs: like.axes[ours] for ours, theirs in pairs.items() if ours in like.axes}
    tensors = {name: like.tensors[name] for name in own.spaces.unused if name in like.tensors}
    spaces = replace(own.spaces, axes={**axes, **own.spaces.axes}, tensors={**own.spaces.tensors, **tensors})
    return replace(own, spaces=spaces)


# -- inputs ------------------------------------------------------------------------------------------------


def _inputs(template: Program, other: Program) -> list[int]:
    """For every input of the template, the place of the other model's input that is the same."""
    mine, theirs = [p.name for p in template.inputs], [p.name for p in other.inputs]
    if len(mine) != len(theirs):
        raise _refused(template, other, f"{', '.join(mine)} and {', '.join(theirs)}")
    order = [theirs.index(name) for name in mine] if set(mine) == set(theirs) else list(range(len(mine)))
    for port, k in zip(template.inputs, order, strict=True):
        if not _same_kind(port, other.inputs[k]):
            raise _refused(template, other, f"{_told(port)} and {_told(other.inputs[k])}")
    return order


def can_teach(template: Program, other: Program) -> bool:
    """Whether the template can be given what the other model takes, so that the other can teach it."""
    try:
        _inputs(template, other)
    except LineUpError:
        return False
    return True


def _same_kind(a: Port, b: Port) -> bool:
    """Whether the template can be given what the other model takes."""
    sizes = zip(a.shape, b.shape, strict=False)
    return a.dtype == b.dtype and len(a.shape) == len(b.shape) and all(x == y or isinstance(x, str) for x, y in sizes)


def _refused(template: Program, other: Program, what: str) -> LineUpError:
    return LineUpError(
        f"{other.task} does not line up with {template.task}, nor can it teach it: they take other inputs ({what})",
        "capture both with inputs of the same number, shape and type, or choose another template with --like",
    )


def _told(port: Port) -> str:
    return f"{port.name} {str(port.dtype).removeprefix('torch.')}[{', '.join(map(str, port.shape))}]"


def _names(template: Program, other: Program, order: Sequence[int]) -> dict[str, str]:
    """The template's name for every dynamic size of the other model's inputs."""
    pairs = ((port.shape, other.inputs[k].shape) for port, k in zip(template.inputs, order, strict=True))
    return {
        b: a
        for mine, theirs in pairs
        for a, b in zip(mine, theirs, strict=True)
        if isinstance(a, str) and isinstance(b, str)
    }


# -- which value a head reads ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """A value of the template's trunk, and how an output of this shape is made of it."""

    node: fx.Node
    axis: int
    """Of its features."""
    shape: Shape
    """Of the output, behind the rows."""
    places: Shape
    pooled: bool
    start: int


def _best(template: Program, sites: Sites, shape: Shape) -> _Fit | None:
    """The value that the template's own heads read, if one fits; else the last one of a stream that does."""
    fits = [fit for node in _crossing(sites) if (fit := _fit(template, sites, node, shape)) is not None]
    if not fits:
        streams = (n for n in reversed(template.graph.nodes) if _in_stream(sites, n))
        fits = [fit for node in streams if (fit := _fit(template, sites, node, shape)) is not None][:1]
    return min(fits, key=lambda fit: fit.pooled, default=None)


def _crossing(sites: Sites) -> Iterator[fx.Node]:
    """The trunk's values that heads read, or that are outputs."""
    last = next(iter(reversed(sites.program.graph.nodes)))
    for node in sites.program.graph.nodes:
        if node not in sites.tail and any(user in sites.tail or user is last for user in node.users):
            yield node


def _in_stream(sites: Sites, node: fx.Node) -> bool:
    if node.op != "call_function" or node in sites.tail or sites.values[node] != "data":
        return False
    axes = sites.spaces.axes.get(node, ())
    roles = {getattr(sites.spaces.spaces.get(getattr(axis, "space", "")), "role", "") for axis in axes}
    return bool(roles.intersection(STREAMS))


def _fit(template: Program, sites: Sites, node: fx.Node, shape: Shape) -> _Fit | None:
    axes = sites.merged_axes(node) if isinstance(node.meta.get("val"), torch.Tensor) else ()
    if len(axes) != 1 or axes[0] == 0 or not shape:
        return None
    own, (axis,), wanted = shape_of(template, node), axes, shape[1:]
    if own[0] != shape[0]:
        return None
    places = tuple(size for number, size in enumerate(own) if number not in (0, axis))
    for start in range(len(wanted) - len(places) + 1):
        rest = (*wanted[:start], *wanted[start + len(places) :])
        plain = len(rest) <= 1 or all(isinstance(size, int) for size in places)
        if wanted[start : start + len(places)] == places and plain and all(isinstance(size, int) for size in rest):
            return _Fit(node, axis, wanted, places, False, 1 + start)
    if places and all(isinstance(size, int) for size in wanted):
        return _Fit(node, axis, wanted, places, True, 1)
    return None


# -- the head ----------------------------------------------------------------------------------------------


@dataclass
class _Head:
    """The calls of one fresh head: a linear map at every place, their mean if it is pooled, then the output's shape."""

    graph: fx.Graph
    output: int
    fit: _Fit
    name: str

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias(self) -> str:
        return f"{self.name}.bias"

    @property
    def rest(self) -> tuple[int, ...]:
        """The output's sizes that are neither rows nor places."""
        fit = self.fit
        count = 0 if fit.pooled else len(fit.places)
        found = (*fit.shape[: fit.start - 1], *fit.shape[fit.start - 1 + count :])
        return tuple(size for size in found if isinstance(size, int))

    @property
    def numbers(self) -> int:
        return prod(self.rest)

    @property
    def _convolves(self) -> bool:
        rank = self.fit.node.meta["val"].ndim
        return self.fit.axis == 1 != rank - 1 and rank in CONVOLUTIONS

    @property
    def weight_shape(self) -> tuple[int, ...]:
        value = self.fit.node.meta["val"]
        ones = (1,) * (value.ndim - 2) if self._convolves else ()
        return (self.numbers, value.shape[self.fit.axis], *ones)

    @property
    def fresh(self) -> FreshHead:
        fit = self.fit
        return FreshHead(
            self.output, fit.node.name, fit.axis, self.weight, self.bias, fit.pooled, fit.start, len(fit.places)
        )

    def build(self, value: fx.Node) -> fx.Node:
        fit, call, aten = self.fit, self.graph.call_function, torch.ops.aten
        weight, bias = self.graph.get_attr(self.weight), self.graph.get_attr(self.bias)
        rank = fit.node.meta["val"].ndim
        if self._convolves:
            found = call(CONVOLUTIONS[rank], (value, weight, bias))
            found = call(aten.permute.default, (found, [0, *range(2, rank), 1]))
        else:
            if fit.axis != rank - 1:
                order = [number for number in range(rank) if number != fit.axis]
                value = call(aten.permute.default, (value, [*order, fit.axis]))
            found = call(aten.linear.default, (value, weight, bias))
        count = len(fit.places)
        if fit.pooled:
            found, count = call(aten.mean.dim, (found, list(range(1, rank - 1)))), 0
        if len(self.rest) == 0:
            found = call(aten.squeeze.dim, (found, 1 + count))
        elif len(self.rest) > 1:
            found = call(aten.view.default, (found, [-1, *(fit.places if count else ()), *self.rest]))
        before = fit.start - 1
        order = [0, *range(1 + count, 1 + count + before), *range(1, 1 + count)]
        order += range(len(order), 1 + count + len(self.rest))
        return found if order == sorted(order) else call(aten.permute.default, (found, order))


def _first(path: str) -> str:
    return path.partition(".")[0]
