"""Batch statistics inside every subspace, all K from one set computed once."""

from typing import NamedTuple

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_embedding, check_masks, check_min_samples, check_positive
from mast_ops._precision import no_autocast, widen
from mast_ops.functional.pairs import check_pairs, select_rows
from mast_ops.ops import Backend

_BATCH_NORM_EPS = 1e-5  # Barlow Twins standardises with torch's batch norm


def subspace_variance(z: Tensor, masks: Tensor, eps: float = 1e-4, gather_distributed: bool = False) -> Tensor:
    """VICReg's variance hinge inside every subspace: ``mean_d relu(1 - sqrt(m_kd^2 var(z_d) + eps))``.

    Exactly the hinge of the masked embedding ``z * m_k``, from one variance of z. A mask of ones gives
    VICReg's own term.

    Args:
        z: Embedding, (N, D), floating point, N >= 2.
        masks: One mask per subspace, (K, D).
        eps: Under the square root, so that a collapsed dimension has a gradient; VICReg's default.
        gather_distributed: Whether the batch is that of all ranks. Their statistics are reduced, not gathered: what is
            sent does not grow with N. Every rank gets the same value; for gradients see
            :class:`mast_ops.losses.SubspaceLoss`.

    Returns:
        (K,). float32 for half-precision input, else the dtype of ``z``.

    Raises:
        ValueError, TypeError: Shapes, dtypes or devices disagree, fewer than two samples, ``eps`` <= 0.

    Source: VICReg (arXiv 2105.04906), equations 1 and 2; the shared-statistics form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_variance
        >>> z = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
        >>> subspace_variance(z, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        tensor([0.9900, 0.4950, 0.4950])
    """
    check_positive("eps", eps)
    distributed = _check_moments(z, masks, gather_distributed)
    with no_autocast(z):
        z, masks = widen(z, masks)
        return _hinge(_statistics(z, distributed).variance, masks, eps)


def subspace_covariance(
    z: Tensor, masks: Tensor, gather_distributed: bool = False, backend: Backend = "auto"
) -> Tensor:
    """VICReg's covariance term inside every subspace: ``sum_{i != j} (m_ki m_kj C_ij)^2 / D``.

    Exactly the term of the masked embedding ``z * m_k``, from one covariance matrix C.

    Args:
        z: Embedding, (N, D), floating point, N >= 2.
        masks: One mask per subspace, (K, D).
        gather_distributed: Whether the batch is that of all ranks, as in :func:`subspace_variance`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`. C is never held whole, but by ``"eager"`` and
            ``"compile"``.

    Returns:
        (K,). float32 for half-precision input, else the dtype of ``z``.

    Raises:
        ValueError, TypeError: Shapes, dtypes or devices disagree, fewer than two samples, or the asked backend
            cannot run.

    Source: VICReg (arXiv 2105.04906), equations 3 and 4; the shared-statistics form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_covariance
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> subspace_covariance(z, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([0., 4.])
    """
    distributed = _check_moments(z, masks, gather_distributed)
    with no_autocast(z):
        z, masks = widen(z, masks)
        return _covariance(_statistics(z, distributed), masks, distributed, backend)


