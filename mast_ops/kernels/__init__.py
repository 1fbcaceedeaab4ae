"""Where the arithmetic is done: one folder a backend, one file an operator, the same signatures in each.

Kernels know nothing of losses, check nothing, and are called by :mod:`mast_ops.ops` alone.
"""
