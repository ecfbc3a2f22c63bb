"""From networks to ONNX graphs and their weights files."""
