"""Triton kernels for NVIDIA GPUs, or for CPU tensors under Triton's interpreter. They need the ``triton`` package.

float16, bfloat16 and float32 inputs; every sum is float32. Atomics count programs and add no numbers: results are the
same from run to run.
Nothing waits for the device. Launch parameters stand in :mod:`mast_ops.kernels.triton._launch`.
"""
