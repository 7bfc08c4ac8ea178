"""Which axis of every input and output counts the rows of a batch, found by running the model.

Rows are independent: choosing some of them, in another order, gives the same choice of the outputs. That holds for the
batch, and for no axis along which a model mixes (time, heads, channels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

import torch
from torch import Tensor

from fxmerge.errors import OptionError

Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]
"""Outputs of the model on tensors by name; raises what the model raises."""

FEW = 4
"""Rows to look at: with fewer, a choice of rows says little."""

MANY = 8
"""Rows that are looked at, of a larger sample."""

MOST = 16
"""Ways to read the axes that are tried."""


ROUGH = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far an output may move, as a share of its largest entry, when rows are run in other company."""


@dataclass(frozen=True)
class Rows:
    """The axis of each input, and of each output, that counts the batch; None for those that have none."""

    inputs: Mapping[str, int | None]
    outputs: tuple[int | None, ...] | None
    """None if the model was not run: they have the batch first, if they have it."""
    count: int
    """Rows of the sample."""
    fixed: bool = False
    """The model ran with this number of rows alone."""
    mixed: bool = False
    """The rows of a batch depend on each other: they follow in another order, but not in other company."""
    found: bool = True
    """False if nothing was found, and the first axis is taken for want of a better one."""


def find_rows(run: Run, tensors: Mapping[str, Tensor], axis: int | None = None) -> Rows:
    """The batch axes of a model that `run` calls; with `axis`, that of the first input that has it is known.

    Raises `OptionError` if no input has that axis, and what the model raises on the tensors as they are.
    """
    if axis is not None and not any(0 <= axis < t.ndim for t in tensors.values()):
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors.items())
        raise OptionError(f"no input has an axis {axis} for the batch", f"count from 0; the inputs are {shapes}")
    ways = list(islice(_candidates(tensors, axis), MOST))
    for lenient in (False, True):
        for count, axes in ways:
            found = _follows(run, tensors, axes, count, lenient=lenient)
            if found is not None:
                return Rows(axes, found, count)
    outputs = run(tensors)
    for count, axes in ways:
        found = _permuted(run, tensors, outputs, axes, count)
        if found is not None:
            fixed = not _runs(run, tensors, axes, count)
            return Rows(axes, found, count, fixed=fixed, mixed=not fixed)
    return by_position(tensors, outputs, axis)


def by_position(tensors: Mapping[str, Tensor], outputs: Sequence[Tensor], axis: int | None) -> Rows:
    """The batch axes by place and size alone: the first axis, or the one that is said, of all that are as long."""
    place = axis or 0
    count = max((t.shape[place] for t in tensors.values() if t.ndim > place), default=1)
    inputs = {n: place if t.ndim > place and t.shape[place] == count else None for n, t in tensors.items()}
    after = tuple(next((a for a in (place, 0) if t.ndim > a and t.shape[a] == count), None) for t in outputs)
    return Rows(inputs, after, count, found=axis is not None)


def _candidates(tensors: Mapping[str, Tensor], axis: int | None) -> Iterator[tuple[int, dict[str, int | None]]]:
    """(rows, axis of every input), the likeliest first: the first axis everywhere, then others."""
    deepest = max((t.ndim for t in tensors.values()), default=0)
    for place in range(deepest) if axis is None else [axis]:
        sizes = dict.fromkeys(t.shape[place] for t in tensors.values() if t.ndim > place)
        for count in sorted(sizes, reverse=True) if place == 0 else sizes:
            options: list[list[int | None]] = []
            for t in tensors.values():
                same = [a for a in range(t.ndim) if t.shape[a] == count]
                same.sort(key=lambda a, place=place: (a != place, a))  # type: ignore[misc]
                options.append([*same[:2], None])
            ways = islice(product(*options), MOST)
            for way in sorted(ways, key=lambda w, place=place: sum(a != place for a in w)):  # type: ignore[misc]
                if place in way:
                    yield count, dict(zip(tensors, way, strict=True))


