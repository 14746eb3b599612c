"""ONNX file to Network: the lowest floor, and the words everybody shares."""
