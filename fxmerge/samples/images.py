"""A folder of images as a model takes them; sub-folders are classes."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fxmerge.config.image_settings import NO_SETTINGS, PREPROCESSING, ImageSettings
from fxmerge.errors import DataError, OptionError
from fxmerge.io.child import ChildError, Talk, ask
from fxmerge.io.files import parse_json
from fxmerge.ir.program import Port, Program
from fxmerge.messages import listed, printable
from fxmerge.samples.fit import Raw
from fxmerge.samples.reading import Broken, Reading

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SIZES = {"do_resize", "size", "resample", "do_center_crop", "crop_size"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MOST_BYTES = 1 << 27
"""Of pixels. As numbers they take four times that."""

SCALED = "resized, cropped and scaled as the model's own preprocessing says"
MOST_PIXELS = 1 << 26
MOST_SIDE = 10_000
IMAGES, PICTURES = "fxmerge.samples.workers:images", "fxmerge.samples.workers:pictures"


def read_images(folder: Path, program: Program, limit: int | None, broken: Broken) -> Raw:
    """Images in the shape of the model's one input, class names if they lie in sub-folders, and notes.

    Classes take turns, so that the first rows hold some of each. With a preprocessor_config.json of the model they
    are scaled as it says, else they stay bytes (which `fit` reads as 0..1). Raises `DataError`.
    """
    config = preprocessing(program.assets, program.task)
    port, (channels, height, width), last = _layout(program, config, folder)
    most = MOST_BYTES // (channels * height * width)
    if not most:
        raise DataError(f"{folder}: one picture of {height} x {width} takes too much memory", "give arrays (.npz)")
    found = in_turns(folder, SUFFIXES, "images", limit, most)
    values, read, resized = _decode(found.paths, (channels, height, width), config, broken)
    values = _as_input(values, port, config, program.task, last)
    notes = (*found.notes, *((f"{folder}: {SCALED}",) if _scales(config) else ()))
    if resized:
        notes += (f"{folder}: {resized} of {len(read)} images were resized to {width} x {height}",)
    classes = [found.classes[place] for place in read] if found.classes else None
    return Raw({port.name: values}, classes, notes)


def read_rows(
    found: Iterator[tuple[str, bytes, Any]], program: Program, where: str, reading: Reading, broken: Broken
) -> Raw:
    """The same of encoded pictures with their names and labels, as a table holds them."""
    config = preprocessing(program.assets, program.task)
    port, (channels, height, width), last = _layout(program, config, Path(where))
    most = MOST_BYTES // (channels * height * width)
    request = {"mode": MODES[channels], "config": config, "width": width, "height": height, "most": MOST_PIXELS}
    pictures, labels, resized = list[Any](), list[Any](), 0
    with closing(Talk(PICTURES, request, size=1 << 28)) as talk:
        for name, data, label in found:
            if len(pictures) == (reading.limit or most):
                break
            try:
                said, pixels = talk.ask({}, data)
            except ChildError as error:
                said, pixels = {"bad": str(error)}, b""
            if "bad" in said:
                _leave_out(name, said["bad"], broken)
                continue
            pictures.append(np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, channels))
            labels.append(label)
            resized += said["resized"]
    broken.check(len(pictures))
    if not pictures:
        raise DataError(f"{where} has no rows", "write the samples again")
    values = _as_input(np.stack(pictures), port, config, program.task, last)
    notes = (f"{where}: {resized} of {len(pictures)} images were resized to {width} x {height}",) if resized else ()
    return Raw({port.name: values}, labels if all(label is not None for label in labels) else None, notes)


def _as_input(values: np.ndarray[Any, Any], port: Port, config: Mapping[str, Any], task: str, last: bool) -> Any:
    """Pixels, channels last, in the layout and scale of the model's input."""
    if not last:
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    if _scales(config) and port.dtype.is_floating_point:
        values = scaled(values, config, task, axis=3 if last else 1)
    return values[..., 0] if len(port.shape) == 3 else values


def _scales(config: Mapping[str, Any]) -> bool:
    """Whether a preprocessing says more than sizes."""
    return bool(config.keys() - SIZES)


def _decode(
    files: Sequence[Path], shape: tuple[int, int, int], config: dict[str, Any], broken: Broken
) -> tuple[np.ndarray[Any, Any], list[int], int]:
    """Pixels of the files, channels last; which files were read, and how many resized. A child process decodes them."""
    channels, height, width = shape
    values = np.empty((len(files), height, width, channels), dtype=np.uint8)
    names = [os.path.abspath(f) for f in files]
    request = {"mode": MODES[channels], "config": config, "width": width, "height": height}
    done, read, resized = 0, list[int](), 0
    while done < len(files):  # again after a file that ended the child
        try:
            for answer, pixels in ask(IMAGES, {**request, "files": names[done:]}):
                if "bad" in answer:
                    _leave_out(files[done], answer["bad"], broken)
                else:
                    values[len(read)] = np.frombuffer(pixels, dtype=np.uint8).reshape(values.shape[1:])
                    read.append(done)
                    resized += answer["resized"]
                done += 1
        except ChildError as error:
            _leave_out(files[done], str(error), broken)
            done += 1
    broken.check(len(read))
    return values[: len(read)], read, resized


