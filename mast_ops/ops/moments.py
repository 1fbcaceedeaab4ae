"""Second moments over the batch inside every subspace."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from mast_ops.kernels.eager import moments as eager
from mast_ops.ops import collectives
from mast_ops.ops._library import Operator, differentiate, differentiate_once, register, without_none
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
    return cast(Tensor, (_over_ranks if distributed else _off_diagonal)(x, y, squared, backend))


def _with_gradient(name: str, reduce: Callable[[Tensor], Tensor] | None) -> Operator:
    """The energy as an operator whose gradient is one too; ``reduce`` sums ``x^T y`` over ranks, in place."""

    def run(*args: Any) -> Tensor:
        return cast(Tensor, kernels(args[-1], "moments").off_diagonal(*args[:-1], reduce))

    def run_backward(*args: Any) -> tuple[Tensor, ...]:
        return without_none(kernels(args[-1], "moments").off_diagonal_backward(*args[:-1], reduce), args[1])

    inputs = "Tensor x, Tensor? y, Tensor squared, str backend"
    operator = register(
        f"{name}({inputs}) -> Tensor",
        run,
        lambda x, y, squared, backend: squared.new_empty(len(squared)),
    )
    gradient = register(
        f"{name}_backward(Tensor grad, {inputs}) -> (Tensor, Tensor, Tensor)",
        run_backward,
        lambda grad, x, y, squared, backend: (
            x.new_empty(x.shape),
            x.new_empty(0) if y is None else y.new_empty(y.shape),
            squared.new_empty(squared.shape),
        ),
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.backend = inputs
        ctx.save_for_backward(*tensors)

    def pull_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        g_x, g_y, g_squared = gradient(grad, *saved, ctx.backend)
        return g_x, None if saved[1] is None else g_y, g_squared, None

    differentiate(operator, save, pull_back)
    differentiate_once(gradient)
    return operator


_off_diagonal = _with_gradient("off_diagonal", None)
_over_ranks = _with_gradient("off_diagonal_over_ranks", collectives.all_reduce_)
