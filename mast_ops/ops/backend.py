"""The one dispatch point: which kernels run an operator."""

import importlib.util
import math
import os
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Literal, ParamSpec, TypeVar, cast, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from mast_ops._checks import check_choice
from mast_ops._precision import is_half
from mast_ops.kernels.contract import Contrast, ContrastKernels, MomentsKernels, PairsKernels, SigmoidKernels

P = ParamSpec("P")
T = TypeVar("T")

Backend = Literal["auto", "eager", "compile", "chunked", "triton"]
"""What computes an operator.

- ``"auto"`` (default): one of the others, by device, dtype and size, see :func:`resolve`; the environment
  variable ``MAST_OPS_BACKEND`` replaces it, for debugging.
- ``"eager"``: the plain formula, differentiated by autograd as often as asked. Holds what the formula holds.
- ``"compile"``: the plain formula under ``torch.compile``.
- ``"chunked"``: matrix products over pieces, gradients by hand. CPU and CUDA, float16 to float64. All pairs in half
  precision are multiplied on CUDA as they are in ``"triton"``: rows rounded to float16, sums in float32.
- ``"triton"``: Triton kernels, on CUDA, float16, bfloat16 and float32; variance and covariance are
  ``"chunked"`` there, which is nothing but large matrix products. All pairs of more than 256 dimensions are products
  of PyTorch's between its kernels, but where samples have masks of their own.
"""
BACKENDS: tuple[Backend, ...] = get_args(Backend)

VARIABLE = "MAST_OPS_BACKEND"
_forced = os.environ.get(VARIABLE, "auto")
if _forced not in BACKENDS:
    raise ValueError(f"{VARIABLE}: got {_forced!r}, wanted one of {', '.join(map(repr, BACKENDS))}")


def check_backend(backend: str) -> None:
    check_choice("backend", backend, BACKENDS)


def asked_for(backend: Backend) -> Backend:
    """What was asked for, or what the environment puts in the place of ``"auto"``."""
    return cast(Backend, _forced) if backend == "auto" else backend


def resolve(backend: Backend, operator: str, z: Tensor, held: int) -> Backend:
    """What runs ``operator`` on embeddings like ``z``, never ``"auto"``.

    ``"auto"``, which the environment variable ``MAST_OPS_BACKEND`` replaces: on CUDA Triton where it can run,
    else products in chunks; on CPU products in chunks, but the plain formula for problems so small that calls
    cost more than work, and for what Inductor fuses better when it compiles the caller's own code; elsewhere the
    plain formula.

    Args:
        backend: What was asked for.
        operator: ``"pairs"``, ``"contrast"``, ``"contrast by row"`` (see :func:`all_pairs`) or ``"moments"``.
        z: An embedding; its device and dtype count.
        held: How many numbers the plain formula would hold beside the embeddings.

    Raises:
        ValueError: The asked backend cannot run here, or not under a transform of torch.func.
    """
    check_backend(backend)
    asked = asked_for(backend)
    if _transformed():
        if asked in ("chunked", "triton", "compile"):
            raise ValueError(
                f"backend: got {asked!r} inside torch.func or forward-mode differentiation, wanted 'eager', or 'auto', "
                "which is the plain formula there: fused operators have first gradients in reverse mode alone"
            )
        return "eager"
    if asked == "auto":
        if z.device.type == "cuda":
            products = _why_not_triton(z) or z.shape[1] > widest(operator, z.dtype)
            return "chunked" if products else _with_kernel(operator)
        if z.device.type != "cpu":
            return "eager"
        if torch.compiler.is_compiling():
            return "eager" if operator in _INDUCTOR_FUSES else "chunked"
        return "eager" if held <= _SMALL else "chunked"
    if asked == "triton":
        reason = _why_not_triton(z)
        if reason:
            raise ValueError(f"backend: got 'triton', wanted another, or 'auto': {reason}")
        return _with_kernel(operator)
    if asked == "compile" and torch.compiler.is_compiling():
        return "eager"  # the caller's compiler sees through it
    return asked


def resolve_kernels(backend: Backend, operator: str, z: Tensor, held: int) -> Backend:
    """As :func:`resolve`, for work that no plain formula does: ``"chunked"`` or ``"triton"``.

    Raises:
        ValueError: The asked backend cannot run here, or is a plain formula.
    """
    resolved = resolve(backend, operator, z, held)
    if resolved not in ("eager", "compile"):
        return resolved
    asked = asked_for(backend)
    if asked != "auto":
        raise ValueError(
            f"backend: got {asked!r} with gather_distributed, wanted 'auto', 'chunked' or 'triton': "
            "all pairs over ranks have no plain formula"
        )
    if _transformed():
        raise ValueError(
            "gather_distributed: got True inside torch.func or forward-mode differentiation, wanted False: "
            "all pairs over ranks have first gradients in reverse mode alone"
        )
    return "chunked"


