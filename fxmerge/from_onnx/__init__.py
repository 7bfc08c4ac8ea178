"""Programs from ONNX files: read within bounds, run node by node while it is traced, compared with ONNX Runtime."""

from fxmerge.from_onnx.call import Call, Known, Operator, from_onnx

__all__ = ["Call", "Known", "Operator", "from_onnx"]
