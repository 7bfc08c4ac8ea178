"""The line between aligned parents, as a student: its weights are a random mean of theirs, at every step another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fxmerge.ir.program import Program
from fxmerge.methods.alignment.learned import Elements
from fxmerge.methods.alignment.maps import carried_blocks, matrices_of, own_tensors


class Line(nn.Module):
    """Runs a SuperNet's program, its maps and own tensors those of learned elements and of a place between parents.

    While it trains the place is drawn anew at every call, from (seed, number of the call); otherwise it is `place`.
    """

    def __init__(self, elements: Elements, program: Program, seed: int) -> None:
        super().__init__()
        self.elements, self.module, self.seed = elements, program.module, seed
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        supernet = elements.layout.supernet
        named = {id(p): name for name, p in self.module.named_parameters()}
        held = [(n, block, [named.get(id(p)) for p in block.map.dense]) for n, block in carried_blocks(supernet)]
        self.held = [each for each in held if any(each[2])]
        self.names = {n: name for n, name in program.attributes.items() if n in supernet.own and name in self._now()}
        self.place: Sequence[float] | None = None
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.func.functional_call(self.module, self.tensors(), inputs)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """By name in the module: maps and own tensors at the place."""
        place, alignment, found = self._place(), self.elements(), {}
        for axis, block, names in self.held:
            for name, matrix in zip(names, matrices_of(alignment, axis, block, place) or (), strict=False):
                if name is not None:
                    found[name] = matrix
        own = own_tensors(alignment, place)
        now = self._now()
        buffers = {name for name, _ in self.module.named_buffers()}  # calls of running statistics take no gradient
        found |= {name: own[n].detach() if name in buffers else own[n] for n, name in self.names.items()}
        return {name: value.to(now[name].device, now[name].dtype) for name, value in found.items()}

    def _now(self) -> dict[str, Tensor]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def _place(self) -> Sequence[float]:
        if self.place is not None:
            return self.place
        calls = self.calls
        assert isinstance(calls, Tensor)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + int(calls)) % (1 << 63))
        calls += 1
        drawn = -torch.rand(self.elements.layout.count, generator=generator, dtype=torch.float64).clamp(min=1e-12).log()
        place: list[float] = (drawn / drawn.sum()).tolist()
        return place
