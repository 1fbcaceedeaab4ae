"""Second moments over the batch inside every subspace."""

from typing import cast

from torch import Tensor

from mast_ops.kernels.contract import MomentsFormulas, Reduce
from mast_ops.kernels.eager import moments as eager
from mast_ops.ops import collectives
from mast_ops.ops._library import Operator, with_gradient
from mast_ops.ops.backend import Backend, moments_kernels, plain, resolve

_formulas: MomentsFormulas = eager


def off_diagonal(
    x: Tensor, y: Tensor | None, squared: Tensor, distributed: bool = False, backend: Backend = "auto"
) -> Tensor:
    """Energy off the diagonal, see :meth:`mast_ops.kernels.contract.MomentsFormulas.off_diagonal`.

    ``distributed``: of the sum of the ranks' ``x^T y``, a block at a time; ``squared`` must be alike on all of them.
    """
    resolved = resolve(backend, "moments", x, x.shape[1] ** 2)
    if resolved in ("eager", "compile"):
        reduce = collectives.all_reduce if distributed else None
        return plain(resolved, _formulas.off_diagonal)(x, y, squared, reduce)
    return cast(Tensor, (_over_ranks if distributed else _off_diagonal)(x, y, squared, resolved))


def _define(name: str, reduce: Reduce | None) -> Operator:
    return with_gradient(
        name,
        "Tensor x, Tensor? y, Tensor squared, str backend",
        lambda x, y, squared, backend: moments_kernels(backend).off_diagonal(x, y, squared, reduce),
        lambda x, y, squared, backend: squared.new_empty(squared.shape[0]),
        lambda grad, x, y, squared, backend: moments_kernels(backend).off_diagonal_backward(
            grad, x, y, squared, reduce
        ),
        learned=("x", "y", "squared"),
    )


_off_diagonal = _define("off_diagonal", None)
_over_ranks = _define("off_diagonal_over_ranks", collectives.all_reduce_)
