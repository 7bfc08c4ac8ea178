"""Families of networks that are merged: their tasks, how their parents are trained, and how they are scored.

A family is a value. To measure merging on a new kind of network, add one to `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import bench_decoder, bench_text, bench_vit
from benchmarks.family_detect import detect
from benchmarks.family_nets import Detector, GatedViT, Llama, ResNet, untied
from benchmarks.family_tasks import Study, classify, fit_alone, fit_jointly, language
from benchmarks.models import BERT, GPT, ViT
from benchmarks.parents import parent, seconds_of
from benchmarks.tasks import bytes_of, images, texts
from fxmerge.demo import shifted

Shape = Mapping[str, Any]
TEN = range(10)


@dataclass(frozen=True)
class Net:
    """A network and how it is trained: all that changes its weights, so that it names its file in the cache."""

    label: str
    build: Callable[..., nn.Module]
    """Makes the network from the number of its outputs and its shape."""
    shape: Shape
    training: Mapping[str, Any]
    seed: int
    base: tuple[Net, tuple[str, ...], Callable[[Path], list[Study]]] | None = None
    """A trained network that this one starts from, the beginnings of the names of its head, and its tasks."""

    @property
    def settings(self) -> dict[str, Any]:
        own = {**self.training, **self.shape, "seed": self.seed}
        return own if self.base is None else {**own, "base": self.base[0].settings}

    @property
    def seconds(self) -> float | None:
        """The processor time of its training, once it is in the cache."""
        return seconds_of(self.label, self.settings)

    def trained(self, studies: Sequence[Study], folder: Path) -> nn.Module:
        """The network trained for these tasks together, from the cache if it was trained before."""

        start: dict[str, Tensor] = {}
        if self.base is not None:
            net, head, tasks = self.base
            state = net.trained(tasks(folder), folder).state_dict()
            start = {name: value for name, value in state.items() if not name.startswith(head)}

        def fit(model: nn.Module) -> None:
            model.load_state_dict(start, strict=False)
            if len(studies) == 1:
                fit_alone(model, studies[0], **self.training)
            else:
                fit_jointly(model, studies, **self.training)

        outputs = sum(study.outputs for study in studies)
        return parent(self.label, partial(self.build, outputs, **self.shape), fit, self.settings)


@dataclass(frozen=True)
class Family:
    """Networks of one kind, trained for different tasks."""

    name: str
    studies: Callable[[Path], list[Study]]
    """The tasks, from the folder of the data sets."""
    nets: tuple[Net, ...]
    """The parent of each task."""
    joint: Net
    """The ceiling: one network trained for all tasks with their labels."""
    sizes: tuple[int, ...] = (16, 100)
    """Unlabeled inputs a task."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of every merge."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Of `distill` and `foldable`."""
    figure: str = "accuracy"


def nets(
    labels: Sequence[str], build: Callable[..., nn.Module], shape: Shape, training: Mapping[str, Any], seed: int
) -> tuple[Net, ...]:
    """One network a task, each from a seed of its own."""
    return tuple(Net(label, build, shape, training, seed + number) for number, label in enumerate(labels))


# -- tasks ---------------------------------------------------------------------------------------------


@cache
def _digits_and_clothes(folder: Path) -> list[Study]:
    return [_images(folder, "mnist", TEN, "mnist"), _images(folder, "fashion_mnist", TEN, "fashion")]


@cache
def _halves(folder: Path) -> list[Study]:
    """Each half of the digits and of the clothes."""
    return [*_lower(folder), *_upper(folder)]


@cache
def _lower(folder: Path) -> list[Study]:
    return [_images(folder, f, range(5), f"{n}-lower") for f, n in (("mnist", "mnist"), ("fashion_mnist", "fashion"))]


@cache
def _upper(folder: Path) -> list[Study]:
    return [
        _images(folder, f, range(5, 10), f"{n}-upper") for f, n in (("mnist", "mnist"), ("fashion_mnist", "fashion"))
    ]


@cache
def _photographs(folder: Path) -> list[Study]:
    halves = {"cifar-lower": range(5), "cifar-upper": range(5, 10)}
    return [classify(images(folder, "cifar10", of, task=name), mirrored) for name, of in halves.items()]


@cache
def _sentences(folder: Path) -> list[Study]:
    tasks = texts(folder, ["sst2", "trec"], bench_text.VOCABULARY)
    return [classify(task, bench_text.masked) for task in tasks]


@cache
def _three_sentences(folder: Path) -> list[Study]:
    news = texts(folder, ["agnews"], bench_text.VOCABULARY, learnt=["sst2", "trec"])
    return [*_sentences(folder), *(classify(task, bench_text.masked) for task in news)]


@cache
def _books(folder: Path) -> list[Study]:
    return [language(name, *bytes_of(folder, name)) for name in ("shakespeare", "wikitext2")]


@cache
def _canvases(folder: Path) -> list[Study]:
    """Three digits to find, or two kinds of clothes (trousers and sneakers)."""
    return [
        detect(images(folder, "mnist", (0, 1, 2), task="find-digits")),
        detect(images(folder, "fashion_mnist", (1, 7), task="find-clothes")),
    ]


def _images(folder: Path, file: str, classes: Sequence[int], name: str) -> Study:
    return classify(images(folder, file, classes, task=name), bench_vit.moved)


def mirrored(part: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
    """Photographs moved by up to two pixels, and half of the batches mirrored."""
    moved = shifted(part[0], 2, generator)
    return [moved.flip(3) if float(torch.rand((), generator=generator)) < 0.5 else moved]


# -- families ------------------------------------------------------------------------------------------

SMALL: Shape = {"image": 28, "patch": 7, "hidden": 96, "depth": 4}
BRIEF = {"epochs": 5, "lr": 2e-3}


def vit(classes: int, **shape: Any) -> nn.Module:
    return ViT(classes=classes, **shape)


def bert(classes: int, **shape: Any) -> nn.Module:
    return BERT(bench_text.VOCABULARY, classes, **shape)


def gpt(outputs: int, **shape: Any) -> nn.Module:
    """A decoder with tied embeddings; only one for several texts has an output layer of its own."""
    return GPT(outputs, **shape) if outputs == 256 else untied(outputs, **shape)


LONG = {"epochs": bench_vit.EPOCHS, "lr": bench_vit.RATE}
VITS = Family(
    "vits",
    _digits_and_clothes,
    nets(("vit-mnist", "vit-fashion"), vit, bench_vit.SHAPE, LONG, seed=20),
    Net("vits-ceiling", vit, bench_vit.SHAPE, {"steps": 3000, "lr": 2e-3}, seed=29),
    sizes=(16, 100, 1000),
)
NARROW = Net("vit48-mnist", vit, {**SMALL, "width": 48, "heads": 4}, {"epochs": 8, "lr": 2e-3}, seed=22)
UNEQUAL = Family("vits-unequal-64", _digits_and_clothes, (NARROW, VITS.nets[1]), VITS.joint, options={"like": 1})
UNEQUAL_NARROW = replace(
    UNEQUAL,
    name="vits-unequal-48",
    joint=Net("vits48-ceiling", vit, NARROW.shape, {"steps": 3000, "lr": 2e-3}, seed=28),
    options={"like": 0},
)
QUARTERS = ("mnist-lower", "fashion-lower", "mnist-upper", "fashion-upper")
FOUR = Family(
    "vits-four",
    _halves,
    nets([f"vit-{name}" for name in QUARTERS], vit, bench_vit.SHAPE, {"epochs": 8, "lr": 2e-3}, seed=60),
    Net("vits-four-ceiling", vit, bench_vit.SHAPE, {"steps": 2000, "lr": 2e-3, "batch": 32}, seed=69),
    sizes=(100,),
)
BASE = Net("vit-base", vit, bench_vit.SHAPE, {"steps": 1500, "lr": 2e-3}, seed=70)
TUNING = {"epochs": 2, "lr": 5e-4}
FINE_TUNES = Family(
    "fine-tunes",
    _upper,
    tuple(
        Net(f"vit-tuned-{name}", vit, bench_vit.SHAPE, TUNING, 71 + number, (BASE, ("head",), _lower))
        for number, name in enumerate(QUARTERS[2:])
    ),
    Net("vit-tuned-ceiling", vit, bench_vit.SHAPE, {"steps": 300, "lr": 5e-4}, 79, (BASE, ("head",), _lower)),
)
GATED = {"image": 28, "patch": 7, "width": 64, "heads": 4, "hidden": 96, "depth": 4}
RMSNORM = Family(
    "rmsnorm",
    _digits_and_clothes,
    nets(("gated-mnist", "gated-fashion"), GatedViT, GATED, {"epochs": 7, "lr": 2e-3}, seed=80),
    Net("gated-ceiling", GatedViT, GATED, {"steps": 2200, "lr": 2e-3}, seed=89),
    sizes=(100,),
)

TEXT = Family(
    "text",
    _sentences,
    nets(("text-sst2", "text-trec"), bert, bench_text.SHAPE, bench_text.SETTINGS, seed=30),
    Net("text-ceiling", bert, bench_text.SHAPE, {"steps": 1800, "lr": 1e-3, "batch": 32}, seed=39),
    training={"batch_size": 32, "pool": 6400},
)
NEWS = Net("text-agnews", bert, bench_text.SHAPE, {**bench_text.SETTINGS, "epochs": 4}, seed=32)
TEXT_THREE = replace(
    TEXT,
    name="text-three",
    studies=_three_sentences,
    nets=(*TEXT.nets, NEWS),
    joint=replace(TEXT.joint, label="text-three-ceiling", training={"steps": 1800, "lr": 1e-3, "batch": 32}),
)

GPTS = Family(
    "gpt",
    _books,
    nets(("decoder-shakespeare", "decoder-wikitext2"), gpt, bench_decoder.SHAPE, bench_decoder.SETTINGS, seed=40),
    Net("decoder-ceiling", gpt, bench_decoder.SHAPE, {"steps": 2500, "lr": 3e-3, "batch": 32}, seed=49),
    sizes=(1, 100),
    training=bench_decoder.MERGING,
    figure="perplexity",
)
LLAMA = {"vocabulary": 256, "width": 96, "heads": 4, "groups": 2, "hidden": 192, "depth": 3}
LLAMAS = replace(
    GPTS,
    name="llama",
    nets=nets(
        ("llama-shakespeare", "llama-wikitext2"), Llama, LLAMA, {"steps": 1200, "batch": 32, "lr": 4e-3}, seed=45
    ),
    joint=Net("llama-ceiling", Llama, LLAMA, {"steps": 1200, "lr": 4e-3, "batch": 32}, seed=48),
)

QUICK = {"epochs": 2, "lr": 3e-3}
RESNETS = Family(
    "resnets",
    _digits_and_clothes,
    nets(("resnet-mnist", "resnet-fashion"), ResNet, {"width": 16}, QUICK, seed=90),
    Net("resnet-ceiling", ResNet, {"width": 16}, {"steps": 600, "lr": 3e-3}, seed=99),
)
RESNETS_UNEQUAL = Family(
    "resnets-unequal",
    _digits_and_clothes,
    (RESNETS.nets[0], Net("resnet20-fashion", ResNet, {"width": 20}, QUICK, seed=92)),
    Net("resnet20-ceiling", ResNet, {"width": 20}, {"steps": 600, "lr": 3e-3}, seed=98),
    options={"like": 1},
)
PHOTOGRAPHS = {"width": 16, "channels": 3}
CIFAR = Family(
    "resnets-cifar",
    _photographs,
    nets(("resnet-cifar-lower", "resnet-cifar-upper"), ResNet, PHOTOGRAPHS, {"epochs": 10, "lr": 3e-3}, seed=94),
    Net("resnet-cifar-ceiling", ResNet, PHOTOGRAPHS, {"steps": 700, "lr": 3e-3}, seed=97),
)
DETECTORS = Family(
    "detectors",
    _canvases,
    nets(
        ("detector-digits", "detector-clothes"),
        Detector,
        {"width": 12},
        {"steps": 1200, "lr": 4e-3, "batch": 32},
        seed=50,
    ),
    Net("detector-ceiling", Detector, {"width": 12}, {"steps": 1200, "lr": 4e-3, "batch": 32}, seed=59),
    figure="AP",
)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        VITS,
        RESNETS,
        TEXT,
        DETECTORS,
        GPTS,
        UNEQUAL,
        UNEQUAL_NARROW,
        FOUR,
        TEXT_THREE,
        LLAMAS,
        RESNETS_UNEQUAL,
        CIFAR,
        FINE_TUNES,
        RMSNORM,
    )
}  # fmt: skip
