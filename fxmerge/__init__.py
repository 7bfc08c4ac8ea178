"""Merge trained PyTorch models into one, whatever their architecture, and serve it as ONNX.

fxmerge.save(model, "a.pt", inputs=(x,), task="mnist")        trace a model; keep weights and samples in one file
merged = fxmerge.merge(["a.pt", "b.pt"])                      train M and U, fold, verify
merged(x)["mnist"]; merged.export_onnx("merged.onnx")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxmerge.capturing import capture
    from fxmerge.compiler import check, inspect, merge
    from fxmerge.compiler.comparison import compare
    from fxmerge.config import MergeConfig
    from fxmerge.coupling import couples
    from fxmerge.errors import FxmergeError
    from fxmerge.ir.program import Program
    from fxmerge.output.merged import Merged
    from fxmerge.pipeline.extension import Extension
    from fxmerge.sources.bundle import save
    from fxmerge.sources.load import load
    from fxmerge.version import __version__

_WHERE = {
    "Extension": "fxmerge.pipeline.extension",
    "FxmergeError": "fxmerge.errors",
    "MergeConfig": "fxmerge.config",
    "Merged": "fxmerge.output.merged",
    "Program": "fxmerge.ir.program",
    "__version__": "fxmerge.version",
    "capture": "fxmerge.capturing",
    "check": "fxmerge.compiler",
    "compare": "fxmerge.compiler.comparison",
    "couples": "fxmerge.coupling",
    "inspect": "fxmerge.compiler",
    "load": "fxmerge.sources.load",
    "merge": "fxmerge.compiler",
    "save": "fxmerge.sources.bundle",
}

__all__ = [
    "Extension",
    "FxmergeError",
    "MergeConfig",
    "Merged",
    "Program",
    "__version__",
    "capture",
    "check",
    "compare",
    "couples",
    "inspect",
    "load",
    "merge",
    "save",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import fxmerge` is quick and no import runs in a circle."""
    if name not in _WHERE:
        raise AttributeError(f"module 'fxmerge' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
