"""Second moments over the batch inside every subspace."""

from typing import Any, cast

from torch import Tensor

from mast_ops.kernels.eager import moments as eager
from mast_ops.ops._library import differentiate, differentiate_once, register, without_none
from mast_ops.ops.backend import Backend, kernels, plain, resolve


def off_diagonal(x: Tensor, y: Tensor | None, squared: Tensor, backend: Backend = "auto") -> Tensor:
    """Energy off the diagonal of ``x^T y``, see :func:`mast_ops.kernels.eager.moments.off_diagonal`."""
    backend = resolve(backend, "moments", x, x.shape[1] ** 2)
    if backend in ("eager", "compile"):
        return cast(Tensor, plain(backend, eager.off_diagonal)(x, y, squared))
    return cast(Tensor, _off_diagonal(x, y, squared, backend))


def _run(*args: Any) -> Tensor:
    return cast(Tensor, kernels(args[-1], "moments").off_diagonal(*args[:-1]))


def _run_backward(*args: Any) -> tuple[Tensor, ...]:
    return without_none(kernels(args[-1], "moments").off_diagonal_backward(*args[:-1]), args[1])


_off_diagonal = register(
    "off_diagonal(Tensor x, Tensor? y, Tensor squared, str backend) -> Tensor",
    _run,
    lambda x, y, squared, backend: squared.new_empty(len(squared)),
)
_off_diagonal_backward = register(
    "off_diagonal_backward(Tensor grad, Tensor x, Tensor? y, Tensor squared, str backend) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    lambda grad, x, y, squared, backend: (
        x.new_empty(x.shape),
        x.new_empty(0) if y is None else y.new_empty(y.shape),
        squared.new_empty(squared.shape),
    ),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.backend = inputs[-1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    g_x, g_y, g_squared = _off_diagonal_backward(grad, *saved, ctx.backend)
    return g_x, None if saved[1] is None else g_y, g_squared, None


differentiate(_off_diagonal, _save, _backward)
differentiate_once(_off_diagonal_backward)
