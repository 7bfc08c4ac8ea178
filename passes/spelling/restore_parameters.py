"""The parameters that a model computes its weights from, told from those weights once they are merged.

    w = g * v / norm(v)                       -->   v = w, g = norm(w)          weight norm
    w = w0 + b @ a * s                        -->   w0 = w, b = 0               low-rank adapters
    w = p.permute(0, 2, 1).reshape(12, 10)    -->   p = w moved back            heads and their units in one axis

So the class that computes its weights can hold a merged model. Nothing is known by name: what may be it is tried, and
it is taken only if the model computes the merged weight from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling import RuleSet
from fxmerge.ir.program import Program
from passes.spelling.compute_weights import Weights, computed

CLOSE = 1e-6
"""Of a weight's largest entry, in float64."""
MOST = 3
"""Parameters beside the one that looks like the weight."""
Tensors = Mapping[str, Tensor]


def restore_parameters(program: Program, merged: Tensors, rules: RuleSet) -> dict[str, Tensor]:
    """Values for parameters of `program` that `merged` lacks, from which it computes weights that `merged` holds.

    Empty where there are none, or where one of them serves two weights and cannot give both.
    """
    found = computed(program, rules, joined=True)
    if found is None:
        return {}
    _, weights, nodes = found
    told: dict[str, Tensor] = {}
    held = {
        name: node for name, node in nodes.items() if name in merged and merged[name].shape == node.meta["val"].shape
    }
    asked = {name: node for name, node in held.items() if not weights.parameters[node] <= merged.keys()}
    for name, node in asked.items():
        told |= _told(weights, node, merged[name].detach().cpu().double())
    told = {name: value.to(program.tensors[name].dtype) for name, value in told.items()}
    kept = {name: merged[name] for name in told.keys() & merged.keys() if merged[name].shape == told[name].shape}
    if not all(_gives(weights, node, told | kept, merged[name]) for name, node in asked.items()):
        return {}
    return {name: value for name, value in told.items() if name not in kept}


def _told(weights: Weights, node: fx.Node, weight: Tensor) -> dict[str, Tensor]:
    """Parameters that give a weight; none if no trial does."""
    own = {name: weights.program.tensors[name].detach().cpu().double() for name in sorted(weights.parameters[node])}
    return next((trial for trial in _trials(weights, node, own, weight) if _gives(weights, node, trial, weight)), {})


def _trials(weights: Weights, node: fx.Node, own: Tensors, weight: Tensor) -> Iterator[dict[str, Tensor]]:
    sizes = [value.numel() for value in own.values()]
    if sum(sizes) == weight.numel():
        places = torch.split(torch.arange(weight.numel(), dtype=torch.float64), sizes)
        numbered = {name: part.reshape(own[name].shape) for name, part in zip(own, places, strict=True)}
        order = torch.argsort(_value(weights, node, numbered).reshape(-1))
        parts = torch.split(weight.reshape(-1)[order], sizes)
        yield {name: part.reshape(own[name].shape) for name, part in zip(own, parts, strict=True)}
    for name in (name for name, value in own.items() if value.shape == weight.shape):
        rest = [other for other in own if other != name]
        choices = [list(_of(own[other], weight)) for other in rest] if len(rest) <= MOST else []
        for values in product(*choices) if len(choices) == len(rest) else ():
            yield {name: weight, **dict(zip(rest, values, strict=True))}


def _of(parameter: Tensor, weight: Tensor) -> Sequence[Tensor]:
    """What a parameter beside the weight may be: as it is, the weight's norm along the axes it lacks, one, nothing."""
    found = [parameter]
    if parameter.ndim == weight.ndim:
        lacking = [i for i, (a, b) in enumerate(zip(parameter.shape, weight.shape, strict=True)) if a == 1 != b]
        if lacking and all(a in (1, b) for a, b in zip(parameter.shape, weight.shape, strict=True)):
            found.append(weight.norm(dim=lacking, keepdim=True))
    return [*found, torch.ones_like(parameter), torch.zeros_like(parameter)]


def _gives(weights: Weights, node: fx.Node, values: Tensors, weight: Tensor) -> bool:
    found, wanted = _value(weights, node, values), weight.detach().cpu().double()
    return bool((found - wanted).abs().max() <= CLOSE * wanted.abs().max())


@torch.no_grad()
def _value(weights: Weights, node: fx.Node, values: Tensors) -> Tensor:
    """What a node computes, in float64, with these values for parameters."""
    known: dict[fx.Node, Any] = {}

    def value(each: fx.Node) -> Any:
        if each not in known:
            if each.op == "get_attr":
                held = values.get(str(each.target), weights.program.tensors[str(each.target)]).detach().cpu()
                known[each] = held.double() if held.is_floating_point() else held
            else:
                args, kwargs = fx.node.map_arg((each.args, each.kwargs), value)
                target: Any = each.target
                known[each] = target(*args, **kwargs)
        return known[each]

    found: Tensor = value(node)
    return found.double()
