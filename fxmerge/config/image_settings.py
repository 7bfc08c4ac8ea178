"""What the user says of how images are read, in place of what a model's own preprocessing says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxmerge.errors import OptionError
from fxmerge.messages import printable

IMAGE_OPTIONS = ("image_size", "image_crop", "image_mean", "image_std")
"""Options of a merge, each by task; the key "" stands for every task."""

PREPROCESSING = "preprocessor_config.json"
MOST = 10_000
"""Pixels of a side."""


@dataclass(frozen=True)
class ImageSettings:
    """Sizes as one number or as height and width, and numbers for colours; empty where nothing is said."""

    size: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Mapping[str, str]], task: str) -> ImageSettings:
        """What is given for a task, or else for all, by option. Raises `OptionError`."""
        said = {name: values.get(task, values.get("", "")) for name, values in given.items()}
        size, crop = (_sizes(name, said.get(name, "")) for name in ("image_size", "image_crop"))
        mean, std = (_numbers(name, said.get(name, "")) for name in ("image_mean", "image_std"))
        return cls(size, crop, mean, std)

    @property
    def taken(self) -> tuple[int, int] | None:
        """Height and width of what is left of an image, where they are said."""
        sides = self.crop or self.size
        return (sides[0], sides[-1]) if sides else None

    def put_into(self, config: Mapping[str, Any], task: str) -> dict[str, Any]:
        """A preprocessing with this in place of what it says. Raises `OptionError` for a mean without deviation."""
        found = dict(config)
        if self.size:
            one = len(self.size) == 1
            found["size"] = {"shortest_edge": self.size[0]} if one else {"height": self.size[0], "width": self.size[1]}
            found |= {"do_resize": True, "do_center_crop": one}
            found.pop("crop_size", None)
        if self.crop:
            found |= {"do_center_crop": True, "crop_size": {"height": self.crop[0], "width": self.crop[-1]}}
            found.setdefault("size", {"shortest_edge": max(self.crop)})
        for key, numbers in (("image_mean", self.mean), ("image_std", self.std)):
            if numbers:
                found |= {key: list(numbers), "do_normalize": True}
        for key, other in (("image_mean", "image_std"), ("image_std", "image_mean")):
            if (self.mean or self.std) and key in found and other not in found:
                raise OptionError(
                    f"--{_dashed(key)} without --{_dashed(other)}, and the preprocessing of {task} has none",
                    f"add --{_dashed(other)}",
                )
        return found


NO_SETTINGS = ImageSettings()


def spelled(value: Any) -> Any:
    """Numbers, alone, listed or by task, as they are written behind a flag: `[0.5, 0.5]` as "0.5,0.5"."""
    if isinstance(value, Mapping):
        return {task: spelled(each) for task, each in value.items()}
    if isinstance(value, list | tuple):
        return ",".join(str(each) for each in value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _sizes(name: str, text: str) -> tuple[int, ...]:
    sides = text.lower().replace(",", "x").split("x") if text else []
    if len(sides) > 2 or not all(side.strip().isdecimal() and 0 < int(side) <= MOST for side in sides):
        raise OptionError(
            f"--{_dashed(name)} {printable(text)} is no size in pixels",
            "give one as 224, or height and width as 224x160",
        )
    return tuple(map(int, sides))


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    good = all(math.isfinite(n) and abs(n) < 1e6 for n in numbers) and (name != "image_std" or all(numbers))
    if not good or len(numbers) > 4:
        raise OptionError(
            f"--{_dashed(name)} {printable(text)} are no numbers of colours",
            "give one number, or one for each colour, as 0.485,0.456,0.406"
            + (" and none of them 0" if "std" in name else ""),
        )
    return numbers


def _dashed(name: str) -> str:
    return name.replace("_", "-")
