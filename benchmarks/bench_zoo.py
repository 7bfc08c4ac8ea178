"""Tiny random models of public architectures through the whole compiler: what is found, and that all of it is exact."""

from __future__ import annotations

import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.architectures import PROTOTYPE
from benchmarks.survey import HERE, Subject, parser, survey


def main() -> int:
    arguments = parser(__doc__ or "", "zoo")
    default = HERE.parent / "shared" / "zoo"
    arguments.add_argument("--zoo", type=Path, default=default, help="folder of zoo.py, zoo.json")
    given = arguments.parse_args()
    subjects = [Subject(e["name"], e["family"], partial(_build, e)) for e in _entries(given.zoo)]
    return survey(given, subjects, transformers=metadata.version("transformers"), prototype=PROTOTYPE)


def _entries(folder: Path) -> list[dict[str, Any]]:
    if not (folder / "zoo.py").is_file():
        raise SystemExit(f"{folder} holds no zoo.py\ngive its folder with --zoo")
    sys.path.insert(0, str(folder))
    import zoo

    found: list[dict[str, Any]] = zoo.entries()
    return found


def _build(entry: dict[str, Any], seed: int) -> Any:
    import zoo

    return zoo.build(entry, seed=seed)


if __name__ == "__main__":
    sys.exit(main())
