"""How an output is to be read: as scores of classes, as one logit, as a class already chosen, or as numbers.

What says so, in this order: `--metric`, the type, the labels, the output's name, its values, and last the head: a call
that takes a matrix of parameters and whose result nothing but the output reads, maybe through calls that keep the order
of classes (a cap, a temperature).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from fxmerge.errors import OptionError
from fxmerge.installed import knowledge, known
from fxmerge.ir.program import Port, Program
from fxmerge.ir.reach import behind
from fxmerge.messages import nearest

Kind = Literal["classes", "sign", "chosen", "values", "none"]
CLASS_WORDS = frozenset(("class", "classes", "cls", "category", "probs", "probabilities", "label", "labels", "logit"))
VALUE_WORDS = frozenset(
    (
        "anchor", "anchors", "audio", "bbox", "bboxes", "box", "boxes", "coord", "coords", "delta", "deltas", "depth",
        "embed", "embedding", "embeddings", "feature", "features", "flow", "heatmap", "hidden", "image", "keypoints",
        "landmarks", "latent", "loc", "locs", "logvar", "mask", "mean", "mu", "offset", "offsets", "pooled", "pooler",
        "recon", "reconstruction", "reg", "regression", "state", "states", "std", "value", "values",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How an output is read; `axis` is the one that classes lie along, `level` the logit's threshold."""

    kind: Kind
    axis: int = -1
    level: float = 0.0
    said_by: str = ""

    @property
    def chooses(self) -> bool:
        """Whether a class is chosen, so that two models can agree."""
        return self.kind in ("classes", "sign", "chosen")

    def choice(self, value: Tensor) -> Tensor:
        """The class chosen at every place."""
        if self.kind == "classes":
            return value.argmax(self.axis)
        return value > self.level if self.kind == "sign" else value


def reading(program: Program, port: Port, values: Tensor, metric: str = "auto") -> Reading:
    """How output `port` of a task's own program is read; `values` are what it gives for some samples."""
    if metric == "none":
        return Reading("none", said_by="--metric")
    if metric == "regression":
        return Reading("values", said_by="--metric")
    single = values.dim() == 1 or values.shape[-1] == 1
    if metric == "classes":
        return (
            as_sign(values, "--metric")
            if single
            else Reading("classes", 1 if values.dim() > 3 else -1, 0.0, "--metric")
        )
    if not values.is_floating_point():
        return Reading("chosen", said_by="its type")
    if program.labels is not None and len(program.labels) > 1:
        return _by_labels(values, len(program.labels), single)
    words = set(re.split(r"[^a-z]+", port.name.lower()))
    if words & CLASS_WORDS and (single or isinstance(port.shape[-1], int)):
        return as_sign(values, "its name") if single else Reading("classes", said_by="its name")
    if holds_numbers(port):
        return Reading("values", said_by="its name")
    if single or not isinstance(port.shape[-1], int):
        return Reading("values", said_by="its shape")
    if values.dim() != 2 and not _per_token(program, port):
        return Reading("values", said_by="its shape")
    if _is_distribution(values):
        return Reading("classes", said_by="its values")
    if _is_boxes(values):
        return Reading("values", said_by="its values")
    if _are_shares(values) and _scores(program, port) is not _result(program, port):
        return Reading("values", said_by="its values")
    return Reading("classes" if _is_head(program, port) else "values", said_by="the head")


def metric_of(metrics: Mapping[str, str], task: str, output: str) -> str:
    """What `--metric` says of an output: by TASK.OUTPUT, by TASK, or for all."""
    return metrics.get(f"{task}.{output}", metrics.get(task, metrics.get("", "auto")))


def check_metrics(metrics: Mapping[str, str], programs: Sequence[Program]) -> None:
    """Raise `OptionError` unless every name in `--metric` is a task or an output."""
    tasks = [program.task for program in programs]
    outputs = [f"{program.task}.{port.name}" for program in programs for port in program.outputs]
    for name in metrics:
        if name and name not in (*tasks, *outputs):
            known = [*tasks, *outputs]
            raise OptionError(
                f"--metric {name}={metrics[name]}: there is no task or output {name!r}{nearest(name, known)}",
                f"known are: {', '.join(known)}",
            )


def holds_numbers(port: Port) -> bool:
    """Whether an output's name says that it holds numbers, not class scores."""
    return bool(set(re.split(r"[^a-z]+", port.name.lower())) & VALUE_WORDS)


def as_sign(values: Tensor, said_by: str = "labels") -> Reading:
    """A probability is compared with a half, a logit with zero."""
    within = bool(((values >= 0) & (values <= 1)).all())
    return Reading("sign", level=0.5 if within else 0.0, said_by=said_by)


def _by_labels(values: Tensor, count: int, single: bool) -> Reading:
    if single:
        return as_sign(values, "labels") if count == 2 else Reading("values", said_by="labels")
    axes = [axis for axis in (values.dim() - 1, *range(1, values.dim() - 1)) if values.shape[axis] == count]
    return Reading("classes", axes[0], 0.0, "labels") if axes else Reading("values", said_by="labels")


def _per_token(program: Program, port: Port) -> bool:
    """Whether there is one row of numbers for every token of an input."""
    tokens = (p for p in program.inputs if len(p.shape) == 2 and not p.dtype.is_floating_point)
    return len(port.shape) == 3 and any(p.shape == port.shape[:2] for p in tokens)


def _is_distribution(values: Tensor) -> bool:
    """Whether rows are probabilities, or their logarithms."""
    rows = values.double()
    positive = bool((rows >= 0).all())
    sums = (rows if positive else rows.exp()).sum(-1)
    return bool((positive or bool((rows <= 1e-6).all())) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))


def _is_boxes(values: Tensor) -> bool:
    """Whether rows are two corners in order, or shares of an image."""
    if values.shape[-1] != 4 or values.numel() < 32:
        return False
    ordered = bool((values[..., 2:] >= values[..., :2]).all())
    return ordered or bool(((values >= 0) & (values <= 1)).all())


def _result(program: Program, port: Port) -> fx.Node:
    return program.result[[p.name for p in program.outputs].index(port.name)]


def _scores(program: Program, port: Port) -> fx.Node:
    """What makes an output, in front of calls that keep the order of its last axis (a cap, a temperature)."""
    return knowledge().in_order_of(_result(program, port), -1, known().rules)


def _are_shares(values: Tensor) -> bool:
    """Whether every number is a share of its own: such classes do not exclude each other."""
    return bool(((values >= 0) & (values <= 1)).all())


def _is_head(program: Program, port: Port) -> bool:
    """Whether an output is made by a call that takes a matrix of parameters, and no other output builds on it."""
    node = _result(program, port)
    shape = node.meta["val"].shape
    for other in program.result:
        value = other.meta["val"]
        if other is not node and value.is_floating_point() and value.shape != shape and node in behind([other]):
            return False
    node = _scores(program, port)
    while True:
        if any(len(n.meta["val"].shape) > 1 for n in _inputs(node) if _is_parameter(n, program)):
            return True
        own = [n for n in _inputs(node) if not _is_parameter(n, program)]
        if len(own) != 1 or own[0].meta["val"].shape == node.meta["val"].shape:
            return False  # a call on one value that keeps its shape may do anything to it
        node = own[0]


def _inputs(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


def _is_parameter(node: fx.Node, program: Program) -> bool:
    """Whether a value is a parameter, or made of parameters alone."""
    sources = [n for n in behind([node]) if n.op in ("placeholder", "get_attr")]
    return (
        bool(sources)
        and all(n.op == "get_attr" for n in sources)
        and any(n.target in program.parameters for n in sources)
    )
