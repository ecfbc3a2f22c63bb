"""How fast kernels, training, sampling and exported stages are, beside their alternatives."""