def subspace_moments(
    z: Tensor, masks: Tensor, eps: float = 1e-4, gather_distributed: bool = False, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Both VICReg terms inside every subspace from one set of batch statistics.

    Args:
        z: Embedding, (N, D), floating point, N >= 2.
        masks: One mask per subspace, (K, D).
        eps: Of :func:`subspace_variance`.
        gather_distributed: Whether the batch is that of all ranks, as in :func:`subspace_variance`.
        backend: Of :func:`subspace_covariance`.

    Returns:
        (variance, covariance), (K,) each: what :func:`subspace_variance` and :func:`subspace_covariance` give.

    Raises:
        ValueError, TypeError: As for the two.

    Source: VICReg (arXiv 2105.04906), equations 1 to 4; the shared-statistics form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_moments
        >>> subspace_moments(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        (tensor([0.4950, 0.0000]), tensor([0., 4.]))
    """
    return moments_after(None, z, masks, eps, gather_distributed, backend)


def moments_after(
    before: Tensor | None, z: Tensor, masks: Tensor, eps: float, gather_distributed: bool, backend: Backend
) -> tuple[Tensor, Tensor]:
    """The same, with ranks told nothing before they were told ``before``: see :mod:`mast_ops.ops.collectives`."""
    check_positive("eps", eps)
    distributed = _check_moments(z, masks, gather_distributed)
    with no_autocast(z):
        z, masks = widen(z, masks)
        statistics = _statistics(z, distributed, before=before)
        return _hinge(statistics.variance, masks, eps), _covariance(statistics, masks, distributed, backend)


def subspace_barlow_twins(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    subspace: Tensor | None = None,
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Barlow Twins' two terms inside every subspace, from one cross-correlation matrix C.

    ``invariance_k = sum_d m_kd^2 (C_dd - 1)^2`` and ``redundancy_k = sum_{i != j} (m_ki m_kj C_ij)^2``.
    Masks act after the standardisation over the batch, which would undo them before it.

    Args:
        z0: Embedding of the first view, (N, D), floating point, N >= 2.
        z1: Embedding of the second view, (N, D), same dtype and device.
        masks: One mask per subspace, (K, D).
        subspace: (N,) int64. With it, the invariance of subspace k looks only at its own samples'
            correlations (standardised over the whole batch) and counts by their share of the batch, so that
            an absent subspace counts nothing. Redundancy has no pairs and uses the whole batch either way.
        gather_distributed: Whether the batch is that of all ranks, as in :func:`subspace_variance`.
        backend: Of :func:`subspace_covariance`.

    Returns:
        ``(invariance, redundancy)``, (K,) each: their means over K are the loss's terms. float32 for
        half-precision input, else the dtype of ``z0``.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer, fewer
            than two samples, ``subspace`` is out of range, or the asked backend cannot run.

    Source: Barlow Twins (arXiv 2103.03230), equation 1; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_barlow_twins
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> invariance, redundancy = subspace_barlow_twins(z, z, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
        >>> invariance.round(decimals=4), redundancy.round(decimals=4)
        (tensor([0., 0.]), tensor([2., 0.]))
    """
    check_pairs(z0, z1, masks, subspace)
    distributed = ops.ranks(gather_distributed) > 1
    if not distributed:
        check_min_samples(z0.shape[0], 2, "a standard deviation over the batch needs two")
    num_subspaces = masks.shape[0]
    with no_autocast(z0):
        z0, z1, masks = widen(z0, z1, masks)
        statistics0 = _statistics(z0, distributed, correction=0)
        statistics1 = _statistics(z1, distributed, correction=0, before=statistics0.variance)
        num_samples, squared = statistics0.num_samples, masks.square()
        z0, z1 = _standardise(statistics0), _standardise(statistics1)
        tied = _after(squared, statistics1.variance, distributed)
        redundancy = ops.off_diagonal(z0, z1 / num_samples, tied, distributed, backend)
        if subspace is None:
            diagonal = _total((z0 * z1).sum(dim=0), distributed, before=redundancy) / num_samples
            return squared @ (diagonal - 1).square(), redundancy
        member = select_rows(torch.eye(num_subspaces, dtype=z0.dtype, device=z0.device), subspace)
        totals = torch.cat([member.T @ (z0 * z1), member.sum(dim=0)[:, None]], dim=1)
        totals = _total(totals, distributed, before=redundancy)
        count = totals[:, -1]
        diagonal = totals[:, :-1] / count.clamp_min(1)[:, None]
        invariance = (squared * (diagonal - 1).square()).sum(dim=1)
        return invariance * count * (num_subspaces / num_samples), redundancy


class _Statistics(NamedTuple):
    """Of a batch: samples less their mean (this rank's), (N, D); variance, (D,); the number of samples of all ranks."""

    centred: Tensor
    variance: Tensor
    num_samples: Tensor | int


def _check_moments(z: Tensor, masks: Tensor, gather_distributed: bool) -> bool:
    """Whether other ranks take part; every one of them then brings a sample."""
    check_embedding("z", z)
    check_masks(masks, z)
    distributed = ops.ranks(gather_distributed) > 1
    if not distributed:
        check_min_samples(z.shape[0], 2, "a variance over the batch needs two", name="z")
    return distributed


def _after(x: Tensor, before: Tensor | None, distributed: bool) -> Tensor:
    return x if before is None or not distributed else ops.after(x, before)


def _total(x: Tensor, distributed: bool, before: Tensor | None = None) -> Tensor:
    return ops.all_reduce(_after(x, before, distributed)) if distributed else x


def _statistics(z: Tensor, distributed: bool, correction: int = 1, before: Tensor | None = None) -> _Statistics:
    """In two passes, the mean first: a difference of sums of squares would cancel."""
    num_samples: Tensor | int = len(z)
    mean = z.mean(dim=0)
    if distributed:
        totals = _total(torch.cat([z.sum(dim=0), z.new_full((1,), len(z))]), distributed, before)
        num_samples = totals[-1]
        mean = totals[:-1] / num_samples
    centred = z - mean
    variance = _total(centred.square().sum(dim=0), distributed) / (num_samples - correction)
    return _Statistics(centred, variance, num_samples)


def spread(z0: Tensor, z1: Tensor, distributed: bool, before: Tensor | None) -> Tensor:
    """Variance of every dimension over both views' batches, (D,), as a constant."""
    views = widen(z0.detach(), z1.detach())
    before = None if before is None else before.detach()  # or constants would go round again in the backward pass
    if not distributed:
        variance = torch.stack([z.var(dim=0, correction=0) for z in views])
    else:
        first = _statistics(views[0], True, correction=0, before=before).variance
        variance = torch.stack([first, _statistics(views[1], True, correction=0, before=first).variance])
    return variance.mean(dim=0)


def _hinge(variance: Tensor, masks: Tensor, eps: float) -> Tensor:
    hinge = torch.relu(1 - (masks.square() * variance + eps).sqrt())
    # 0 * inf is NaN: without it an infinite mask would look like a large deviation, and cost nothing.
    return (hinge + 0 * masks).mean(dim=1)


def _covariance(statistics: _Statistics, masks: Tensor, distributed: bool, backend: Backend) -> Tensor:
    scaled = statistics.centred * (statistics.num_samples - 1) ** -0.5
    squared = _after(masks.square(), statistics.variance, distributed)
    return ops.off_diagonal(scaled, None, squared, distributed, backend) / scaled.shape[1]


def _standardise(statistics: _Statistics) -> Tensor:
    return statistics.centred * (statistics.variance + _BATCH_NORM_EPS).rsqrt()
