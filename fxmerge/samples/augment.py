"""More unlabeled inputs from few: the samples of all tasks, moved, mixed, cut and joined as fits their kind.

No label is read and none is needed: the parents themselves say what they compute on every new input.

    image        (B, C, H, W), (B, H, W, C) or (B, H, W) floats: affine warp with shift, mixing of two inputs;
                 with fewer than 32 inputs a task wider shifts, and cut-and-mix on a 2 x 2 grid
    flat-image   (B, H * H) floats in which neighbours in the square are alike: the same, on the square
    tokens       (B, T) integers with or without a mask: see `fxmerge.token_rows`
    vector       any other floats: mixing of two inputs, noise of a tenth of each entry's own spread
    rows         anything else: rows are drawn, and stay as they are

A model with inputs of several kinds has them joined by "+"; the inputs of one row then come from the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fxmerge.errors import DataError, OptionError
from fxmerge.ir.program import Port
from fxmerge.samples import token_rows

Samples = Mapping[str, Tensor]

KINDS = ("image", "flat-image", "tokens", "vector", "rows")
FEW = 32
"""With fewer samples than this in some task, images are also cut and joined block by block."""
SMALLEST = 8
"""An image has at least this many rows and columns."""
SMOOTH = 0.75
"""Neighbours in an image differ by less than this share of what two pixels anywhere in it differ."""


def candidates(inputs: Iterable[Port], samples: Samples, fixed: Collection[str] = ()) -> tuple[str, ...]:
    """What the samples may be, the likeliest first and "none" last: which is best, only a trial can tell.

    Ranks and types say what is possible at all, never a name and never a length. Inputs that are `fixed` are rows.
    """
    lengths = {port.name: len(port.dynamic) > 1 for port in inputs}
    known = _kinds({name: samples[name] for name in lengths if name not in fixed}, lengths)
    found = [known.get(name, ("rows",)) for name in lengths]
    choices = ["+".join(sorted({kinds[0] for kinds in found})), "+".join(sorted({kinds[-1] for kinds in found}))]
    return tuple(dict.fromkeys([*(choice for choice in choices if choice != "rows"), "none"]))


def recipe(kind: str, fewest: int) -> tuple[str, ...]:
    """What `augment` does for this kind when the smallest task has `fewest` samples, for the report."""
    image = ("shift", "affine", "mix") + (("cut-and-mix",) if fewest < FEW else ())
    steps = {"image": image, "flat-image": image, "tokens": token_rows.STEPS, "vector": ("mix", "noise")}
    return tuple(dict.fromkeys(step for part in kind.split("+") for step in steps.get(part, ())))


class Maker:
    """Makes new rows of one kind from the samples of several tasks, which have one shape.

    Inputs that are `fixed` (see `fxmerge.samples.places`) are drawn as they are, whatever the kind.
    """

    def __init__(self, tasks: Sequence[Samples], kind: str, fixed: Collection[str] = ()) -> None:
        self.tasks = tasks
        self.rows = [len(next(iter(task.values()))) for task in tasks]
        if min(self.rows) == 0:
            raise DataError("a task has no samples", "give at least one input for every task")
        few = {name: self._take(name, torch.arange(sum(self.rows))[:: -(-sum(self.rows) // 2048)]) for name in tasks[0]}
        kinds = {} if kind == "none" else _chosen({name: few[name] for name in few if name not in fixed}, kind)
        self.kinds = {name: kinds.get(name, "rows") for name in few}
        self.spread = {name: few[name].float().std(0, correction=0) for name in few if self.kinds[name] == "vector"}
        tokens = [name for name in few if self.kinds[name] == "tokens"]
        whole = {name: torch.cat([task[name] for task in tasks]) for name in tokens}
        self.tokens = [token_rows.TokenRows(group) for group in token_rows.groups(whole)]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Row numbers into the samples, every task equally often."""
        return _draw(self.rows, count, generator)

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Samples as they are, by their numbers."""
        return {name: self._take(name, rows) for name in self.kinds}

    def make(self, first: Tensor, second: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """One new row for every pair of samples."""
        made: dict[str, Tensor] = {}
        for name, kind in self.kinds.items():
            if kind in ("image", "flat-image"):
                cut = min(self.rows) < FEW
                made[name] = _images(self._take(name, first), self._take(name, second), generator, cut=cut)
            elif kind == "vector":
                pair = self._take(name, first), self._take(name, second)
                made[name] = _vectors(*pair, self.spread[name], generator)
            elif kind == "rows":
                made[name] = self._take(name, first)
        for group in self.tokens:
            made.update(group.make(first, second, generator))
        return {name: made[name] for name in self.kinds}

    def _take(self, name: str, rows: Tensor) -> Tensor:
        if len(self.tasks) == 1:
            return self.tasks[0][name][rows]
        example = self.tasks[0][name]
        taken, begin = example.new_empty((len(rows), *example.shape[1:])), 0
        for task, count in zip(self.tasks, self.rows, strict=True):
            own = (rows >= begin) & (rows < begin + count)
            taken[own] = task[name][rows[own] - begin]
            begin += count
        return taken


def augment(
    samples: Samples | Sequence[Samples], kind: str, count: int, seed: int, *, originals: bool = True
) -> dict[str, Tensor]:
    """`count` rows: every sample as it is (when less than half of `count`), then new ones of the given kind.

    `samples` of several tasks (a sequence) are drawn from equally often, whatever their number, and mixed with
    each other. Kind "none" returns the samples alone. The same seed gives the same rows bit for bit.
    """
    maker = Maker([samples] if isinstance(samples, Mapping) else list(samples), kind)
    total = sum(maker.rows)
    if kind == "none":
        return maker.take(torch.arange(total))
    generator = torch.Generator().manual_seed(seed)
    kept = torch.arange(total if originals and 2 * total <= count else 0)
    first, second = (maker.draw(count - len(kept), generator) for _ in range(2))
    made = maker.make(first, second, generator)
    return {name: torch.cat([value, made[name]]) for name, value in maker.take(kept).items()}


def _draw(rows: list[int], count: int, generator: torch.Generator) -> Tensor:
    """Row numbers into the joined samples, every task equally often."""
    task = torch.randint(len(rows), (count,), generator=generator)
    sizes = torch.tensor(rows)
    within = (torch.rand(count, generator=generator, dtype=torch.float64) * sizes[task]).long()
    return sizes.cumsum(0)[task] - sizes[task] + within


# -- kinds ---------------------------------------------------------------------------------------------


def _kinds(samples: Samples, lengths: Mapping[str, bool]) -> dict[str, tuple[str, ...]]:
    """What every input may be, the likeliest first."""
    tokens = {name for group in token_rows.groups(samples) for name in group}
    return {
        name: ("tokens",) if name in tokens else _float_kinds(value, lengths.get(name, False))
        for name, value in samples.items()
    }


def _float_kinds(value: Tensor, dynamic: bool) -> tuple[str, ...]:
    if not value.is_floating_point() or value.dim() < 2:
        return ("rows",)
    if value.dim() == 4 and min(_channels_first(value).shape[2:]) >= SMALLEST:
        return ("image", "vector")
    if not dynamic and value.dim() == 3 and min(value.shape[1:]) >= SMALLEST and _smooth(value):
        return ("image", "vector")
    side = math.isqrt(value.shape[1])
    if value.dim() == 2 and side >= SMALLEST and side**2 == value.shape[1] and _smooth(_square(value)):
        return ("flat-image", "vector")
    return ("vector",)


def _smooth(x: Tensor) -> bool:
    """Whether neighbours are alike, in both directions: (B, H, W) against pairs of pixels at random places.

    A signal that was cut into rows is smooth along them and not across.
    """
    x = x[:256].double()
    near = torch.maximum((x[:, 1:] - x[:, :-1]).abs().mean(), (x[:, :, 1:] - x[:, :, :-1]).abs().mean())
    flat = x.flatten(1)
    order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))
    anywhere = (flat - flat[:, order]).abs().mean()
    return bool(near < SMOOTH * anywhere)


def _chosen(samples: Samples, kind: str) -> dict[str, str]:
    """The kind of every input: the chosen ones where they fit, elsewhere what the values say."""
    allowed = kind.split("+")
    unknown = [part for part in allowed if part not in KINDS]
    if unknown:
        raise OptionError(f"unknown kind of input {unknown[0]!r}", f"known kinds: none, {', '.join(KINDS)}")
    if not samples and kind != "rows":
        raise OptionError(
            f"no input is of kind {kind!r}: all are integers that belong to their columns",
            "leave the kind to auto, or use none",
        )
    found = {name: kinds[0] for name, kinds in _kinds(samples, {}).items()}
    chosen: dict[str, str] = {}
    for name, own in found.items():
        fitting = [part for part in allowed if part != own and _fits(samples[name], part)]
        chosen[name] = own if own in allowed or not fitting else _square_or(fitting[0], samples[name])
    if samples and not any(
        value in allowed or (value == "flat-image" and "image" in allowed) for value in chosen.values()
    ):
        name, own = next(iter(found.items()))
        raise OptionError(
            f"no input is of kind {kind!r}: {name!r} of shape {list(samples[name].shape)} looks like {own!r}",
            "leave the kind to auto, or use none",
        )
    return chosen


def _square_or(kind: str, value: Tensor) -> str:
    return "flat-image" if kind == "image" and value.dim() == 2 else kind


def _fits(value: Tensor, kind: str) -> bool:
    """Whether an input can be treated as this kind, whatever it looks like."""
    if kind in ("image", "flat-image") and value.is_floating_point():
        flat = value.dim() == 2 and math.isqrt(value.shape[1]) ** 2 == value.shape[1]
        return flat or (kind == "image" and value.dim() in (3, 4))
    return kind == "rows" or (kind == "vector" and value.is_floating_point() and value.dim() > 1)


# -- images and vectors ----------------------------------------------------------------------------------


def _square(value: Tensor) -> Tensor:
    side = math.isqrt(value.shape[1])
    return value.view(-1, side, side)


def _channels_first(value: Tensor) -> Tensor:
    last = value.shape[3] in (1, 3, 4) and value.shape[1] > 4
    return value.movedim(3, 1) if last else value


def _planes(value: Tensor) -> Tensor:
    """Images of any layout as (B, C, H, W) floats."""
    square = _square(value) if value.dim() == 2 else value
    return (_channels_first(square) if square.dim() == 4 else square[:, None]).float()


def _images(value: Tensor, other: Tensor, generator: torch.Generator, cut: bool) -> Tensor:
    """Warp both rows of a pair, then keep the first, blend the two, or join blocks of both."""
    square = _square(value) if value.dim() == 2 else value
    x, y = (_planes(rows) for rows in (value, other))
    shift = 0.12 if cut else 0.08
    a, b = (_warp(rows, generator, shift) for rows in (x, y))
    share = torch.ones(len(x), 1, 1, 1)
    mixed = torch.rand(len(x), generator=generator) < 0.5
    share[mixed] = torch.rand(int(mixed.sum()), 1, 1, 1, generator=generator)
    out = b.lerp(a, share)
    if cut:
        joined = torch.rand(len(x), generator=generator) < 0.5
        cells = (torch.rand(int(joined.sum()), 1, 2, 2, generator=generator) < 0.5).float()
        mask = F.interpolate(cells, size=x.shape[2:], mode="nearest").bool()
        out[joined] = torch.where(mask, out[joined], b[joined])
    if square.dim() == 4 and x.shape[1:] != square.shape[1:]:
        out = out.movedim(1, 3)
    return out.reshape(-1, *value.shape[1:]).to(value.dtype)


def _warp(x: Tensor, generator: torch.Generator, shift: float) -> Tensor:
    """Turn by up to 15 degrees, scale and shear by 15 %, shift by a share of the size; edges are repeated."""

    def spread(width: float) -> Tensor:
        return (torch.rand(len(x), generator=generator) * 2 - 1) * width

    angle, shear, scale = spread(math.pi / 12), spread(0.15), spread(0.15).exp()
    ratio = x.shape[2] / x.shape[3]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, (shear * cos - sin) * ratio, spread(2 * shift)], 1)
    columns = torch.stack([sin / ratio, shear * sin + cos, spread(2 * shift)], 1)
    grid = F.affine_grid(torch.stack([rows, columns], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _vectors(value: Tensor, other: Tensor, spread: Tensor, generator: torch.Generator) -> Tensor:
    """Blend half of the pairs, then add noise of a tenth of every entry's spread over the samples."""
    share = torch.ones(len(value))
    mixed = torch.rand(len(value), generator=generator) < 0.5
    share[mixed] = torch.rand(int(mixed.sum()), generator=generator)
    share = share.view(-1, *[1] * (value.dim() - 1))
    out = other.float().lerp(value.float(), share)
    noise = torch.randn(out.shape, generator=generator)
    return (out + 0.1 * spread * noise).to(value.dtype)
