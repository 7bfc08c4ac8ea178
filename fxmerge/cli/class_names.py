"""Class names from a file, for a model that has as many classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fxmerge.errors import OptionError
from fxmerge.io.guard import read_bytes
from fxmerge.messages import printable, reason

if TYPE_CHECKING:
    from fxmerge.ir.program import Program

MOST_BYTES = 4 << 20


def read_class_names(path: str) -> tuple[str, ...]:
    """Class names from a file: a JSON list, or one a line."""
    try:
        text = read_bytes(Path(path), OptionError, most=MOST_BYTES).decode("utf-8")
        names = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except OptionError as error:
        raise OptionError(f"--labels {error.what}", error.todo) from None
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--labels {path} cannot be read: {reason(error)}", "give one class name a line") from None
    found = tuple(printable(str(name).strip()) for name in names if str(name).strip())
    if not found:
        raise OptionError(f"--labels {path} holds no name", "give one class name a line")
    return found


def check_class_names(names: Sequence[str] | None, program: Program) -> None:
    """Raise `OptionError` if there are more class names than the model can choose from."""
    most = max((p.shape[-1] for p in program.outputs if p.shape and isinstance(p.shape[-1], int)), default=None)
    if names and most is not None and len(names) > max(most, 2):
        raise OptionError(f"--labels names {len(names)} classes, the model tells {most} apart", "give one name a class")
