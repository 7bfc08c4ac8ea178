"""Join K parents into one SuperNet: merge nodes behind their writers, unmerge nodes before their readers.

    y_k = writer_k(x_k)            x_k = unmerge(x, U, k)     y = merge([writer_1(x_1) … writer_K(x_K)], M)

The SuperNet runs the graph of one parent, the template; only the calls in which parameters meet data exist once per
parent. Parameters that no linear call takes (norm scales, say) become trainable tensors of the SuperNet itself.
Heads stay per task. So do stems, where parents take different inputs: the trunk then stands once per task, with the
same weights. `passes.supernet.state` draws which node becomes what.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxmerge.coupling import RuleSet
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from passes.line_up.pairs import line_up
from passes.operators import Operators
from passes.supernet.join import join, takes_one_input
from passes.supernet.maps import Maps
from passes.supernet.resize import widen
from passes.supernet.settle_constants import settle_constants
from passes.supernet.sites import SitesOf
from passes.supernet.state import State


def insert_merge(
    parents: Sequence[Program], rules: RuleSet, template: int = 0, width_scale: float | None = None
) -> SuperNet:
    """The SuperNet of `parents` (programs that line up) with the sizes of parent `template`, times `width_scale`.

    Every map starts as the average: M_k = I/K, U_k = I (rectangular where widths differ).
    Raises `LineUpError` where the parents part, or where nothing can be merged.
    """
    state = _state(tuple(parents), rules, template, width_scale)
    settled = settle_constants(state, rules, apart=not takes_one_input(state))
    if any(new is not old for new, old in zip(settled.parents, state.parents, strict=True)):
        state = _state(settled.parents, rules, template, width_scale)
    state.apart, state.notes = settled.apart, settled.notes
    return join(state)


def _state(parents: Sequence[Program], rules: RuleSet, template: int, width_scale: float | None) -> State:
    """Parents that line up, with their sites and the maps that these need."""
    first = parents[template] if width_scale is None else widen(parents[template], rules, width_scale)
    pairs = [line_up(first, parent, Operators(rules)) for parent in parents]
    sites = first.get(SitesOf(rules))
    if not sites.mergeable:
        raise LineUpError(
            f"{first.task} has no inner space that its parameters write: there is nothing to merge",
            "merge models with at least one hidden layer",
        )
    others = tuple(parent.get(SitesOf(rules)) for parent in parents)
    return State(first, tuple(parents), template, pairs, sites, others, Maps(first, sites, others, pairs))
