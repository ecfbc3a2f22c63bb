"""From a cascade to engines: ONNX graphs, TensorRT plans, and the proof that they match."""
