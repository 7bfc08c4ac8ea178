"""Augmented inputs: right kinds, same conventions as the samples, same bits for the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxmerge.errors import DataError, OptionError
from fxmerge.ir.program import Port
from fxmerge.samples.augment import augment, candidates, recipe


def ports(samples: dict[str, Tensor], dynamic: bool = False) -> tuple[Port, ...]:
    rest = ("sequence",) if dynamic else ()
    return tuple(
        Port(name, ("batch", *rest, *value.shape[1 + len(rest) :]), value.dtype) for name, value in samples.items()
    )


def kind(value: Tensor, dynamic: bool = False) -> str:
    return candidates(ports({"x": value}, dynamic), {"x": value})[0]


def blobs(rows: int, size: int = 28) -> Tensor:
    """Images of one soft spot each on a dark ground."""
    generator = torch.Generator().manual_seed(1)
    centre = torch.rand(rows, 2, 1, generator=generator) * size
    near = (torch.arange(size) - centre).square() / (size / 2)
    return torch.exp(-near[:, 0, :, None] - near[:, 1, None, :]) * 2 - 1


def test_kinds_are_read_off_shapes_and_values() -> None:
    images = blobs(8)
    assert kind(images[:, None]) == "image"
    assert kind(images) == "image"
    assert kind(images.flatten(1)) == "flat-image"
    assert kind(torch.rand(8, 64, 64, 3)) == "image"
    assert kind(torch.randn(8, 784)) == "vector"
    assert kind(torch.randn(8, 30)) == "vector"
    assert kind(torch.randn(8, 20, 20)) == "vector"
    assert kind(images, dynamic=True) == "vector", "a dynamic axis is a sequence, not a picture"
    assert kind(torch.randint(9, (8, 12))) == "tokens"
    assert kind(torch.randint(9, (8, 12, 3))) == "none"


def test_a_guess_is_one_candidate_of_several_and_none_is_always_among_them() -> None:
    signal = torch.sin(torch.linspace(0, 60, 1024) + torch.rand(8, 1) * 6)
    for value, expected in (
        (blobs(8)[:, None], ("image", "vector", "none")),
        (signal, ("vector", "none")),
        (blobs(8).flatten(1), ("flat-image", "vector", "none")),
        (torch.randn(8, 30), ("vector", "none")),
        (torch.randint(9, (8, 12)), ("tokens", "none")),
        (torch.randint(9, (8, 12, 3)), ("none",)),
    ):
        assert candidates(ports({"x": value}), {"x": value}) == expected


def test_inputs_of_several_kinds() -> None:
    samples = {"ids": torch.randint(5, 99, (6, 7)), "pixels": blobs(6)[:, None], "mask": torch.ones(6, 7)}
    assert candidates(ports(samples), samples) == ("image+tokens", "tokens+vector", "none")
    made = augment(samples, "image+tokens", 40, 0)
    assert {name: tuple(value.shape) for name, value in made.items()} == {
        "ids": (40, 7), "pixels": (40, 1, 28, 28), "mask": (40, 7)
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [blobs(6)[:, None], blobs(6).unsqueeze(3).expand(-1, -1, -1, 3), blobs(6), blobs(6).flatten(1), torch.randn(6, 5)],
    ids=["channels-first", "channels-last", "plane", "flat", "vector"],
)
def test_floats_keep_shape_dtype_and_range(value: Tensor) -> None:
    made = augment({"x": value.double()}, kind(value), 50, 3)["x"]
    assert made.shape == (50, *value.shape[1:])
    assert made.dtype == torch.float64
    assert made.min() >= value.min() - 1
    assert made.max() <= value.max() + 1
    assert torch.equal(made[:6], value.double()), "the samples themselves come first"
    assert len({tuple(row.flatten().tolist()) for row in made}) == 50, "no two rows are alike"


def test_an_image_is_filled_with_its_own_edge() -> None:
    dark = blobs(4)[:, None].clone()
    dark[:, :, [0, -1]] = dark[:, :, :, [0, -1]] = -1.0
    made = augment({"x": dark}, "image", 64, 0)["x"]
    assert made.min() >= -1.0, "zeros at the border would be grey"
    assert made[:, :, 0, 0].max() < -0.9


def test_few_samples_are_also_cut_and_joined() -> None:
    assert recipe("image", 16) == ("shift", "affine", "mix", "cut-and-mix")
    assert recipe("image", 100) == ("shift", "affine", "mix")
    assert recipe("rows", 16) == ()
    left = torch.full((1, 1, 16, 16), -1.0)
    samples = {"x": torch.cat([left, -left])}
    few = augment(samples, "image", 300, 0)["x"]
    many = augment({"x": samples["x"].repeat(20, 1, 1, 1)}, "image", 300, 0)["x"]
    varied = [(rows.flatten(1).std(1) > 0.01).sum() for rows in (few, many)]
    assert varied[0] > 30, "blocks of both pictures"
    assert varied[1] == 0, "a flat picture stays flat unless blocks are joined"


def test_every_task_is_drawn_equally_often() -> None:
    tasks = [{"x": torch.zeros(90, 3)}, {"x": torch.ones(10, 3)}]
    made = augment(tasks, "rows", 2000, 0, originals=False)
    assert abs(made["x"].mean().item() - 0.5) < 0.05


def test_same_seed_same_bits() -> None:
    samples = {"x": blobs(10)[:, None]}
    one, two, other = (augment(samples, "image", 30, seed)["x"] for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one[10:], other[10:])


def test_none_gives_the_samples() -> None:
    tasks = [{"x": torch.randn(3, 4)}, {"x": torch.randn(2, 4)}]
    assert torch.equal(augment(tasks, "none", 99, 0)["x"], torch.cat([task["x"] for task in tasks]))


def test_refusals() -> None:
    with pytest.raises(OptionError, match="unknown kind of input 'sound'"):
        augment({"x": torch.randn(3, 4)}, "sound", 9, 0)
    with pytest.raises(OptionError, match=r"no input is of kind 'image': 'x' of shape \[3, 5\] looks like 'vector'"):
        augment({"x": torch.randn(3, 5)}, "image", 9, 0)
    with pytest.raises(DataError, match="a task has no samples"):
        augment([{"x": torch.randn(3, 4)}, {"x": torch.randn(0, 4)}], "vector", 9, 0)


def test_a_kind_chosen_by_the_user_wins() -> None:
    value = torch.randn(6, 64)
    assert kind(value) == "vector"
    for chosen in ("flat-image", "image"):
        made = augment({"x": value}, chosen, 20, 0)["x"]
        assert made.shape == (20, 64)
        assert not torch.equal(made, augment({"x": value}, "vector", 20, 0)["x"])


def test_a_chosen_kind_leaves_inputs_that_cannot_be_of_it() -> None:
    samples = {"ids": torch.randint(5, 99, (6, 7)), "pixels": torch.randn(6, 1, 28, 28)}
    made = augment(samples, "vector", 40, 0)
    assert made["ids"].dtype == torch.long
    assert made["pixels"].shape == (40, 1, 28, 28)
