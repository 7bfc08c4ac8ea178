"""Recordings (.wav; others with the soundfile library) as a model of waveforms takes them; sub-folders are classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fxmerge.errors import DataError
from fxmerge.io.child import ChildError, Talk
from fxmerge.io.guard import read_bytes
from fxmerge.ir.program import Port, Program
from fxmerge.messages import listed, printable
from fxmerge.samples import wav
from fxmerge.samples.arrays import Array
from fxmerge.samples.files_in_rows import MOST_FILE
from fxmerge.samples.fit import Raw
from fxmerge.samples.images import preprocessing
from fxmerge.samples.reading import Broken, Reading
from fxmerge.samples.wav import Sound

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
MOST_NUMBERS, MOST_FILES = 1 << 26, 100_000
SECONDS = 10
"""Length of a row at most, where the model leaves it free."""
SOUND = "fxmerge.samples.workers:sounds"
REPAIR = "remove or repair that recording"


def wave_port(ports: Sequence[Port]) -> tuple[Port, Port | None] | None:
    """The input that takes waveforms, (batch, time) or (batch, 1, time) floats, and the mask beside it."""
    waves = [p for p in ports if p.dtype.is_floating_point and "mask" not in p.name]
    masks = [p for p in ports if p not in waves]
    if len(waves) != 1 or len(masks) > 1 or not all("mask" in p.name and len(p.shape) == 2 for p in masks):
        return None
    [port] = waves
    if len(port.shape) == 2 or (len(port.shape) == 3 and port.shape[1] == 1):
        return port, masks[0] if masks else None
    return None


def recordings(paths: Iterable[Path], classes: Sequence[str] | None) -> Iterator[tuple[str, bytes | DataError, Any]]:
    """The name, bytes and class of recordings in files; an error in place of the bytes of one that cannot be opened."""
    for number, path in enumerate(paths):
        label = classes[number] if classes else None
        try:
            yield str(path), read_bytes(path, DataError, most=MOST_FILE), label
        except DataError as error:
            yield str(path), error, label


def read_sounds(
    found: Iterable[tuple[str, bytes | DataError, Any]],
    program: Program,
    where: str,
    reading: Reading,
    broken: Broken,
) -> Raw:
    """Recordings at the model's own rate, cut into rows of one length, the last of each filled with silence.

    Rate and normalisation are those of the model's preprocessor_config.json. Raises `DataError`.
    """
    ports = wave_port(program.inputs)
    if ports is None:
        shapes = "; ".join(f"{p.name} ({', '.join(str(s) for s in p.shape)})" for p in program.inputs)
        raise DataError(f"{where} holds sound, but {program.task} takes {shapes}", "give arrays (.npz) instead")
    port, mask = ports
    config = preprocessing(program.assets, program.task)
    stated = config.get("sampling_rate")
    rate = stated if type(stated) is int and stated in wav.RATES else None
    sounds, labels, rates, channels = list[Any](), list[Any](), set[int](), 0
    room = MOST_NUMBERS
    for sound, label in _decoded(found, broken):
        rates.add(sound.rate)
        channels = max(channels, sound.channels)
        values = _resampled(sound, rate)[:room]
        sounds.append(values)
        labels.append(label)
        room -= len(values)
        if room <= 0 or len(sounds) == reading.limit:
            break
    broken.check(len(sounds))
    if rate is None and len(rates) > 1:
        raise DataError(
            f"{where} holds recordings of {listed(sorted(rates))} Hz, and {program.task} does not say which it takes",
            "resample them, or put a preprocessor_config.json with sampling_rate beside the model",
        )
    length = _length(port, program, sounds, rate or min(rates))
    rows = [(values[first : first + length], label) for values, label in zip(sounds, labels, strict=True)
            for first in _starts(len(values), length)]  # fmt: skip
    data = np.full((len(rows), length), float(config.get("padding_value", 0.0)), dtype=np.float32)
    real = np.zeros((len(rows), length), dtype=np.int64)
    for number, (values, _) in enumerate(rows):
        data[number, : len(values)] = _normal(values) if config.get("do_normalize") is True else values
        real[number, : len(values)] = 1
    arrays: dict[str, Array] = {port.name: data[:, None] if len(port.shape) == 3 else data}
    if mask is not None:
        arrays[mask.name] = real
    notes = _notes(where, rates, rate, channels, len(sounds), data.shape, int((real.min(1) == 0).sum()))
    if room <= 0:
        notes += (f"{where} is large: its first {len(sounds)} recordings are used",)
    classes = [label for _, label in rows]
    return Raw(arrays, classes if reading.labels and all(c is not None for c in classes) else None, notes)


def _decoded(found: Iterable[tuple[str, bytes | DataError, Any]], broken: Broken) -> Iterator[tuple[Sound, Any]]:
    with closing(Talk(SOUND, {}, size=MOST_FILE)) as talk:
        for name, data, label in found:
            try:
                if isinstance(data, DataError):
                    raise data
                yield _sound(data, talk), label
            except DataError as error:
                broken.add(error)
            except (ValueError, ChildError) as error:
                broken.add(DataError(f"{name} cannot be read: {printable(str(error))}", REPAIR))


def _sound(data: bytes, talk: Talk) -> Sound:
    if data[:4] == b"RIFF":
        return wav.decode(data)
    if find_spec("soundfile") is None:
        raise ValueError("it is no .wav file, and others need the soundfile library")
    said, values = talk.ask({}, data)
    return Sound(np.frombuffer(values, dtype=np.float32), said["rate"], said["channels"])


def _resampled(sound: Sound, rate: int | None) -> Any:
    if rate is None or rate == sound.rate:
        return sound.values
    from scipy.signal import resample_poly

    common = math.gcd(rate, sound.rate)
    return resample_poly(sound.values, rate // common, sound.rate // common).astype(np.float32)


def _length(port: Port, program: Program, sounds: Sequence[Any], rate: int) -> int:
    """The length of a row: the model's own, or that of the longest recording within bounds."""
    size = port.shape[-1]
    if isinstance(size, int):
        return size
    low, high = program.ranges.get(size, (1, SECONDS * rate))
    return max(low, min(max(map(len, sounds)), SECONDS * rate, high))


def _starts(count: int, length: int) -> range:
    """Where the rows of a recording begin: the last is left out if it would be filled, unless it is the only one."""
    return range(0, max(count - length, 0) + 1, length)


def _normal(values: Any) -> Any:
    """Mean zero and variance one, as feature extractors of waveforms compute it."""
    return (values - values.mean()) / np.sqrt(values.var() + 1e-7)


def _notes(
    where: str, rates: set[int], rate: int | None, channels: int, count: int, shape: Any, filled: int
) -> tuple[str, ...]:
    rows, length = shape
    notes = [f"{where}: {count} recordings in {rows} rows of {length} numbers, {filled} of them filled with silence"]
    if rate is None:
        notes.append(f"{where}: read at their own {min(rates)} Hz: the model does not say which rate it takes")
    elif rates != {rate}:
        notes.append(f"{where}: resampled from {listed(sorted(rates - {rate}))} Hz to the model's {rate} Hz")
    if channels > 1:
        notes.append(f"{where}: channels are averaged to one")
    return tuple(notes)


def holds_sounds(folder: Path) -> bool:
    """Whether a folder, or one of its sub-folders, holds recordings."""
    places = (folder, *(sub for sub in sorted(folder.iterdir()) if sub.is_dir()))
    return any(file.suffix.lower() in SUFFIXES for place in places for file in place.iterdir())
