"""A bundle in NVIDIA's Triton Inference Server."""
