"""Trace a PyTorch model into a `Program` with torch.export."""

from fxmerge.ir.capture.assemble import source_of
from fxmerge.ir.capture.sizes import LARGEST
from fxmerge.ir.capture.tracing import capture, capture_graph

__all__ = ["LARGEST", "capture", "capture_graph", "source_of"]
