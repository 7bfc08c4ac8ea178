"""A format as a value: how a model is written, by the suffix of its path, and how what was written is read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fxmerge.coupling import RuleSet
from fxmerge.errors import OptionError
from fxmerge.ir.port import Runnable
from fxmerge.ir.program import Program
from fxmerge.messages import nearest

SUFFIXES = (".onnx", ".pt2", ".pt", ".safetensors")
"""What `--out` may end in; without a suffix it is a folder in Hugging Face layout."""


@dataclass(frozen=True)
class Content:
    """What is written: a model, and what it says of itself."""

    program: Program
    metadata: Mapping[str, str] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)
    """The figures that stand beside the weights in a folder."""
    assets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """By task, the files that its parent reads text or pictures with, and its config.json."""
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What is to be said of how it was written."""
    rules: RuleSet | None = None
    """The rules of the run, where they are not those that are installed."""


@dataclass(frozen=True)
class Format:
    """One way to write a model."""

    suffix: str
    write: Callable[[Content, Path, int | None], None]
    """Writes to a path, for an ONNX operator set."""
    read: Callable[[Path, Program], Runnable]
    """What runs as the file says; the program gives what the format does not hold (the graph, names of outputs)."""
    fewest: int = 1
    """Smallest batch that what was written takes."""
    summary: str = ""


def check_suffix(out: str, formats: Sequence[Format] = ()) -> None:
    """Raise `OptionError` unless `out` ends in a suffix that can be written, of `formats` or built in, or in none."""
    suffix, suffixes = Path(out).suffix, (*SUFFIXES, *(each.suffix for each in formats))
    if suffix and suffix not in suffixes and not Path(out).is_dir():
        raise OptionError(
            f"--out {out}: {suffix!r} cannot be written{nearest(suffix, suffixes)}",
            f"end it in {', '.join(suffixes)}, or in nothing for a folder",
        )
