"""Text and pictures as a model takes them: through its own tokenizer, through its own preprocessing, in children."""

from __future__ import annotations

import binascii
import json
import os
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from queue import LifoQueue
from time import monotonic
from typing import Any, Protocol

import numpy as np

from fxmerge.errors import FxmergeError, SourceError
from fxmerge.io.child import ChildError, Talk
from fxmerge.ir.program import Port
from fxmerge.messages import listed
from fxmerge.samples.images import MODES, picture_port, preprocessing, scaled
from fxmerge.samples.text import LONGEST, PADS, padded, token_ports
from fxmerge.serving.engine import numpy_name
from fxmerge.serving.protocol import LATE, TOO_LARGE, Array, RequestError

MOST_CHARACTERS, MOST_TEXT = 1 << 16, 1 << 20
"""Characters of a text, and of all texts of a request."""

MOST_TOKENS = 2048
"""Of a row; a tokenizer may state more than a model can be tried on."""

MOST_PIXELS = 1 << 25
"""Of an encoded picture."""

CHILDREN = min(4, os.cpu_count() or 1)


class Reader(Protocol):
    """Fills inputs of a model from the entries of one raw input."""

    kind: str
    """What it reads, which is what the raw input is called."""
    pairs: bool
    """Whether an entry may be two texts, which the model's tokenizer makes one row of."""

    def read(self, name: str, values: Sequence[Any], until: float) -> tuple[dict[str, Array], int]:
        """Inputs by name, and how many entries were cut. Raises `RequestError`; stops when it is later than `until`."""

    def close(self) -> None:
        """End the children."""


def reader(
    ports: Sequence[Port], files: Mapping[str, bytes], runs: Callable[[Mapping[str, Array]], bool], most: int, task: str
) -> Reader:
    """What reads raw inputs for these ports, of up to `most` bytes as numbers. Raises `SourceError` where none can.

    `runs` tries whether the model can be run on inputs.
    """
    if tokens := token_ports(ports):
        if "tokenizer.json" not in files:
            raise SourceError("it has no tokenizer.json, in its metadata or beside it", "put the tokenizer.json there")
        if find_spec("tokenizers") is None:
            raise SourceError("reading text needs the tokenizers library", 'install it: pip install "fxmerge[text]"')
        return _Text(tokens, files["tokenizer.json"], runs, most)
    config = preprocessing(files, task)
    if picture := picture_port(ports, config):
        if not config and picture[0].dtype.is_floating_point:
            raise SourceError(
                "it has no preprocessor_config.json, in its metadata or beside it",
                "put one there that says image_mean, image_std and rescale_factor",
            )
        return _Picture(picture, config, most, task)
    raise SourceError(f"{listed(port.name for port in ports)} are neither tokens nor a picture", "send numbers")


class _Children:
    """A few children that do one kind of work."""

    def __init__(self, worker: str, request: dict[str, Any], data: bytes, size: int) -> None:
        self._all = [Talk(worker, request, data, size=size) for _ in range(CHILDREN)]
        self._idle: LifoQueue[Talk] = LifoQueue()
        for talk in self._all:
            self._idle.put(talk)

    @contextmanager
    def one(self) -> Iterator[Talk]:
        """One of them, for oneself alone."""
        talk = self._idle.get()
        try:
            yield talk
        finally:
            self._idle.put(talk)

    def close(self) -> None:
        for talk in self._all:
            talk.close()


class _Text:
    kind, pairs = "text", True

    def __init__(
        self, ports: Mapping[str, Port], tokenizer: bytes, runs: Callable[[Mapping[str, Array]], bool], most: int
    ) -> None:
        self.ports, self.most = ports, most
        size = ports["ids"].shape[1]
        self.fixed = size if isinstance(size, int) else None
        self._children = _Children(
            "fxmerge.samples.workers:texts", {"pads": PADS, "usual": LONGEST}, tokenizer, MOST_TEXT
        )
        try:
            with self._children.one() as talk:
                talk.begin()
        except ChildError as error:
            raise SourceError(
                f"its tokenizer cannot be read: {error}", "give the model's own tokenizer.json"
            ) from error
        self.pad, tokens, own = (talk.begun[name] for name in ("pad", "tokens", "longest"))
        try:
            most = min(own, MOST_TOKENS)
            self.longest = min(self.fixed or _longest(lambda length: runs(self._rows(self.pad, length)), most), most)
            if not runs(self._rows(max(tokens - 1, 0), self.longest)):
                raise SourceError(
                    f"its tokenizer has {tokens} tokens, and it cannot be run on the last",
                    "give the model's own tokenizer",
                )
        except SourceError:
            self.close()
            raise

    def read(
        self, name: str, values: Sequence[bytes | tuple[bytes, bytes]], until: float
    ) -> tuple[dict[str, Array], int]:
        if 8 * len(self.ports) * len(values) * self.longest > self.most:
            raise _too_large(name, len(values), self.most)
        texts = [
            [_decoded(name, row, part) for part in value] if isinstance(value, tuple) else _decoded(name, row, value)
            for row, value in enumerate(values)
        ]
        if sum(sum(map(len, text)) if isinstance(text, list) else len(text) for text in texts) > MOST_TEXT:
            raise RequestError(
                f"the input {name!r} has more than {MOST_TEXT} characters", "send fewer texts", TOO_LARGE
            )
        try:
            with self._children.one() as talk:
                _in_time(until)
                told, payload = talk.ask({"longest": self.longest}, json.dumps(texts).encode())
        except ChildError as error:
            raise RequestError(f"the input {name!r} cannot be split into tokens: {error}", "send other text") from error
        ids, types = json.loads(payload)
        if not all(ids):
            raise RequestError(f"row {ids.index([])} of the input {name!r} has no tokens", "send text")
        if "mask" not in self.ports and not self.fixed and len(set(map(len, ids))) > 1:
            raise RequestError(
                f"the texts in {name!r} have different lengths, and the model takes no mask", "send one text a request"
            )
        return self._inputs(ids, types), told["cut"]

    def _rows(self, token: int, length: int) -> dict[str, Array]:
        """A row of one token."""
        return self._inputs([[token] * length], [[0] * length])

    def _inputs(self, ids: list[list[int]], types: list[list[int]]) -> dict[str, Array]:
        length = self.fixed or max(map(len, ids))
        rows = {"ids": (ids, self.pad), "mask": ([[1] * len(row) for row in ids], 0), "types": (types, 0)}
        return {
            port.name: padded(rows[kind][0], length, rows[kind][1]).astype(numpy_name(port))
            for kind, port in self.ports.items()
        }

    def close(self) -> None:
        self._children.close()


