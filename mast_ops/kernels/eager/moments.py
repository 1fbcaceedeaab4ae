"""Second moments over the batch inside every subspace, from one D x D matrix."""

import torch
from torch import Tensor

from mast_ops.kernels.contract import Reduce


def off_diagonal(x: Tensor, y: Tensor | None, squared: Tensor, reduce: Reduce | None) -> Tensor:
    """The diagonal is multiplied by zero, not overwritten: a NaN on it must stay one. It is not subtracted from
    the full sum either: that would cancel.
    """
    matrix = x.T @ (x if y is None else y)
    if reduce is not None:
        matrix = reduce(matrix)
    off = matrix.square() * (1 - torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device))
    return ((squared @ off) * squared).sum(1)