def _follows(
    run: Run, tensors: Mapping[str, Tensor], axes: Mapping[str, int | None], count: int, *, lenient: bool
) -> tuple[int | None, ...] | None:
    """The axis of each output that follows, when other rows are chosen in another order; None if they do not."""
    total = min(max(count, FEW), MANY)
    many = {n: t if (a := axes[n]) is None else _rows_of(t, a, count, total) for n, t in tensors.items()}
    index = torch.tensor([total - 1, 0, total // 2])
    chosen = _chosen(many, axes, index)
    try:
        before, after = run(many), run(chosen)
    except Exception:  # whatever the model's own code raises: these axes are not the batch
        return None
    return _matched(before, after, index, total, axes, lenient=lenient)


def _permuted(
    run: Run, tensors: Mapping[str, Tensor], outputs: Sequence[Tensor], axes: Mapping[str, int | None], count: int
) -> tuple[int | None, ...] | None:
    """The same for a model that takes no other number of rows: the rows in the opposite order."""
    index = torch.arange(count).flip(0)
    chosen = _chosen(tensors, axes, index)
    try:
        after = run(chosen)
    except Exception:  # see above
        return None
    return _matched(outputs, after, index, count, axes, lenient=False)


def _runs(run: Run, tensors: Mapping[str, Tensor], axes: Mapping[str, int | None], count: int) -> bool:
    """Whether the model runs at all on another number of rows."""
    for rows in (count + 1, count + 2):
        index = torch.arange(rows) % count
        try:
            run(_chosen(tensors, axes, index))
        except Exception:  # whatever the model's own code raises
            return False
    return True


def _chosen(tensors: Mapping[str, Tensor], axes: Mapping[str, int | None], index: Tensor) -> dict[str, Tensor]:
    """These rows of every input that has rows."""
    return {n: t if (a := axes[n]) is None else t.index_select(a, index.to(t.device)) for n, t in tensors.items()}


def _matched(
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    index: Tensor,
    count: int,
    axes: Mapping[str, int | None],
    *,
    lenient: bool,
) -> tuple[int | None, ...] | None:
    place = next(a for a in axes.values() if a is not None)
    found: list[int | None] = []
    for x, y in zip(before, after, strict=True):
        order = sorted(range(x.ndim), key=lambda a: (a != place, a))
        fitting = (a for a in order if x.shape[a] == count and close(x.index_select(a, index.to(x.device)), y))
        axis = next(fitting, None)
        if axis is None and not (x.ndim == 0 or close(x, y) or (lenient and x.shape == y.shape)):
            return None
        found.append(axis)
    return tuple(found) if any(axis is not None for axis in found) else None


def close(x: Tensor, y: Tensor, rough: float | None = None) -> bool:
    """Whether two outputs are the same but for rounding: within `rough`, as a share of the largest entry."""
    if x.shape != y.shape:
        return False
    if not x.is_floating_point():
        return bool((x == y).double().mean() > 0.99) if x.numel() else True
    finite = x[x.isfinite()].abs()
    share = ROUGH.get(x.dtype, 1e-2) if rough is None else rough
    largest = float(finite.max()) if finite.numel() else 1.0
    return torch.allclose(x.double(), y.double(), rtol=0, atol=share * largest + 1e-7, equal_nan=True)


def _rows_of(value: Tensor, axis: int, count: int, total: int) -> Tensor:
    """`total` rows that differ: the first of the sample, then turned copies of them, with noise where all are equal."""
    others = [a for a in range(value.ndim) if a != axis]
    longest = max(others, key=lambda a: value.shape[a], default=None)
    rows = value.narrow(axis, 0, min(count, total)).tensor_split(min(count, total), axis)
    made = []
    for i in range(total):
        row = rows[i % len(rows)]
        made.append(row if longest is None or i < len(rows) else row.roll(i // len(rows), longest))
    grown = torch.cat(made, axis)
    if not grown.is_floating_point() or not _all_equal(grown, axis):
        return grown
    noise = torch.randn(grown.shape, generator=torch.Generator().manual_seed(0)).to(grown)
    return grown + 0.1 * noise


def _all_equal(value: Tensor, axis: int) -> bool:
    return bool((value == value.narrow(axis, 0, 1)).all())
