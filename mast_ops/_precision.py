"""One rule of precision for every function: reductions never run below float32."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_WITH_FLOAT64 = ("cpu", "cuda", "meta")  # others are asked: MPS has none, nor has many an XPU
_UNUSUAL = ("fpga", "hip", "ideep", "lazy", "maia", "meta", "mtia", "opencl", "opengl", "ve", "vulkan")
# Asked at import: compilers of torch before 2.12 cannot trace the question.
_WITHOUT_AUTOCAST = tuple(kind for kind in _UNUSUAL if not torch.amp.is_autocast_available(kind))


def is_half(dtype: torch.dtype) -> bool:
    return dtype in _HALF


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a sum over ``dtype`` runs in."""
    return torch.float32 if is_half(dtype) else dtype


def kept(dtype: torch.dtype) -> torch.dtype:
    """Of a gradient that waits for the backward pass: bfloat16 holds whatever is small, float16 would lose it."""
    return dtype if dtype == torch.bfloat16 else wide(dtype)


def largest_exponent(dtype: torch.dtype) -> float:
    """Whose exponential is still finite: one over a deviation is no more, and nothing times it stays nothing."""
    return 0.99 * math.log(torch.finfo(dtype).max)


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return tuple(t.to(wide(t.dtype)) for t in tensors)


def alike(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Two views in one dtype: theirs, or float32 for a mixture of float16, bfloat16 and float32."""
    if z0.dtype == z1.dtype:
        return z0, z1
    dtype = torch.promote_types(z0.dtype, z1.dtype)
    return z0.to(dtype), z1.to(dtype)


def with_float64(x: Tensor) -> Tensor:
    """The tensor itself, on the CPU where its device has no float64."""
    return x if x.device.type in _WITH_FLOAT64 or _has_float64(str(x.device)) else x.cpu()


@cache
def _has_float64(device: str) -> bool:
    try:
        return torch.ones(2, dtype=torch.float64, device=device).sum().dtype == torch.float64
    except (TypeError, RuntimeError):
        return False


def exact(x: Tensor) -> Tensor:
    """In float64, which autocast leaves alone, and without a gradient; see :func:`with_float64`."""
    return with_float64(x.detach()).double()


def no_autocast(z: Tensor) -> AbstractContextManager[object]:
    """Autocast would send the matrix products of a widened float32 tensor back to half precision."""
    kind = z.device.type
    return nullcontext() if kind in _WITHOUT_AUTOCAST else torch.autocast(kind, enabled=False)
