"""What each space is for, read off the operators that touch it."""

from __future__ import annotations

from fxmerge.ir.axes import Class
from fxmerge.ir.program import Program
from fxmerge.tolerance import Tolerances


def roles_of(program: Program, tolerances: Tolerances) -> dict[Class, str]:
    return {}
