"""Whether gradients reached every map of a SuperNet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from fxmerge.ir.maps import Map


class GradientWatch:
    """Remembers which matrices of a SuperNet's maps ever received a gradient that is not zero."""

    def __init__(self, maps: Iterable[tuple[str, Map]]) -> None:
        self.reached: dict[str, bool] = {}
        self.parameters: dict[str, list[nn.Parameter]] = {}
        self._handles: list[Any] = []
        for name, block in maps:
            for k in range(len(block.sizes)):
                parts = [p for p in _parts(block, k) if p.requires_grad]
                if parts:
                    self.reached[f"{name} of parent {k}"] = False
                    self.parameters[f"{name} of parent {k}"] = parts
                for part in parts:
                    owner: Any = part
                    hook = self._hook(f"{name} of parent {k}")
                    self._handles.append(owner.register_post_accumulate_grad_hook(hook))

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def seen(parameter: Tensor) -> None:
            if not self.reached[name] and parameter.grad is not None:
                self.reached[name] = bool((parameter.grad != 0).any())

        return seen

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def missing(self) -> list[str]:
        return [name for name, reached in self.reached.items() if not reached]


def _parts(block: Map, k: int) -> list[nn.Parameter]:
    lists = (block.dense, block.diagonals, block.lefts, block.rights)
    behind = [p for parents, each in block.joined if k in parents for p in each.parameters()]
    return [*(parts[k] for parts in lists if k < len(parts)), *behind]
