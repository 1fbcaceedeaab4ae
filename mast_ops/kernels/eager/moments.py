"""Second moments over the batch inside every subspace, from one D x D matrix."""

from collections.abc import Callable

import torch
from torch import Tensor


def off_diagonal(
    x: Tensor, y: Tensor | None, squared: Tensor, reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``sum_{i != j} squared_ki squared_kj (x^T y)_ij^2``: (K,). ``y`` None stands for x, ``reduce`` sums ``x^T y``
    over ranks.

    The diagonal is multiplied by zero, not overwritten: a NaN on it must stay one. It is not subtracted from
    the full sum either: that would cancel.
    """
    matrix = x.T @ (x if y is None else y)
    if reduce is not None:
        matrix = reduce(matrix)
    off = matrix.square() * (1 - torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device))
    return ((squared @ off) * squared).sum(1)
