"""The `pretrained_cfg` of a timm model, in its config.json or on itself, in words of a preprocessor_config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def preprocessing_of(about: Any) -> dict[str, Any]:
    """Resizing, centre crop and scale; nothing where `about` does not state all of them in a way that is known."""
    if not isinstance(about, Mapping) or about.get("crop_mode", "center") != "center":
        return {}
    mean, deviation, size = (_numbers(about.get(key)) for key in ("mean", "std", "input_size"))
    sizes = [n for n in size if type(n) is int and n > 0]
    if not mean or len(mean) != len(deviation) or len(size) != 3 or len(sizes) != 3:
        return {}
    crop = about.get("crop_pct")
    share = crop if isinstance(crop, int | float) and 0.1 < crop <= 1 else 1.0
    return {
        "do_resize": True,
        "size": {"shortest_edge": math.floor(min(sizes[1:]) / share)},
        "resample": RESAMPLE.get(str(about.get("interpolation")), RESAMPLE["bicubic"]),
        "do_center_crop": True,
        "crop_size": {"height": sizes[1], "width": sizes[2]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": deviation,
    }


def asset_of(about: Any) -> dict[str, bytes]:
    """The same as a file beside a model; nothing where there is nothing to say."""
    found = preprocessing_of(about)
    return {"preprocessor_config.json": json.dumps(found).encode()} if found else {}


def _numbers(value: Any) -> list[Any]:
    plain = isinstance(value, list | tuple) and all(isinstance(n, int | float) for n in value)
    return list(value) if plain else []
