"""What happens to a written value before it meets another one: a scale and a shift per unit, as norms in eval mode do.

    y = merge(…)   -->   batch_norm(y)   -->   + x        what y should be: (the sum's goal − x − shift) / scale

Found by running the calls on random values, so no operator needs to be known by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class Chain:
    """Calls from a node to `last`, each the only reader of the one before; together `scale` times its value + shift."""

    nodes: tuple[fx.Node, ...]
    scale: Tensor
    """Per unit."""
    shift: Tensor
    bias: fx.Node | None = None
    """The tensor that is added as it is, if nothing else reads it."""

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    @classmethod
    def of(cls, node: fx.Node, axis: int, tensors: Mapping[str, Tensor]) -> Chain:
        """The longest chain behind a node whose every call has tensors of these beside it and nothing else."""
        nodes: list[fx.Node] = [node]
        size = node.meta["val"].shape[axis]
        found = cls((node,), torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64))
        while len(users := list(nodes[-1].users)) == 1 and users[0].op == "call_function":
            nodes.append(users[0])
            if isinstance(users[0].meta.get("val"), Tensor):
                longer = cls._measured(tuple(nodes), axis, tensors)
                if longer is None:
                    break
                found = longer
        return found

    @classmethod
    def _measured(cls, nodes: tuple[fx.Node, ...], axis: int, tensors: Mapping[str, Tensor]) -> Chain | None:
        given = {n for call in nodes[1:] for n in call.all_input_nodes if n not in nodes}
        shape = nodes[0].meta["val"].shape
        if any(n.op != "get_attr" or str(n.target) not in tensors for n in given):
            return None
        if nodes[-1].meta["val"].shape != shape:
            return None
        own = {n: tensors[str(n.target)].detach().double() for n in given}
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        try:
            whole, zeros, ones = (_run(nodes, v, own) for v in (x, torch.zeros_like(x), torch.ones_like(x)))
        except (RuntimeError, TypeError):
            return None
        if not whole.is_floating_point():  # a comparison: no scale of what is compared
            return None
        shift, slope = (value.movedim(axis, -1).reshape(-1, shape[axis])[0] for value in (zeros, ones - zeros))
        if not torch.allclose((x.movedim(axis, -1) * slope + shift).movedim(-1, axis), whole):
            return None
        adds = [n for n in own if len(n.users) == 1 and own[n].shape == shift.shape]
        adds = [n for n in adds if torch.allclose(_run(nodes, x, own | {n: own[n] + 1}), whole + 1)]
        return cls(nodes, slope, shift, adds[0] if adds else None)


def _run(nodes: tuple[fx.Node, ...], x: Tensor, own: Mapping[fx.Node, Tensor]) -> Tensor:
    values: dict[fx.Node, Any] = {**own, nodes[0]: x}
    for call in nodes[1:]:
        args, kwargs = fx.node.map_arg((call.args, call.kwargs), lambda n: values[n])
        target: Any = call.target
        values[call] = target(*args, **kwargs)
    result: Tensor = values[nodes[-1]]
    return result
