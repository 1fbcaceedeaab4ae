"""Positive pairs, all K from one skinny product, or one subspace a sample."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops._precision import widen


def distance(
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> Tensor:
    """``sum_d squared_kd gap_id``: (N, K), or (N,) with ``subspace``.

    ``gap = (z0 - z1)^2``, and with a log-variance (N, D) and its scale (1, D)
    ``gap = scale ((z0 - z1)^2 exp(-log_variance) + log_variance)``. ``squared`` is (K, D), the squared masks.
    """
    return _pool(_gap(z0, z1, log_variance, scale), squared, subspace)


def gap_sums(
    z0: Tensor,
    z1: Tensor,
    num_subspaces: int,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> Tensor:
    """Sum over samples of the same ``gap``: (1, D), or (K, D) with ``subspace``, each row over its own samples.

    A mean over samples needs no more: ``sum_i d_ik = sum_d squared_kd sum_i gap_id``, whatever K.
    """
    gap = _gap(z0, z1, log_variance, scale)
    if subspace is None:
        return gap.sum(0, keepdim=True)
    member = F.embedding(subspace, torch.eye(num_subspaces, dtype=gap.dtype, device=gap.device))
    return member.T @ gap


def products(z0: Tensor, z1: Tensor, squared: Tensor, subspace: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """``sum_d squared_kd x_id`` for x = z0 z1, z0^2 and z1^2: dot products and squared norms, shapes as above."""
    z0, z1 = widen(z0, z1)
    dot = _pool(z0 * z1, squared, subspace)
    return dot, _pool(z0.square(), squared, subspace), _pool(z1.square(), squared, subspace)


def _gap(z0: Tensor, z1: Tensor, log_variance: Tensor | None, scale: Tensor | None) -> Tensor:
    z0, z1 = widen(z0, z1)
    gap = (z0 - z1).square()
    if log_variance is None or scale is None:
        return gap
    (log_variance,) = widen(log_variance)
    return scale * (gap * (-log_variance).exp() + log_variance)


def _pool(x: Tensor, squared: Tensor, subspace: Tensor | None) -> Tensor:
    if subspace is None:
        return x @ squared.T
    return (x * F.embedding(subspace, squared)).sum(1)
