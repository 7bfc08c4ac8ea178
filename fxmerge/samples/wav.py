"""Numbers of a .wav file: PCM of 8 to 32 bits and floats, without a library."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
RATES = range(1000, 768_001)


@dataclass(frozen=True)
class Sound:
    """Numbers from -1 to 1, channels averaged, and how many a second has."""

    values: np.ndarray[Any, np.dtype[np.float32]]
    rate: int
    channels: int = 1


def decode(data: bytes) -> Sound:
    """The sound in the bytes of a .wav file. Raises `ValueError` if it is damaged, truncated or of another coding."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("it is no .wav file")
    layout, place = None, 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        body = memoryview(data)[place + 8 : place + 8 + size]
        if name == b"fmt ":
            layout = _layout(bytes(body))
        if name == b"data" and layout is not None:
            if len(body) < size:
                raise ValueError(f"it is truncated: {len(body)} of {size} bytes of sound")
            return _sound(body, *layout)
        place += 8 + size + size % 2
    raise ValueError("it is truncated: it has no sound")


def _layout(body: bytes) -> tuple[int, int, int, int]:
    """Coding, channels, rate and bits."""
    if len(body) < 16:
        raise ValueError("its header is truncated")
    coding, channels, rate, _, block, bits = struct.unpack("<HHIIHH", body[:16])
    if coding == EXTENSIBLE and len(body) >= 26:
        coding = int.from_bytes(body[24:26], "little")
    known = (coding == PCM and bits in (8, 16, 24, 32)) or (coding == FLOAT and bits in (32, 64))
    if not known:
        raise ValueError(f"coding {coding} with {bits} bits is not read, PCM and floats are")
    if not channels or block != channels * bits // 8 or rate not in RATES:
        raise ValueError(f"its header says {channels} channels of {block} bytes, {rate} a second")
    return coding, channels, rate, bits


def _sound(body: memoryview, coding: int, channels: int, rate: int, bits: int) -> Sound:
    rows = len(body) // (channels * bits // 8)
    values: np.ndarray[Any, np.dtype[Any]]
    body = body[: rows * channels * bits // 8]
    if not rows:
        raise ValueError("it holds no sound")
    if coding == FLOAT:
        values = np.frombuffer(body, dtype=f"<f{bits // 8}").astype(np.float32)
    elif bits == 8:
        values = (np.frombuffer(body, dtype=np.uint8).astype(np.float32) - 128) / 128
    elif bits == 24:
        wide = np.zeros((rows * channels, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(body, dtype=np.uint8).reshape(-1, 3)
        values = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    else:
        values = np.frombuffer(body, dtype=f"<i{bits // 8}").astype(np.float32) / 2 ** (bits - 1)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    return Sound(values.reshape(rows, channels).mean(1, dtype=np.float32), rate, channels)
