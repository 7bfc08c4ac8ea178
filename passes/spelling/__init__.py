"""One spelling of a program: for the analysis at first, for ONNX at last."""
