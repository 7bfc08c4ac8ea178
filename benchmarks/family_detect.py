"""Objects on a canvas: how they are drawn, what a grid detector learns of them, and average precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.family_tasks import Labelled, Study
from benchmarks.tasks import Task

SIDE, STRIDE = 64, 8
CELLS = SIDE // STRIDE
USUAL = 16.0
"""Side of an object whose logarithm of size is 0."""
OBJECTS, CLUTTER = 3, 4
"""Objects and pieces of clutter on a canvas at most."""
SMALLEST, LARGEST = 14, 28
TRAIN, TEST = 4000, 500
OVERLAP = 0.5


class Canvases(NamedTuple):
    """Images (N, 1, 64, 64), and for each the boxes (objects, 4) as x, y, x, y in pixels with their classes."""

    images: Tensor
    boxes: list[Tensor]
    classes: list[Tensor]


def detect(task: Task) -> Study:
    """Find the task's items on canvases: outputs (B, 5 + classes, 8, 8), scored by average precision at IoU 0.5."""
    seen = canvases(task.train["x"], task.train_labels, TRAIN, seed=1)
    test = canvases(task.test["x"], task.test_labels, TEST, seed=2)
    grid = grids(seen)

    def draw(count: int, generator: torch.Generator) -> Labelled:
        rows = torch.randint(0, len(grid), (count,), generator=generator)
        return [seen.images[rows]], grid[rows]

    def unlabeled(count: int, seed: int) -> dict[str, Tensor]:
        rows = torch.randperm(len(grid), generator=torch.Generator().manual_seed(seed))[:count]
        return {"x": seen.images[rows]}

    def score(outputs: Callable[..., Tensor]) -> float:
        with torch.no_grad():
            given = torch.cat([outputs(part) for part in torch.split(test.images, 250)])
        return average_precision(given, test)

    return Study(task.name, 5 + task.classes, draw, grid_loss, score, unlabeled)


def canvases(items: Tensor, labels: Tensor, count: int, seed: int) -> Canvases:
    """So many canvases with items at random places and sizes, and with cut-up items and noise between them."""
    random = np.random.default_rng(seed)
    images = torch.zeros(count, 1, SIDE, SIDE)
    boxes, classes = [], []
    for image in images:
        for _ in range(random.integers(0, CLUTTER + 1)):
            _paste(image[0], _piece(items, random), random)
        found: list[tuple[float, ...]] = []
        kinds: list[int] = []
        for _ in range(random.integers(1, OBJECTS + 1)):
            number = int(random.integers(len(items)))
            side = int(random.integers(SMALLEST, LARGEST + 1))
            item = F.interpolate(items[number : number + 1], size=(side, side), mode="bilinear", antialias=True)[0, 0]
            box = _placed(image[0], item, found, random)
            if box is not None:
                found.append(box)
                kinds.append(int(labels[number]))
        boxes.append(torch.tensor(found).view(-1, 4))
        classes.append(torch.tensor(kinds, dtype=torch.long))
    images += torch.tensor(random.normal(0, 0.05, images.shape), dtype=torch.float32)
    return Canvases(images.clamp(0, 1), boxes, classes)


def _piece(items: Tensor, random: np.random.Generator) -> Tensor:
    """A small part of an item, which is no object."""
    x, y = random.integers(4, 18, 2)
    side = int(random.integers(4, 9))
    return items[int(random.integers(len(items))), 0, y : y + side, x : x + side] * float(random.uniform(0.4, 1))


def _paste(image: Tensor, item: Tensor, random: np.random.Generator) -> tuple[int, int]:
    high, wide = item.shape
    y, x = int(random.integers(0, SIDE - high + 1)), int(random.integers(0, SIDE - wide + 1))
    part = image[y : y + high, x : x + wide]
    part.copy_(torch.maximum(part, item))
    return y, x


