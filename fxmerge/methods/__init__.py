"""Merging methods: each fills the maps of a SuperNet, no more. The names are those of the papers."""

from fxmerge.methods.about import About
from fxmerge.methods.align import ALIGN
from fxmerge.methods.auto import AUTO
from fxmerge.methods.average import AVERAGE
from fxmerge.methods.base import Init, Job, Method, Outcome, Trained
from fxmerge.methods.condense import CONDENSE
from fxmerge.methods.dare import DARE
from fxmerge.methods.distill import DISTILL
from fxmerge.methods.fisher import FISHER
from fxmerge.methods.foldable import FOLDABLE
from fxmerge.methods.inits import INITS
from fxmerge.methods.permute import PERMUTE
from fxmerge.methods.pleas import PLEAS
from fxmerge.methods.regmean import REGMEAN
from fxmerge.methods.rotate import ROTATE
from fxmerge.methods.task_arithmetic import TASK_ARITHMETIC
from fxmerge.methods.ties import TIES
from fxmerge.methods.transport import TRANSPORT
from fxmerge.methods.zipit import ZIPIT

METHODS: tuple[Method, ...] = (
    AUTO,
    CONDENSE,
    FOLDABLE,
    DISTILL,
    PERMUTE,
    ROTATE,
    TRANSPORT,
    ZIPIT,
    PLEAS,
    ALIGN,
    AVERAGE,
    TASK_ARITHMETIC,
    TIES,
    DARE,
    FISHER,
    REGMEAN,
)
"""The built-in methods, the default one first."""

__all__ = ["INITS", "METHODS", "About", "Init", "Job", "Method", "Outcome", "Trained"]
