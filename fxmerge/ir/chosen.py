"""Whether gradients reach a weight at all, or only not on the data at hand: every choice is made at random.

A router, a comparison and an argmax give whole numbers, and no gradient goes through them: what they choose depends on
the data alone. Where they draw lots instead, a weight that is connected gets its gradient, whatever the data is. The
weights stay as they are: a pair of maps that both are zero gets none.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program
from fxmerge.ir.wide import WIDER, doubles, outputs, widen

SAME = 1e-12
"""Outputs in float64 that differ by less than this share of the largest are the same."""
DRAWS = 64
"""So many times lots are drawn before a weight counts as one that no gradient can reach."""


def connected(program: Program, names: Collection[str]) -> set[str]:
    """Those of the named parameters of the program's module that a gradient reaches when choices are random.

    In float64, where no gradient is too small; in the program's own dtype where an operator has no other.
    """
    found: set[str] = set()
    for wide in (True, False):
        found |= _reached(program, set(names) - found, wide)
    return found


def moves(program: Program, names: Collection[str]) -> bool:
    """Whether anything that the program gives changes when the named parameters of its module all get other values.

    A bias that is added to both sides of a difference changes nothing, and gets no gradient for it.
    """
    module = copy.deepcopy(program.module).double()
    attributes = {str(n.target): attrgetter(str(n.target))(module) for n in program if n.op == "get_attr"}
    given = {name: widen(value) for name, value in probe(program, {}, seed=0).items()}
    before = {name: value.double() for name, value in outputs(program, attributes, given).items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in names:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    after = outputs(program, attributes, given)
    return any(float((after[n].double() - v).abs().max()) > SAME * float(v.abs().max()) for n, v in before.items())


def _reached(program: Program, names: set[str], wide: bool) -> set[str]:
    """A step is taken after each draw: a factor of a product that is zero hides the other one for one step."""
    module = copy.deepcopy(program.module)
    if wide:
        module.double()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    wanted, found = trained.keys() & names, set[str]()
    generator = torch.Generator().manual_seed(0)
    for seed in range(DRAWS):
        if wanted <= found:
            break
        given = [probe(program, {}, seed=seed)[port.name] for port in program.inputs]
        try:
            loss = _Random(module, generator, wide).loss([widen(v) if wide else v for v in given])
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        except (RuntimeError, IndexError, ValueError):  # a choice that the model cannot take
            continue
        for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
            if gradient is not None and bool(gradient.any()) and bool(gradient.isfinite().all()):
                found.add(name)
                with torch.no_grad():
                    parameter.sub_(gradient / gradient.abs().max(), alpha=1e-2)
    return found & wanted


class _Random(fx.Interpreter):
    """Runs a module; what real numbers choose (a flag, a place) is drawn by lot."""

    def __init__(self, module: fx.GraphModule, generator: torch.Generator, wide: bool) -> None:
        super().__init__(module)
        self.generator, self.wide = generator, wide

    def loss(self, inputs: list[Tensor]) -> Tensor:
        """A sum of all that the module gives, each number with a weight of its own."""
        given = [v.requires_grad_() if v.is_floating_point() else v for v in inputs]
        outputs = [value for value in self.run(*given) if value.is_floating_point()]
        total = sum((value * self._noise(value)).sum() for value in outputs)
        assert isinstance(total, Tensor)
        return total

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = self._call(target, (args, kwargs))
        leaves, structure = pytree.tree_flatten(value)
        real = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor) and a.requires_grad]
        if not real or not any(_whole(v) for v in leaves):
            return value
        others = pytree.tree_leaves(self._call(target, pytree.tree_map(self._drawn, (args, kwargs))))
        leaves = [self._flag(o) if _whole(o) else v for v, o in zip(leaves, others, strict=True)]
        return pytree.tree_unflatten(leaves, structure)

    def _call(self, target: Any, given: Any) -> Any:
        if not self.wide:
            return super().call_function(target, *given)
        args, kwargs = pytree.tree_map(lambda a: WIDER.get(a, a) if isinstance(a, torch.dtype) else a, given)
        with doubles():
            return super().call_function(target, args, kwargs)

    def _drawn(self, value: Any) -> Any:
        """Other numbers within the range of a real value."""
        if not isinstance(value, Tensor) or not value.requires_grad or not value.numel():
            return value
        low, high = value.detach().min(), value.detach().max()
        return low + (high - low) * torch.rand(value.shape, generator=self.generator).to(value.device, value.dtype)

    def _flag(self, value: Tensor) -> Tensor:
        if value.dtype != torch.bool:
            return value
        return (torch.rand(value.shape, generator=self.generator) < 0.5).to(value.device)

    def _noise(self, value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=self.generator).to(value.device, value.dtype)


def _whole(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()