class _Picture:
    kind, pairs = "image", False

    def __init__(
        self, picture: tuple[Port, tuple[int, int, int], bool], config: Mapping[str, Any], most: int, task: str
    ) -> None:
        self.port, self.shape, self.channels_last = picture
        self.config, self.most, self.task = config, most, task
        channels, height, width = self.shape
        request = {"mode": MODES[channels], "width": width, "height": height, "config": config, "most": MOST_PIXELS}
        self._children = _Children("fxmerge.samples.workers:pictures", request, b"", most)
        try:
            self._inputs(np.zeros((1, height, width, channels), np.uint8))  # the config is read, whatever it says
            with self._children.one() as talk:
                talk.begin()
        except (ChildError, FxmergeError) as error:
            raise SourceError(
                f"its preprocessing cannot be used: {error}", "repair preprocessor_config.json"
            ) from error

    def read(self, name: str, values: Sequence[bytes], until: float) -> tuple[dict[str, Array], int]:
        channels, height, width = self.shape
        if 4 * len(values) * channels * height * width > self.most:
            raise _too_large(name, len(values), self.most)
        pixels = np.empty((len(values), height, width, channels), np.uint8)
        with self._children.one() as talk:
            for row, value in enumerate(values):
                _in_time(until)
                try:
                    told, payload = talk.ask({}, _bytes(value))
                except ChildError as error:
                    told = {"bad": str(error)}
                if "bad" in told:
                    raise RequestError(
                        f"row {row} of the input {name!r} cannot be read: {told['bad']}",
                        "send encoded pictures, as bytes or as base64 in JSON",
                    )
                pixels[row] = np.frombuffer(payload, np.uint8).reshape(pixels.shape[1:])
        return self._inputs(pixels), 0

    def _inputs(self, pixels: Array) -> dict[str, Array]:
        values = pixels if self.channels_last else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        if self.port.dtype.is_floating_point:
            values = scaled(values, self.config, self.task, axis=3 if self.channels_last else 1)
        values = values[..., 0] if len(self.port.shape) == 3 else values
        return {self.port.name: values.astype(numpy_name(self.port), copy=False)}

    def close(self) -> None:
        self._children.close()


def _longest(runs: Callable[[int], bool], most: int) -> int:
    """The longest row that a model can be run on, up to `most`: its table of positions may end before."""
    if runs(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    if not low:
        raise SourceError("it cannot be run on a row of tokens of any length", "send numbers")
    return low


def _decoded(name: str, row: int, value: bytes) -> str:
    try:
        text = value.decode()
    except ValueError as error:
        raise RequestError(f"row {row} of the input {name!r} is no text in UTF-8", "send it in UTF-8") from error
    if len(text) > MOST_CHARACTERS:
        raise RequestError(
            f"row {row} of the input {name!r} has {len(text)} characters", f"send at most {MOST_CHARACTERS}", TOO_LARGE
        )
    return text


def _bytes(value: bytes) -> bytes:
    """An encoded picture; one that came as a JSON string is in base64, which no picture's own bytes are."""
    try:
        return b64decode(value, validate=True)
    except binascii.Error:
        return value


def _in_time(until: float) -> None:
    if monotonic() > until:
        raise RequestError("the request was not read in time", "send fewer rows, or raise --timeout", LATE)


def _too_large(name: str, rows: int, most: int) -> RequestError:
    return RequestError(
        f"{rows} rows of the input {name!r} are more than {most} bytes as numbers", "send fewer rows at once", TOO_LARGE
    )
