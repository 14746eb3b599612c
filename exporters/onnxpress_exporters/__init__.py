"""Network and State to ONNX file, and onnxruntime's opinion of it."""
