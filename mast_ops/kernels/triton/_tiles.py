"""What the kernels of positive pairs share: reading a tile, products of tiles, and arguments that may be missing."""

from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from mast_ops._precision import largest_exponent
from mast_ops.kernels.contract import Gap
from mast_ops.kernels.triton._launch import readable

LARGEST: tl.constexpr = tl.constexpr(largest_exponent(torch.float32))


@triton.jit
def read(x, rows, dims, stride_n, stride_d, inside):
    place = x + rows[:, None] * stride_n + dims[None, :] * stride_d
    return tl.load(place, mask=inside, other=0).to(tl.float32)


@triton.jit
def certainty_of(log_variance):
    """One over the deviation, finite: nothing over a tiny variance stays nothing."""
    exponent = -0.5 * log_variance
    return tl.exp(tl.where(exponent > LARGEST, LARGEST, exponent))  # a NaN stays one


@triton.jit
def read_masks(masks, rows, dims, R, D):
    return read(masks, rows, dims, D, 1, (rows < R)[:, None] & (dims < D)[None, :])


@triton.jit
def _rounded(x):
    """To tf32's 11 bits (Veltkamp's splitting). Tensor cores cut the other bits off, and a sum of squares shrinks."""
    big = x * 8193.0
    return big - (big - x)


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    if PRECISION == "tf32":
        a = _rounded(a)
        b = _rounded(b)
    return tl.dot(a, b, total, input_precision=PRECISION)


class Likelihood(NamedTuple):
    """Both or neither, readable by the kernels, and the strides."""

    log_variance: Tensor | None
    scale: Tensor | None
    strides: tuple[int, int]

    @classmethod
    def of(cls, gap: Gap) -> Self:
        if gap.log_variance is None or gap.scale is None:
            return cls(None, None, (0, 0))
        (log_variance,) = readable(gap.log_variance)
        return cls(log_variance, dense(gap.scale), (log_variance.stride(0), log_variance.stride(1)))


def dense(x: Tensor | None) -> Tensor | None:
    """Small tensors are read one element after the other."""
    return None if x is None else x.contiguous()


def new_like(z: Tensor) -> Tensor:
    """Where a kernel writes: rows one after the other, whatever the strides of ``z``."""
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def in_dtype_of(like: Tensor | None, grad: Tensor | None) -> Tensor | None:
    return None if like is None or grad is None else grad.to(like.dtype)