def _placed(
    image: Tensor, item: Tensor, others: Sequence[tuple[float, ...]], random: np.random.Generator
) -> tuple[float, ...] | None:
    """Paste an item where it hardly covers another and has a cell of its own; its tight box, None without room."""
    if not bool((item > 0.15).any()):
        return None
    rows, columns = (torch.nonzero((item > 0.15).any(axis))[:, 0] for axis in (1, 0))
    item = item[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    high, wide = item.shape
    for _ in range(10):
        y, x = int(random.integers(0, SIDE - high + 1)), int(random.integers(0, SIDE - wide + 1))
        box = (float(x), float(y), float(x + wide), float(y + high))
        if not len(others) or float(overlaps(torch.tensor([box]), torch.tensor(others)).max()) < 0.1:
            part = image[y : y + high, x : x + wide]
            part.copy_(torch.maximum(part, item * float(random.uniform(0.6, 1))))
            return box
    return None


def grids(drawn: Canvases) -> Tensor:
    """What a detector learns (N, 6, 8, 8): object or not, centre in its cell, log of size, class."""
    grid = torch.zeros(len(drawn.images), 6, CELLS, CELLS)
    for row, (boxes, classes) in enumerate(zip(drawn.boxes, drawn.classes, strict=True)):
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE
        sizes = ((boxes[:, 2:] - boxes[:, :2]) / USUAL).log()
        for centre, size, kind in zip(centres, sizes, classes, strict=True):
            x, y = (int(v) for v in centre.clamp(max=CELLS - 1))
            grid[row, :, y, x] = torch.stack(
                [torch.tensor(1.0), centre[0] - x, centre[1] - y, size[0], size[1], kind.float()]
            )
    return grid


def grid_loss(given: Tensor, grid: Tensor) -> Tensor:
    """Confidence everywhere; box and class in the cells that hold the centre of an object."""
    held = grid[:, 0] > 0
    confidence = F.binary_cross_entropy_with_logits(given[:, 0], grid[:, 0])
    found = given.movedim(1, -1)[held]
    wanted = grid.movedim(1, -1)[held]
    box = F.smooth_l1_loss(found[:, 1:5], wanted[:, 1:5], beta=0.1)
    return 10 * confidence + 2 * box + F.cross_entropy(found[:, 5:], wanted[:, 5].long())


def overlaps(mine: Tensor, theirs: Tensor) -> Tensor:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4)."""
    low = torch.maximum(mine[:, None, :2], theirs[None, :, :2])
    high = torch.minimum(mine[:, None, 2:], theirs[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (mine, theirs)]
    return common / (areas[0][:, None] + areas[1] - common)


def decoded(given: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, cells, 4) in pixels and scores (B, cells, classes) of a detector's outputs."""
    cells = torch.arange(CELLS, dtype=torch.float32)
    y, x = torch.meshgrid(cells, cells, indexing="ij")
    centre = (given[:, 1:3] + torch.stack([x, y])) * STRIDE
    half = given[:, 3:5].clamp(max=3).exp() * USUAL / 2
    boxes = torch.cat([centre - half, centre + half], 1).flatten(2).transpose(1, 2)
    scores = (given[:, :1].sigmoid() * given[:, 5:].softmax(1)).flatten(2).transpose(1, 2)
    return boxes, scores


def average_precision(given: Tensor, drawn: Canvases) -> float:
    """Mean over the classes of the area below precision by recall; a box is right at an IoU of 0.5, once an object."""
    boxes, scores = decoded(given)
    kept = [_distinct(b, s) for b, s in zip(boxes, scores, strict=True)]
    return float(np.mean([_of_class(kept, drawn, kind) for kind in range(scores.shape[-1])]))


Found = list[tuple[Tensor, Tensor]]
"""For each class, the boxes and scores that were found on one canvas, the best first."""


def _distinct(boxes: Tensor, scores: Tensor, least: float = 0.01) -> Found:
    """Boxes by class without those that overlap a better one."""
    found = []
    for kind in range(scores.shape[-1]):
        order = scores[:, kind].argsort(descending=True)
        order = order[scores[order, kind] > least]
        left = boxes[order]
        covers = overlaps(left, left) > OVERLAP
        keep: list[int] = []
        for i in range(len(order)):
            if not any(bool(covers[i, j]) for j in keep):
                keep.append(i)
        found.append((left[keep], scores[order[keep], kind]))
    return found


def _of_class(kept: Sequence[Found], drawn: Canvases, kind: int) -> float:
    marks: list[tuple[float, bool]] = []
    objects = 0
    for found, true_boxes, classes in zip(kept, drawn.boxes, drawn.classes, strict=True):
        truth = true_boxes[classes == kind]
        objects += len(truth)
        boxes, scores = found[kind]
        free = torch.ones(len(truth), dtype=torch.bool)
        shared = overlaps(boxes, truth) if len(truth) else boxes.new_zeros(len(boxes), 0)
        for row, score in zip(shared, scores.tolist(), strict=True):
            row = row * free
            right = len(truth) > 0 and float(row.max()) >= OVERLAP
            if right:
                free[int(row.argmax())] = False
            marks.append((score, right))
    if not marks or not objects:
        return 0.0
    ranked = np.array([hit for _, hit in sorted(marks, key=lambda mark: -mark[0])])
    hits = ranked.cumsum()
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((precision * ranked).sum() / objects)
