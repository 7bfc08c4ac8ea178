"""A folder of images as a model takes them; sub-folders are classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from fxmerge.errors import DataError
from fxmerge.io.child import ChildError, ask
from fxmerge.io.files import parse_json
from fxmerge.ir.program import Port, Program
from fxmerge.messages import listed, printable
from fxmerge.samples.fit import Raw

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MOST_BYTES = 1 << 28
"""Of pixels. As numbers they take four times that."""

IMAGES = "fxmerge.samples.workers:images"


def read_images(folder: Path, program: Program, limit: int | None) -> Raw:
    """Images in the shape of the model's one input, class names if they lie in sub-folders, and notes.

    Classes take turns, so that the first rows hold some of each. With a preprocessor_config.json of the model they
    are scaled as it says, else they stay bytes (which `fit` reads as 0..1). Raises `DataError`.
    """
    port, (channels, height, width), last = _layout(program, folder)
    found, classes = _files(folder, limit)
    most = MOST_BYTES // (channels * height * width)
    if not most:
        raise DataError(f"{folder}: one picture of {height} x {width} takes too much memory", "give arrays (.npz)")
    files, config = found[:most], preprocessing(program.assets, program.task)
    values, resized = _decode(files, (channels, height, width), config)
    if not last:
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    if config and port.dtype.is_floating_point:
        values = scaled(values, config, program.task, axis=3 if last else 1)
    values = values.reshape(len(files), *(s for s in port.shape[1:] if isinstance(s, int)))
    notes: tuple[str, ...] = ()
    if resized:
        notes += (f"{folder}: {resized} of {len(files)} images were resized to {width} x {height}",)
    if len(files) < len(found):
        notes += (f"{folder} is large: the first {len(files)} of {len(found)} images are used",)
    return Raw({port.name: values}, classes[: len(files)] if classes else None, notes)


def _decode(
    files: Sequence[Path], shape: tuple[int, int, int], config: dict[str, Any]
) -> tuple[np.ndarray[Any, Any], int]:
    """Pixels of all files, channels last, and how many were resized. A child process decodes them."""
    channels, height, width = shape
    values = np.empty((len(files), height, width, channels), dtype=np.uint8)
    request = {"files": [os.path.abspath(f) for f in files], "mode": MODES[channels], "config": config}
    done, resized = 0, 0
    try:
        for answer, pixels in ask(IMAGES, {**request, "width": width, "height": height}):
            if "bad" in answer:
                raise ChildError(answer["bad"])
            values[done] = np.frombuffer(pixels, dtype=np.uint8).reshape(values.shape[1:])
            done, resized = done + 1, resized + answer["resized"]
    except ChildError as error:
        raise DataError(f"{files[done]} cannot be read: {error}", "remove or repair that image") from error
    return values, resized


def _layout(program: Program, folder: Path) -> tuple[Port, tuple[int, int, int], bool]:
    found = picture_port(program.inputs)
    if found:
        return found
    shapes = "; ".join(f"{p.name} ({', '.join(str(s) for s in p.shape)})" for p in program.inputs)
    raise DataError(f"{folder} is a folder of images, but {program.task} takes {shapes}", "give arrays (.npz) instead")


def picture_port(ports: Sequence[Port]) -> tuple[Port, tuple[int, int, int], bool] | None:
    """The one input if it takes images; its channels, height and width, and whether channels come last."""
    if len(ports) != 1:
        return None
    [port] = ports
    sizes = [s for s in port.shape[1:] if isinstance(s, int)]
    if len(port.shape) == len(sizes) + 1:
        if len(sizes) == 2:
            return port, (1, sizes[0], sizes[1]), True
        if len(sizes) == 3 and sizes[0] in MODES:
            return port, (sizes[0], sizes[1], sizes[2]), False
        if len(sizes) == 3 and sizes[2] in MODES:
            return port, (sizes[2], sizes[0], sizes[1]), True
    return None


def _files(folder: Path, limit: int | None) -> tuple[list[Path], list[str] | None]:
    """Image files in a stable order, and the class name of each if they lie in sub-folders."""
    flat = _images(folder)
    if flat:
        return flat[:limit], None
    groups = {sub.name: _images(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    turns = [f for turn in zip_longest(*groups.values()) for f in turn if f is not None]
    if not turns:
        inside = printable(listed(sorted(p.name for p in folder.iterdir()), 4))
        raise DataError(f"{folder} holds no images (it has {inside})", f"put images there: {listed(SUFFIXES, 20)}")
    return turns[:limit], [file.parent.name for file in turns[:limit]]


def _images(folder: Path) -> list[Path]:
    return sorted(
        f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file()
    )


def scaled(values: np.ndarray[Any, Any], config: Mapping[str, Any], task: str, *, axis: int) -> np.ndarray[Any, Any]:
    """Bytes to numbers, as the model's own preprocessing does it; `axis` is that of the channels."""
    scaled = values.astype(np.float32)
    shape = [-1 if place == axis else 1 for place in range(4)]
    if config.get("do_rescale", True):
        scaled *= _numbers(config.get("rescale_factor", 1 / 255), 1, "rescale_factor", task)
    if config.get("do_normalize", "image_mean" in config):
        mean, deviation = (
            _numbers(config.get(key), values.shape[axis], key, task) for key in ("image_mean", "image_std")
        )
        scaled -= mean.reshape(shape)
        scaled /= deviation.reshape(shape)
    return scaled


def _numbers(value: Any, count: int, key: str, task: str) -> np.ndarray[Any, Any]:
    """One number, or one a channel, of the preprocessing."""
    given = value if isinstance(value, list) else [value]
    plain = all(isinstance(v, int | float) and abs(v) < 1e6 for v in given)
    if not plain or len(given) not in (1, count) or (key == "image_std" and not all(given)):
        raise DataError(
            f"the preprocessor_config.json of {task} says {key} is {printable(str(value))}",
            f"write {count} numbers there, or give arrays (.npz)",
        )
    return np.asarray(given, dtype=np.float32)


def preprocessing(assets: Mapping[str, bytes], task: str) -> dict[str, Any]:
    """What the preprocessor_config.json of a model says; nothing if it has none."""
    data = assets.get("preprocessor_config.json")
    config = parse_json(data, f"the preprocessor_config.json of {task}") if data else {}
    return config if isinstance(config, dict) else {}
