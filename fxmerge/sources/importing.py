"""The user's own Python files, imported as a script beside them would import them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

OURS = frozenset({"fxmerge", "passes"})

_KEPT: dict[str, dict[str, ModuleType]] = {}
"""By folder: its modules that were imported, which are hidden outside `importable`."""


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """The modules of `folder` can be imported inside; outside they are hidden: another folder may have the same names.

    What was imported before stays as it is.
    """
    home = str(folder.resolve())
    before = set(sys.modules)
    kept = _KEPT.setdefault(home, {})
    sys.modules.update({name: module for name, module in kept.items() if name not in before})
    sys.path.insert(0, home)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(home)
        new = {n: m for n, m in sys.modules.items() if n not in before and _lies_in(m, home) and _is_theirs(n, before)}
        kept.update(new)
        for name in new:
            del sys.modules[name]


def run_file(path: Path) -> ModuleType:
    """The module of a Python file. Its neighbours must be `importable`."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # its classes can be pickled, dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _is_theirs(name: str, before: Set[str]) -> bool:
    """Not a part of ourselves, or of a package that was imported before."""
    package = name.partition(".")[0]
    return package not in OURS and (package == name or package not in before)


def _lies_in(module: ModuleType, home: str) -> bool:
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return file is not None and Path(home) in Path(file).resolve().parents and "site-packages" not in file
