"""Positive pairs, all rows of the table from one skinny product, or one row a sample."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops._precision import largest_exponent, widen
from mast_ops.kernels.contract import Gap, Table


def distance(gap: Gap, table: Table) -> Tensor:
    return _pool(_values(gap), table)


def gap_sums(gap: Gap, num_rows: int, row: Tensor | None) -> Tensor:
    """A mean of distances needs no more: ``sum_i d_ir = sum_d squared_rd sum_i gap_id``, however many rows."""
    values = _values(gap)
    if row is None:
        return values.sum(0, keepdim=True)
    member = F.embedding(row, torch.eye(num_rows, dtype=values.dtype, device=values.device))
    return member.T @ values


def products(z0: Tensor, z1: Tensor, table: Table) -> tuple[Tensor, Tensor, Tensor]:
    z0, z1 = widen(z0, z1)
    return _pool(z0 * z1, table), _pool(z0.square(), table), _pool(z1.square(), table)


def _values(gap: Gap) -> Tensor:
    z0, z1 = widen(gap.z0, gap.z1)
    if gap.log_variance is None or gap.scale is None:
        return (z0 - z1).square()
    (log_variance,) = widen(gap.log_variance)
    # By the deviation before it is squared: nothing over a tiny variance stays nothing, and so does its gradient.
    certainty = (-0.5 * log_variance).clamp_max(largest_exponent(log_variance.dtype)).exp()
    return gap.scale * ((z0 - z1) * certainty).square()


def _pool(x: Tensor, table: Table) -> Tensor:
    if table.row is None:
        return x @ table.squared.T
    return (x * F.embedding(table.row, table.squared)).sum(1)
