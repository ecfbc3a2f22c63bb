"""Triton kernels and their launchers, one file per operation.

Nothing imports these modules before a kernel runs or is compiled: `triton` is absent on many
machines, and `TRITON_INTERPRET` has to be set before its first import.
"""
