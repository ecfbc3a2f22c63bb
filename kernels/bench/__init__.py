"""The benchmark of `cascade_kernels`: one file per operation, for checkouts and not for wheels."""
