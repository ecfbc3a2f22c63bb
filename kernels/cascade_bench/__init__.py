"""Benchmarks of kernels, training, sampling and exported stages, beside their alternatives."""
