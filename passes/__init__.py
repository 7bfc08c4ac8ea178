"""What is known of operators: coupling rules, analyses and rewritings. Uses the public names of fxmerge alone."""

from passes.pipeline import BUILTIN, PIPELINE, trace_rewrites
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
    "PIPELINE",
    "SpacesOf",
    "check",
    "cleanup",
    "describe",
    "fold_merge",
    "hoist",
    "insert_merge",
    "normalize",
    "spaces",
    "trace_rewrites",
]