def _leave_out(file: Path | str, why: str, broken: Broken) -> None:
    broken.add(DataError(f"{file} cannot be read: {why}", "remove or repair that image"))


def most_of(shape: tuple[int, int, int]) -> int:
    """How many pictures of this shape are read at most."""
    return max(1, MOST_BYTES // math.prod(shape))


def _layout(program: Program, config: Mapping[str, Any], folder: Path) -> tuple[Port, tuple[int, int, int], bool]:
    found = picture_port(program.inputs, config)
    if found:
        return found
    shapes = "; ".join(f"{p.name} ({', '.join(str(s) for s in p.shape)})" for p in program.inputs)
    raise DataError(f"{folder} is a folder of images, but {program.task} takes {shapes}", "give arrays (.npz) instead")


def picture_port(
    ports: Sequence[Port], config: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Port, tuple[int, int, int], bool] | None:
    """The one input if it takes images; its channels, height and width, and whether channels come last.

    A side that the model leaves free is what the preprocessing `config` leaves of an image.
    """
    if len(ports) != 1:
        return None
    [port] = ports
    sizes = [s for s in _filled(port.shape[1:], config) if isinstance(s, int)]
    if len(port.shape) == len(sizes) + 1:
        if len(sizes) == 2:
            return port, (1, sizes[0], sizes[1]), True
        if len(sizes) == 3 and sizes[0] in MODES:
            return port, (sizes[0], sizes[1], sizes[2]), False
        if len(sizes) == 3 and sizes[2] in MODES:
            return port, (sizes[2], sizes[0], sizes[1]), True
    return None


def _filled(inner: Sequence[int | str], config: Mapping[str, Any]) -> Sequence[int | str]:
    """The axes of a picture, free sides filled in."""
    size = config.get("crop_size") if config.get("do_center_crop") is True else None
    size = size or config.get("size")
    said = [size.get(key, size.get("shortest_edge")) for key in ("height", "width")] if isinstance(size, dict) else []
    sides = [side for side in said if isinstance(side, int) and 0 < side <= MOST_SIDE]
    if len(inner) != 3 or len(sides) != 2:
        return inner
    first = 1 if inner[0] in MODES else 0
    filled = [own if isinstance(own, int) else side for own, side in zip(inner[first : first + 2], sides, strict=True)]
    return [*inner[:first], *filled, *inner[first + 2 :]]


def in_turns(folder: Path, suffixes: Sequence[str], what: str, limit: int | None, most: int) -> Files:
    """The files of a folder, or of its sub-folders, which are classes and take turns; of too many, some at random.

    What is chosen at random is the same every time. Raises `DataError` if there are none.
    """
    flat = _inside(folder, suffixes)
    groups = {"": flat} if flat else {sub.name: _inside(sub, suffixes) for sub in _folders(folder)}
    total = sum(map(len, groups.values()))
    if not total:
        inside = printable(listed(sorted(p.name for p in folder.iterdir()), 4))
        raise DataError(f"{folder} holds no {what} (it has {inside})", f"put {what} there: {listed(suffixes, 20)}")
    if limit is None and total > most:
        draw = random.Random(0)
        groups = {name: draw.sample(files, min(len(files), most)) for name, files in groups.items()}
        note: tuple[str, ...] = (f"{folder} is large: {most} of its {total} {what}, drawn at random, are used",)
    else:
        note, most = (), min(most, limit or most)
    turns = [file for turn in zip_longest(*groups.values()) for file in turn if file is not None][:most]
    return Files(turns, None if flat else [file.parent.name for file in turns], note)


@dataclass(frozen=True)
class Files:
    """Files of samples, the class of each where they lie in sub-folders, and what to say of them."""

    paths: list[Path]
    classes: list[str] | None
    notes: tuple[str, ...]


def _folders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _inside(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.is_file()]
    return sorted(folder / name for name in names if os.path.splitext(name)[1].lower() in suffixes)


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


def put_settings(program: Program, settings: ImageSettings) -> Program:
    """The program with what the user says of its images in its preprocessing; as it is if it takes none.

    Raises `OptionError` if they are said to have another size than the model takes.
    """
    if settings == NO_SETTINGS:
        return program
    config = settings.put_into(preprocessing(program.assets, program.task), program.task)
    found = picture_port(program.inputs, config)
    if found is None:
        return program
    _, (channels, *sides), _ = found
    if settings.crop and sides != [settings.crop[0], settings.crop[-1]]:
        raise OptionError(
            f"--image-crop {settings.crop[0]}x{settings.crop[-1]}: {program.task} takes {sides[0]} x {sides[1]}",
            "leave --image-crop out, or capture the model with inputs of that size",
        )
    for flag, numbers in (("--image-mean", settings.mean), ("--image-std", settings.std)):
        if len(numbers) not in (0, 1, channels):
            raise OptionError(
                f"{flag} has {len(numbers)} numbers, and {program.task} takes {channels} colours",
                f"give one number, or {channels}",
            )
    return program.evolve(assets={**program.assets, PREPROCESSING: json.dumps(config).encode()})


def preprocessing(assets: Mapping[str, bytes], task: str) -> dict[str, Any]:
    """What the preprocessor_config.json of a model says; nothing if it has none."""
    data = assets.get(PREPROCESSING)
    config = parse_json(data, f"the preprocessor_config.json of {task}") if data else {}
    return config if isinstance(config, dict) else {}
