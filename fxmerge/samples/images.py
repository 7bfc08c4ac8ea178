"""A folder of images as a model takes them; sub-folders are classes."""

from __future__ import annotations

import json
import math
import warnings
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fxmerge.errors import DataError
from fxmerge.ir.program import Port, Program
from fxmerge.messages import listed, printable, reason
from fxmerge.samples.fit import Raw

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MOST_BYTES = 1 << 34


def read_images(folder: Path, program: Program, limit: int | None) -> Raw:
    """Images in the shape of the model's one input, class names if they lie in sub-folders, and notes.

    Classes take turns, so that the first rows hold some of each. With a preprocessor_config.json of the model they
    are scaled as it says, else they stay bytes (which `fit` reads as 0..1). Raises `DataError`.
    """
    port, (channels, height, width), last = _layout(program, folder)
    files, classes = _files(folder, limit)
    if len(files) * channels * height * width > MOST_BYTES:
        raise DataError(f"{folder}: {len(files)} images take too much memory", "give fewer images")
    config = _config(program)
    planes, resized = [], 0
    for file in files:
        image = _open(file, MODES[channels])
        resized += image.size != (width, height)
        planes.append(np.asarray(_resize(image, width, height, config)).reshape(height, width, channels))
    values: np.ndarray[Any, Any] = np.stack(planes)
    if config and port.dtype.is_floating_point:
        values = _scale(values, config)
    if not last:
        values = values.transpose(0, 3, 1, 2)
    values = values.reshape(len(files), *(s for s in port.shape[1:] if isinstance(s, int)))
    notes = (f"{folder}: {resized} of {len(files)} images were resized to {width} x {height}",) if resized else ()
    return Raw({port.name: np.ascontiguousarray(values)}, classes, notes)


def _layout(program: Program, folder: Path) -> tuple[Port, tuple[int, int, int], bool]:
    """The image input, its channels, height and width, and whether channels come last."""
    port = program.inputs[0]
    sizes = [s for s in port.shape[1:] if isinstance(s, int)]
    if len(program.inputs) == 1 and len(port.shape) == len(sizes) + 1:
        if len(sizes) == 2:
            return port, (1, sizes[0], sizes[1]), True
        if len(sizes) == 3 and sizes[0] in MODES:
            return port, (sizes[0], sizes[1], sizes[2]), False
        if len(sizes) == 3 and sizes[2] in MODES:
            return port, (sizes[2], sizes[0], sizes[1]), True
    shapes = "; ".join(f"{p.name} ({', '.join(str(s) for s in p.shape)})" for p in program.inputs)
    raise DataError(f"{folder} is a folder of images, but {program.task} takes {shapes}", "give arrays (.npz) instead")


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


def _open(file: Path, mode: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError("more than 8 bits per colour")
                return image.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read: {reason(error)}", "remove or repair that image") from error


def _resize(image: Image.Image, width: int, height: int, config: dict[str, Any]) -> Image.Image:
    """The image at the model's size; with a centre crop where its own preprocessing has one."""
    how = config.get("resample")
    method = Image.Resampling(how) if isinstance(how, int) and 0 <= how < 6 else Image.Resampling.BILINEAR
    edge = (config.get("size") or {}).get("shortest_edge") if isinstance(config.get("size"), dict) else None
    if config.get("do_center_crop") and isinstance(edge, int) and 0 < edge < 10_000:
        factor = max(edge / min(image.size), width / image.width, height / image.height)
        image = image.resize((math.ceil(image.width * factor), math.ceil(image.height * factor)), method)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
    return image if image.size == (width, height) else image.resize((width, height), method)


def _scale(values: np.ndarray[Any, Any], config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Bytes to numbers, as the model's own preprocessing does it."""
    scaled = values.astype(np.float32)
    if config.get("do_rescale", True):
        scaled *= np.float32(config.get("rescale_factor", 1 / 255))
    if config.get("do_normalize", "image_mean" in config):
        mean, deviation = (np.asarray(config[key], dtype=np.float32) for key in ("image_mean", "image_std"))
        scaled = (scaled - mean) / deviation
    return scaled


def _config(program: Program) -> dict[str, Any]:
    data = program.assets.get("preprocessor_config.json")
    try:
        config = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        config = {}
    return config if isinstance(config, dict) else {}
