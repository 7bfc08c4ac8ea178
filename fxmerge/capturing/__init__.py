"""Trace a PyTorch model into a `Program` with torch.export."""

from fxmerge.capturing.assemble import source_of
from fxmerge.capturing.sizes import LARGEST
from fxmerge.capturing.tracing import capture, capture_graph

__all__ = ["LARGEST", "capture", "capture_graph", "source_of"]
