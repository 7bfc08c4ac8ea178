"""What runs in a child process: pictures, columns and tokens through native libraries that a file can crash.

Each worker takes a request and yields answers, as `fxmerge.io.child` describes; `pictures` and `texts` take questions.
No torch here: a child starts quickly.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Generator, Iterator
from typing import Any

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Pictures are opened as one of these, whatever their name: others call programs (EPS) or load further files."""

PIECE = 1 << 16
"""Characters of text tokenized for one answer."""


def images(request: dict[str, Any], data: bytes) -> Iterator[tuple[Any, bytes]]:
    """Pixels of the picture files, one by one, and whether each was resized."""
    for file in request["files"]:
        yield _picture(file, request)


def pictures(request: dict[str, Any], data: bytes) -> Generator[tuple[Any, bytes], tuple[Any, bytes], None]:
    """Pixels of one encoded picture after another, of up to `most` pixels each."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = request["most"]
    _, picture = yield {}, b""
    while True:
        _, picture = yield _picture(io.BytesIO(picture), request)


def sounds(request: dict[str, Any], data: bytes) -> Generator[tuple[Any, bytes], tuple[Any, bytes], None]:
    """Numbers of one recording after another, channels averaged, and their rate."""
    import soundfile  # type: ignore[import-not-found,unused-ignore]

    _, recording = yield {}, b""
    while True:
        values, rate = soundfile.read(io.BytesIO(recording), dtype="float32", always_2d=True)
        said = {"rate": rate, "channels": values.shape[1]}
        _, recording = yield said, values.mean(1, dtype="float32").tobytes()


def _picture(file: Any, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Pixels of a picture at the model's size, or why it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    mode, width, height, config = request["mode"], request["width"], request["height"], request["config"]
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        with Image.open(file, formats=FORMATS) as opened:
            if opened.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a colour: save it with 8")
            image = opened.convert(mode)
        return {"resized": image.size != (width, height)}, _resize(image, width, height, config).tobytes()
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return {"bad": f"it is no picture of a format that is opened ({', '.join(FORMATS)})"}, b""
    except Exception as error:  # decoders raise errors of many classes
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        return {"bad": first[:300]}, b""


def _resize(image: Any, width: int, height: int, config: dict[str, Any]) -> Any:
    """The image at the model's size; with a centre crop where its own preprocessing has one."""
    from PIL import Image

    how = config.get("resample")
    method = Image.Resampling(how) if type(how) is int and 0 <= how < 6 else Image.Resampling.BILINEAR
    if config.get("do_center_crop") is True and (size := _before_crop(image, width, height, config)):
        if Image.MAX_IMAGE_PIXELS is not None and math.prod(size) > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"it would be resized to {size[0]} x {size[1]}")
        image = image.resize(size, method)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
    return image if image.size == (width, height) else image.resize((width, height), method)


def _before_crop(image: Any, width: int, height: int, config: dict[str, Any]) -> tuple[int, int] | None:
    """What an image is resized to before its middle is taken; None where nothing says it.

    A model that takes images of another size than the preprocessing cuts out gets the same share of each.
    """
    wide, high, edge = _sides(config.get("size"), "width", "height", "shortest_edge")
    crop_wide, crop_high = _sides(config.get("crop_size"), "width", "height")
    share_wide, share_high = width / (crop_wide or width), height / (crop_high or height)
    if edge:
        factor = edge / min(image.size) * max(share_wide, share_high)
        factor = max(factor, width / image.width, height / image.height)
        return math.ceil(image.width * factor), math.ceil(image.height * factor)
    if wide and high:
        return max(width, round(wide * share_wide)), max(height, round(high * share_high))
    return None


def _sides(size: Any, *keys: str) -> list[int]:
    """Sides in pixels; 0 for what is no such number."""
    found = [size.get(key) if isinstance(size, dict) else None for key in keys]
    return [side if isinstance(side, int) and 0 < side < 10_000 else 0 for side in found]


def tokens(request: dict[str, Any], data: bytes) -> Iterator[tuple[Any, bytes]]:
    """Token ids and type ids of texts, in pieces of `[[ids], [types]]`; first how the tokenizer pads."""
    cut = request["tokenizer"]
    tokenizer, pad, own = _tokenizer(data[:cut], request)
    if request["longest"] is not None:
        _cut(tokenizer, own, request["longest"])
    yield {"pad": pad}, b""
    for piece in _pieces(json.loads(data[cut:])):
        yield {}, _encoded(tokenizer.encode_batch(piece))


def texts(request: dict[str, Any], data: bytes) -> Generator[tuple[Any, bytes], tuple[Any, bytes], None]:
    """What `tokens` gives, and how many were cut, for one list after another; first padding, number of tokens, and
    the longest row that the tokenizer is for."""
    tokenizer, pad, own = _tokenizer(data, request)
    told = {"pad": pad, "tokens": tokenizer.get_vocab_size(), "longest": own["max_length"]}
    question, piece = yield told, b""
    while True:
        _cut(tokenizer, own, question["longest"])
        encoded = tokenizer.encode_batch([_one_row(text) for text in json.loads(piece)])
        question, piece = yield {"cut": sum(bool(e.overflowing) for e in encoded)}, _encoded(encoded)


def _tokenizer(data: bytes, request: dict[str, Any]) -> tuple[Any, int, dict[str, Any]]:
    """The tokenizer of a tokenizer.json, the token that it pads with, and how it cuts rows itself."""
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(data.decode())
    pad = _pad(tokenizer, request["pads"])
    own = {"max_length": 0, "direction": "right"} | (tokenizer.truncation or {})
    own["max_length"] = own["max_length"] or request["usual"]
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, pad, own


def _cut(tokenizer: Any, own: dict[str, Any], longest: int) -> None:
    """Cut rows where the model's places end or where the tokenizer itself does, whichever comes first."""
    tokenizer.enable_truncation(max_length=min(longest, own["max_length"]), direction=own["direction"])


def _encoded(encoded: list[Any]) -> bytes:
    return json.dumps([[e.ids for e in encoded], [e.type_ids for e in encoded]]).encode()


def _pieces(texts: list[Any]) -> Iterator[list[Any]]:
    """Texts, or pairs of texts as tuples, some at a time."""
    piece, size = [], 0
    for text in texts:
        piece.append(_one_row(text))
        size += sum(map(len, text)) if isinstance(text, list) else len(text)
        if size > PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _one_row(text: Any) -> Any:
    """A text; a pair of them, which JSON has as a list, as the tokenizer takes it."""
    return tuple(text) if isinstance(text, list) else text


def _pad(tokenizer: Any, names: list[str]) -> int:
    """The padding token: the tokenizer's own, or the first usual name that it knows, or token 0."""
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    known = (tokenizer.token_to_id(name) for name in names)
    return next((number for number in known if number is not None), 0)


def older_tokenizer(request: dict[str, Any], data: bytes) -> Iterator[tuple[Any, bytes]]:
    """The tokenizer of a folder, in the form of a tokenizer.json; nothing is downloaded, no code of the folder run."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["folder"], local_files_only=True, trust_remote_code=False)
    yield {}, tokenizer.backend_tokenizer.to_str().encode()
