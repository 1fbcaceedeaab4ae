"""Second moments over the batch inside every subspace."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from mast_ops.kernels.eager import moments as eager
from mast_ops.ops import collectives
from mast_ops.ops._library import differentiate, differentiate_once, register, without_none
from mast_ops.ops.backend import Backend, kernels, plain, resolve


def off_diagonal(
    x: Tensor, y: Tensor | None, squared: Tensor, distributed: bool = False, backend: Backend = "auto"
) -> Tensor:
    """Energy off the diagonal of ``x^T y``, see :func:`mast_ops.kernels.eager.moments.off_diagonal`.

    ``distributed``: of the sum of the ranks' ``x^T y``, a block at a time; ``squared`` must be alike on all of them.
    """
    backend = resolve(backend, "moments", x, x.shape[1] ** 2)
    if backend in ("eager", "compile"):
        reduce = collectives.all_reduce if distributed else None
        return cast(Tensor, plain(backend, eager.off_diagonal)(x, y, squared, reduce))
    return cast(Tensor, _off_diagonal(x, y, squared, distributed, backend))


def _run(*args: Any) -> Tensor:
    *inputs, distributed, backend = args
    return cast(Tensor, kernels(backend, "moments").off_diagonal(*inputs, _reduce(distributed)))


def _run_backward(*args: Any) -> tuple[Tensor, ...]:
    *inputs, distributed, backend = args
    return without_none(kernels(backend, "moments").off_diagonal_backward(*inputs, _reduce(distributed)), args[1])


def _reduce(distributed: bool) -> Callable[[Tensor], Tensor] | None:
    return collectives.all_reduce_ if distributed else None


_off_diagonal = register(
    "off_diagonal(Tensor x, Tensor? y, Tensor squared, bool distributed, str backend) -> Tensor",
    _run,
    lambda x, y, squared, *_: squared.new_empty(len(squared)),
)
_off_diagonal_backward = register(
    "off_diagonal_backward(Tensor grad, Tensor x, Tensor? y, Tensor squared, bool distributed, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _run_backward,
    lambda grad, x, y, squared, *_: (
        x.new_empty(x.shape),
        x.new_empty(0) if y is None else y.new_empty(y.shape),
        squared.new_empty(squared.shape),
    ),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.distributed, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    g_x, g_y, g_squared = _off_diagonal_backward(grad, *saved, ctx.distributed, ctx.backend)
    return g_x, None if saved[1] is None else g_y, g_squared, None, None


differentiate(_off_diagonal, _save, _backward)
differentiate_once(_off_diagonal_backward)
