"""The operations of `cascade_kernels`, a file each: shapes, alternatives, least work."""
