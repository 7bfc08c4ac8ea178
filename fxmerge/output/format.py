"""What an extension gives to write models in a format of its own, under the names that its author imports."""

from fxmerge.pipeline.format import Content, Format

__all__ = ["Content", "Format"]
