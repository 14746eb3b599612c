"""One converter per ONNX operator, one file per family."""
