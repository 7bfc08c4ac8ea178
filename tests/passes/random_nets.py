"""Random networks of moves and of calls that moves are carried behind; every choice follows from a seed."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS = 12, 3


class RandomNet(nn.Module):
    """`steps` random steps on tokens of WIDTH features; every value that is left over is an output."""

    def __init__(self, seed: int, steps: int = 14) -> None:
        super().__init__()
        self.seed, self.steps = seed, steps
        made = torch.Generator().manual_seed(seed)
        self.tables = nn.ParameterList(
            torch.randn(size, generator=made, dtype=torch.float64)
            for size in ((WIDTH, WIDTH), (3 * WIDTH, WIDTH), (WIDTH,), (1, 1, WIDTH), (4, WIDTH // 2))
        )
        self.register_buffer("table", torch.randn(1, 1, WIDTH, generator=made, dtype=torch.float64))

    def forward(self, x: Tensor, keep: Tensor) -> list[Tensor]:
        """`x`: (batch, tokens, WIDTH); `keep`: (batch, tokens) of zeros and ones."""
        draw = random.Random(self.seed)
        live = [x]
        for _ in range(self.steps):
            value = live.pop(draw.randrange(len(live))) if draw.random() < 0.8 else draw.choice(live)
            live.extend(self.step(draw, value, live, keep))
        return live

    def step(self, draw: random.Random, x: Tensor, live: list[Tensor], keep: Tensor) -> list[Tensor]:
        kinds = [self.move, self.split, self.pointwise, self.pair, self.features, self.mix, self.join, self.mask]
        return draw.choice(kinds)(draw, x, live, keep)

    def move(self, draw: random.Random, x: Tensor, live: list[Tensor], keep: Tensor) -> list[Tensor]:
        kind = draw.randrange(6)
        if kind == 0 and x.ndim > 1:
            order = list(range(x.ndim))
            draw.shuffle(order)
            return [x.permute(order)]
        if kind == 1:
            for axis in draw.sample(range(x.ndim), x.ndim):
                if isinstance(x.shape[axis], int) and x.shape[axis] % 3 == 0 and x.shape[axis] > 3 and x.ndim < 5:
                    return [x.unflatten(axis, draw.choice([(3, -1), (x.shape[axis] // 3, 3)]))]
        if kind == 2 and x.ndim > 2:
            return [x.flatten(at := draw.randrange(x.ndim - 1), at + 1)]
        if kind == 3:
            return [x.unsqueeze(draw.randrange(x.ndim + 1))] if x.ndim < 5 else [x.squeeze()]
        if kind == 4 and x.ndim > 1:
            return [x.transpose(0, 1)]
        if kind == 5 and x.ndim < 5:
            at = draw.randrange(x.ndim + 1)
            sizes = [-1] * x.ndim
            return [x.unsqueeze(at).expand(*sizes[:at], 2, *sizes[at:])]
        return [x]

    def split(self, draw: random.Random, x: Tensor, live: list[Tensor], keep: Tensor) -> list[Tensor]:
        axes = [a for a in range(x.ndim) if isinstance(x.shape[a], int) and x.shape[a] % 3 == 0]
        if not axes:
            return [x]
        axis, kind = draw.choice(axes), draw.randrange(5)
        size = x.shape[axis]
        if kind == 0:
            return list(x.chunk(3, axis))
        if kind == 1:
            return list(x.split([size // 3, size - size // 3], axis))
        if kind == 2 and size == 3 and x.ndim > 1:
            return list(x.unbind(axis))[:2]
        if kind == 3 and x.ndim > 1:
            return [x.select(axis, draw.choice([0, 1, -1]))]
        return [x.narrow(axis, 1, size - 1), x.narrow(axis, 0, 1)]

    def pointwise(self, draw: random.Random, x: Tensor, live: list[Tensor], keep: Tensor) -> list[Tensor]:
        return [
            draw.choice(
                [
                    F.gelu, torch.tanh, torch.sigmoid, lambda v: v * 0.5, lambda v: 1.5 - v, lambda v: v + v,
                    lambda v: v - v / 3, lambda v: v * v, lambda v: v / x.shape[0], lambda v: F.softmax(v, -1),
                    lambda v: F.softmax(v, 0), lambda v: v.clamp(-1, 1), lambda v: v.to(torch.float32).to(v.dtype),
                    lambda v: v * torch.sigmoid(v), lambda v: v.cumsum(-1),
                ]
            )(x)
        ]  # fmt: skip

    def pair(self, draw: random.Random, x: Tensor, live: list[Tensor], keep: Tensor) -> list[Tensor]:
        """A sum, difference or product with another value, brought to its shape by a move, or with a parameter."""
        function = draw.choice([torch.add, torch.sub, torch.mul])
        if x.shape[-1] == WIDTH and draw.random() < 0.5:
            other: Tensor = draw.choice([self.tables[2], self.tables[3], self.table])
            if other.ndim > x.ndim:
                other = other.flatten()
        else:
            same = [y for y in live if y.shape == x.shape] or [y.transpose(0, 1) for y in live
                    if y.ndim > 1 and y.transpose(0, 1).shape == x.shape]  # fmt: skip
            other = draw.choice(same) if same else x.mean(draw.randrange(x.ndim), keepdim=True)
        return [function(*((x, other) if draw.random() < 0.5 else (other, x)))]

    def features(self, draw: random.Random, x: Tensor, live: list[Tensor], keep: Tensor) -> list[Tensor]:
        width = x.shape[-1]
        if width == WIDTH:
            w = self.tables[draw.randrange(2)]
            return [
                draw.choice(
                    [
                        lambda: F.linear(x, w), lambda: F.linear(x, w, w[:, 0]), lambda: x @ w[:WIDTH],
                        lambda: F.layer_norm(x, (WIDTH,), self.tables[2]), lambda: F.rms_norm(x, (WIDTH,)),
                    ]
                )()
            ]  # fmt: skip
        if width == WIDTH // 2:
            return [F.linear(x, self.tables[4])]
        return [F.layer_norm(x, x.shape[-1:])] if isinstance(width, int) else [x]

    def mix(self, draw: random.Random, x: Tensor, live: list[Tensor], keep: Tensor) -> list[Tensor]:
        """A product of matrices or attention, with itself or with another value of the same shape."""
        if x.ndim < 2:
            return [x]
        same = [y for y in live if y.shape == x.shape and y.ndim == x.ndim]
        y = draw.choice([x, *same])
        kind = draw.randrange(3)
        if kind == 0:
            return [x @ y.transpose(-1, -2)]
        if kind == 1 and x.ndim >= 3:
            mask = None
            if draw.random() < 0.4:
                mask = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril()
            return [F.scaled_dot_product_attention(x, y, y.sin(), attn_mask=mask)]
        return [torch.softmax(x @ y.transpose(-1, -2) * 0.3, -1) @ y]

    def join(self, draw: random.Random, x: Tensor, live: list[Tensor], keep: Tensor) -> list[Tensor]:
        axis = draw.randrange(x.ndim)
        same = [y for y in live if y.shape == x.shape]
        others = [draw.choice([x.tanh(), *same])]
        if isinstance(x.shape[axis], int):
            others.append(x.narrow(axis, 0, 1))
        if x.ndim == 3 and x.shape[-1] == WIDTH and axis != 2:
            sizes = [x.shape[0], x.shape[1], WIDTH]
            sizes[axis] = 1
            others.append(self.tables[3].expand(sizes))
        return [torch.cat(draw.sample([x, *others], 1 + len(others)), axis)]

    def mask(self, draw: random.Random, x: Tensor, live: list[Tensor], keep: Tensor) -> list[Tensor]:
        """Some rows of tokens hidden, where the value still has rows and tokens at its start."""
        if x.ndim < 2 or x.shape[:2] != keep.shape:
            return [x]
        hidden = keep == 0
        for _ in range(x.ndim - 2):
            hidden = hidden.unsqueeze(-1)
        if draw.random() < 0.5:
            return [x.masked_fill(hidden, -0.5)]
        return [x * keep.reshape(hidden.shape).to(x.dtype), torch.where(hidden, torch.zeros_like(x), x)]


def inputs(rows: int, tokens: int) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(rows + tokens)
    x = torch.randn(rows, tokens, WIDTH, generator=made, dtype=torch.float64)
    return {"x": x, "keep": torch.randint(0, 2, (rows, tokens), generator=made)}
