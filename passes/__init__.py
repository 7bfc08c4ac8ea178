"""What is known of operators: coupling rules, analyses and rewritings; the engine sees `KNOWLEDGE` alone."""

from passes.knowledge import KNOWLEDGE
from passes.line_up.further import line_up_all as line_up
from passes.pipeline import BUILTIN, PIPELINE
from passes.spaces.check import check
from passes.spaces.describe import describe
from passes.spaces.find import SpacesOf, spaces
from passes.spelling.cleanup import cleanup
from passes.spelling.normalize import normalize
from passes.supernet.fold_merge import fold_merge
from passes.supernet.hoist import hoist
from passes.supernet.insert_merge import insert_merge

__all__ = [
    "BUILTIN",
    "KNOWLEDGE",
    "PIPELINE",
    "SpacesOf",
    "check",
    "cleanup",
    "describe",
    "fold_merge",
    "hoist",
    "insert_merge",
    "line_up",
    "normalize",
    "spaces",
]
