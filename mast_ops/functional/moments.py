"""Batch statistics inside every subspace, all K from one set computed once."""

import torch
from torch import Tensor

from mast_ops._checks import check_embedding, check_masks, check_min_samples, check_positive
from mast_ops.functional._precision import no_autocast, widen
from mast_ops.functional.pairs import check_pairs, select_rows

_BATCH_NORM_EPS = 1e-5  # Barlow Twins standardises with torch's batch norm


def subspace_variance(z: Tensor, masks: Tensor, eps: float = 1e-4) -> Tensor:
    """VICReg's variance hinge inside every subspace: ``mean_d relu(1 - sqrt(m_kd^2 var(z_d) + eps))``.

    Exactly the hinge of the masked embedding ``z * m_k``, from one variance of z. A mask of ones gives
    VICReg's own term.

    Args:
        z: Embedding, (N, D), floating point, N >= 2.
        masks: One mask per subspace, (K, D).
        eps: Under the square root, so that a collapsed dimension has a gradient; VICReg's default.

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
    _check_moments(z, masks)
    with no_autocast(z):
        z, masks = widen(z, masks)
        hinge = torch.relu(1 - (masks.square() * z.var(dim=0) + eps).sqrt())
        # 0 * inf is NaN: without it an infinite mask would look like a large deviation, and cost nothing.
        return (hinge + 0 * masks).mean(dim=1)


def subspace_covariance(z: Tensor, masks: Tensor) -> Tensor:
    """VICReg's covariance term inside every subspace: ``sum_{i != j} (m_ki m_kj C_ij)^2 / D``.

    Exactly the term of the masked embedding ``z * m_k``, from one covariance matrix C.

    Args:
        z: Embedding, (N, D), floating point, N >= 2.
        masks: One mask per subspace, (K, D).

    Returns:
        (K,). float32 for half-precision input, else the dtype of ``z``.

    Raises:
        ValueError, TypeError: Shapes, dtypes or devices disagree, or fewer than two samples.

    Source: VICReg (arXiv 2105.04906), equations 3 and 4; the shared-statistics form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_covariance
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> subspace_covariance(z, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([0., 4.])
    """
    _check_moments(z, masks)
    with no_autocast(z):
        z, masks = widen(z, masks)
        centred = z - z.mean(dim=0)
        covariance = centred.T @ centred / (z.shape[0] - 1)
        return _off_diagonal(covariance, masks) / z.shape[1]


def subspace_barlow_twins(
    z0: Tensor, z1: Tensor, masks: Tensor, subspace: Tensor | None = None
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

    Returns:
        ``(invariance, redundancy)``, (K,) each: their means over K are the loss's terms. float32 for
        half-precision input, else the dtype of ``z0``.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer, fewer
            than two samples, or ``subspace`` is out of range.

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
    check_min_samples(z0.shape[0], 2, "a standard deviation over the batch needs two")
    num_samples, num_subspaces = z0.shape[0], masks.shape[0]
    with no_autocast(z0):
        z0, z1, masks = widen(z0, z1, masks)
        z0, z1 = _standardise(z0), _standardise(z1)
        correlation = z0.T @ z1 / num_samples
        redundancy = _off_diagonal(correlation, masks)
        squared = masks.square()
        if subspace is None:
            return squared @ (correlation.diagonal() - 1).square(), redundancy
        member = select_rows(torch.eye(num_subspaces, dtype=z0.dtype, device=z0.device), subspace)
        count = member.sum(dim=0)
        diagonal = member.T @ (z0 * z1) / count.clamp_min(1)[:, None]
        invariance = (squared * (diagonal - 1).square()).sum(dim=1)
        return invariance * count * (num_subspaces / num_samples), redundancy


def _check_moments(z: Tensor, masks: Tensor) -> None:
    check_embedding("z", z)
    check_masks(masks, z)
    check_min_samples(z.shape[0], 2, "a variance over the batch needs two", name="z")


def _standardise(z: Tensor) -> Tensor:
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    return (z - mean) * (variance + _BATCH_NORM_EPS).rsqrt()


def _off_diagonal(matrix: Tensor, masks: Tensor) -> Tensor:
    """``sum_{i != j} (m_ki m_kj matrix_ij)^2`` for every k.

    The diagonal is multiplied by zero, not overwritten: a NaN on it must stay one. It is not subtracted
    from the full sum either: that would cancel.
    """
    squared = masks.square()
    off = matrix.square() * (1 - torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device))
    return ((squared @ off) * squared).sum(dim=1)
