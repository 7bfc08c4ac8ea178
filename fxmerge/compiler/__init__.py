"""The driver: parents in, one merged model out; what holds it to what it was given, and what it tells."""

from fxmerge.compiler.inspection import check, examine, inspect
from fxmerge.compiler.merging import merge
from fxmerge.installed import catalogue

__all__ = ["catalogue", "check", "examine", "inspect", "merge"]
