"""What a model is written as, by the suffix of its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fxmerge.errors import OptionError
from fxmerge.messages import nearest

SUFFIXES = (".onnx", ".pt2", ".pt", ".safetensors")
"""What `--out` may end in; without a suffix it is a folder in Hugging Face layout."""


def check_suffix(out: str, extensions: Sequence[str] = ()) -> None:
    """Raise `OptionError` unless `out` ends in a suffix that can be written, or in none."""
    suffix = Path(out).suffix
    if not suffix or suffix in SUFFIXES or Path(out).is_dir():
        return
    from fxmerge.pipeline.installed import known  # only a suffix of an extension needs the extensions

    suffixes = (*SUFFIXES, *(each.suffix for each in known(extensions).formats))
    if suffix not in suffixes:
        raise OptionError(
            f"--out {out}: {suffix!r} cannot be written{nearest(suffix, suffixes)}",
            f"end it in {', '.join(suffixes)}, or in nothing for a folder",
        )
