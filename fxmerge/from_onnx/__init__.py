"""Programs from ONNX files: read within bounds, run node by node while it is traced, compared with ONNX Runtime."""
