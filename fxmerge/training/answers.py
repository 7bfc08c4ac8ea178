"""What kind of answer an output is, so that it is compared as what it is."""

from __future__ import annotations

from torch import fx

from fxmerge.ir.space import leaves
from fxmerge.ir.supernet import SuperNet
from fxmerge.training.measures import Distributions, Kind, Places

CHANNELS = ("output", "vocabulary")
"""Roles of the axis along which an output's channels stand."""

USUAL_BATCH = 64
BATCH_OF_TEXTS = 32
"""Of rows that have an answer at every token."""


def usual_batch(supernet: SuperNet) -> int:
    """Rows of a training step, unless asked otherwise."""
    outputs = ((k, node) for k, parent in enumerate(supernet.parents) for node in parent.result)
    kinds = (kind_of(supernet, k, node) for k, node in outputs)
    texts = any(kind is not None and kind.measure is Distributions for kind in kinds)
    return BATCH_OF_TEXTS if texts else USUAL_BATCH


def kind_of(supernet: SuperNet, parent: int, node: fx.Node) -> Kind | None:
    """How an output with answers at many places is measured; None for one answer a row, best compared by its features.

    Scores of as many tokens as the inputs are made of are a distribution at every place; other channels along a text
    or over a map are measured where the parent sees something.
    """
    value, spaces = node.meta["val"], supernet.parents_spaces[parent]
    axes = spaces.axes.get(node, ())
    if value.ndim < 3 or not value.is_floating_point() or len(axes) != value.ndim:
        return None
    roles = [{spaces.spaces[leaf.space].role for leaf in leaves(axis) if leaf.space} for axis in axes]
    channels = [axis for axis in range(1, value.ndim) if roles[axis] & {*CHANNELS}]
    if len(channels) != 1:
        return None
    axis = channels[0]
    tokens = {space.size for space in spaces.spaces.values() if space.role == "vocabulary"}
    places = value.shape[1:-1]
    read = [p.meta["val"] for p in supernet.parents[parent].placeholders]
    texts = any(not t.is_floating_point() and t.shape[1:] == places for t in read)
    if axis == value.ndim - 1 and value.shape[axis] in tokens and texts:
        return Kind(Distributions)
    return Kind(Places, axis)
