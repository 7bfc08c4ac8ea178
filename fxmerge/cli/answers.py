"""Rows on which merged model and parent differ most, as people read them: pictures, texts, names of classes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fxmerge.compiler.figures import class_axis
from fxmerge.ir.program import Program
from fxmerge.output.insight import Insight, furthest
from fxmerge.output.merged import Merged

Rows = list[dict[str, Any]]
SIDE, WORDS, NUMBERS = 96, 200, 6
"""Pixels of a picture, characters of a text and numbers of a row that are shown at most."""


def shown_answers(merged: Merged, insight: Insight, metrics: Mapping[str, str]) -> list[tuple[str, Rows]]:
    """By task: input, both answers and how far they are apart, the worst first."""
    return [(given.task, _of_task(merged, insight, k, metrics)) for k, given in enumerate(merged.parents)]


def _of_task(merged: Merged, insight: Insight, k: int, metrics: Mapping[str, str]) -> Rows:
    given = merged.parents[k]
    rows = furthest(merged.program, insight, k, given)
    if not rows:
        return []
    answers = torch.stack([row.parent for row in rows])
    scores = answers.ndim == 2 and class_axis(given, given.outputs[0].name, answers, metrics) is not None
    return [
        {
            "input": shown_input(given, row.inputs), "by": row.by,
            "merged": _answer(row.merged, given, scores), "parent": _answer(row.parent, given, scores),
        }
        for row in rows
    ]  # fmt: skip


def shown_input(program: Program, row: Mapping[str, Tensor]) -> dict[str, str]:
    """The first input of a row: `image` as a data URI, or `text`."""
    name = program.inputs[0].name
    value = row[name]
    if value.is_floating_point() and value.ndim == 3 and value.shape[0] in (1, 3) and min(value.shape[1:]) > 3:
        return {"image": picture(value)}
    if not value.is_floating_point() and value.ndim == 1:
        return {"text": _text(program, row, value)}
    return {"text": _numbers(value)}


def picture(value: Tensor) -> str:
    """A (channels, height, width) tensor as a PNG in a data URI, its values spread over black to white."""
    low, high = float(value.min()), float(value.max())
    pixels = ((value.float() - low) / ((high - low) or 1.0) * 255).byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _text(program: Program, row: Mapping[str, Tensor], ids: Tensor) -> str:
    """What the tokens say, by the model's own tokenizer where it has one; else the numbers."""
    try:
        from tokenizers import Tokenizer

        tokens = Tokenizer.from_str(program.assets["tokenizer.json"].decode())
    except (ImportError, KeyError, ValueError):
        return _numbers(ids)
    mask = next((v for n, v in row.items() if "mask" in n and v.shape == ids.shape), None)
    real = ids if mask is None else ids[mask != 0]
    text = tokens.decode(real.tolist())
    return text if len(text) <= WORDS else text[: WORDS - 1] + "…"


def _answer(value: Tensor, program: Program, scores: bool) -> str:
    if not scores:
        return _numbers(value)
    best = int(value.argmax())
    return program.labels[best] if program.labels and best < len(program.labels) else f"class {best}"


def _numbers(value: Tensor) -> str:
    flat = value.flatten()
    shown = ", ".join(f"{number:.3g}" for number in flat[:NUMBERS].tolist())
    return shown + (f", … ({flat.numel():,} numbers)" if flat.numel() > NUMBERS else "")