# Elementwise work and one small product: under the caller's own torch.compile, one pass over memory.
_INDUCTOR_FUSES = ("pairs",)
_SMALL = 1 << 16
# Triton's backend multiplies long rows by the library too, but where anchors read masks of their own: there its
# gradient makes the scores again for every 256 columns of its result, and beyond a few such slices that is more work
# than to send blocks of scores through memory. float32 is multiplied as torch was told to: without TF32 so slowly that
# sparse masks are worth packing, and to know what they keep is to wait for the device. Predicted by the model of
# benchmarks/predict.py at N=32768, not measured.
_WIDE, _WIDE_HALF_BY_ROW = 256, 1024
# Looked up at import, which finds the package without importing it: compilers before torch 2.12 cannot trace that.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Nothing but large matrix products: the library's own are the kernel on every device.
_PRODUCTS_ONLY = ("moments",)


def all_pairs(problem: Contrast) -> str:
    """The operator's name for :func:`resolve`."""
    return "contrast" if problem.row is None else "contrast by row"


def widest(operator: str, dtype: torch.dtype) -> float:
    """Dimensions to which Triton's backend is the quicker way."""
    if not operator.startswith("contrast") or (operator == "contrast" and is_half(dtype)):
        return math.inf
    return _WIDE_HALF_BY_ROW if is_half(dtype) else _WIDE


def _transformed() -> bool:
    """Whether jvp, vmap, torch.func.grad and their like are at work: an operator that they do not know is silently a
    constant to some of them."""
    return forward_ad._current_level >= 0 or _inside_torch_func()


def _inside_torch_func() -> bool:
    """Asked while torch.compile traces, which enters a transform as it meets it; code that is compiled anew in each."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# What torch.compiler.assume_constant_result does, but for an import of the whole compiler.
_inside_torch_func._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _with_kernel(operator: str) -> Backend:
    return "chunked" if operator in _PRODUCTS_ONLY else "triton"


@cache
def pairs_kernels(backend: Backend) -> PairsKernels:
    """Triton is imported only here and below, when first needed."""
    if backend == "triton":
        from mast_ops.kernels.triton import pairs as triton

        return triton
    from mast_ops.kernels.chunked import pairs as chunked

    return chunked


@cache
def contrast_kernels(backend: Backend) -> ContrastKernels:
    if backend == "triton":
        from mast_ops.kernels.triton import contrast as triton

        return triton
    from mast_ops.kernels.chunked import contrast as chunked

    return chunked


@cache
def sigmoid_kernels(backend: Backend) -> SigmoidKernels:
    if backend == "triton":
        from mast_ops.kernels.triton import sigmoid as triton

        return triton
    from mast_ops.kernels.chunked import sigmoid as chunked

    return chunked


@cache
def moments_kernels(backend: Backend) -> MomentsKernels:
    from mast_ops.kernels.chunked import moments

    return moments


def plain(backend: Backend, formula: Callable[P, T]) -> Callable[P, T]:
    """The plain formula, compiled if that was asked for."""
    if backend != "compile":
        return formula

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        leaves = pytree.tree_leaves(args)
        rows = [len(x.masks) for x in args if isinstance(x, Contrast)]  # the formula goes through them one by one
        kind = *rows, *(x.dtype if isinstance(x, Tensor) else x for x in leaves)
        return cast(T, _compiled(formula, kind)(*args, **kwargs))

    return run


@cache
def _compiled(formula: Callable[..., object], kind: tuple[object, ...]) -> Callable[..., object]:
    """One for each number of masks and mixture of dtypes: of one piece of code there may be eight compilations."""
    code = formula.__code__.replace()
    return torch.compile(FunctionType(code, formula.__globals__), fullgraph=True)


def _why_not_triton(z: Tensor) -> str | None:
    if not _HAS_TRITON:
        return "the triton package is not installed"
    if z.dtype == torch.float64:
        return "its kernels take float16, bfloat16 and float32, the embedding is float64"
    if z.device.type != "cuda" and not _interpreting():
        return f"its kernels run on CUDA, the embedding is on {z.device.type}"
    return None


def _interpreting() -> bool:
    """Whether Triton runs kernels on CPU tensors, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
