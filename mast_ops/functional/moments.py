"""Batch statistics inside every subspace, all K from one set computed once."""

from typing import NamedTuple

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_embedding, check_masks, check_min_samples, check_positive
from mast_ops._precision import no_autocast, widen
from mast_ops.kinds import members
from mast_ops.ops import Backend
from mast_ops.pairs import Pairs
from mast_ops.run import Run

_BATCH_NORM_EPS = 1e-5  # Barlow Twins standardises with torch's batch norm


@ops.raised_by_all
def subspace_variance(z: Tensor, masks: Tensor, *, eps: float = 1e-4, gather_distributed: bool = False) -> Tensor:
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
    run = _run_of("subspace_variance", z, masks, gather_distributed, eps=eps)
    with no_autocast(z):
        z, masks = widen(z, masks)
        return _hinge(_statistics(z, run).variance, masks, eps)


@ops.raised_by_all
def subspace_covariance(
    z: Tensor, masks: Tensor, *, gather_distributed: bool = False, backend: Backend = "auto"
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
    run = _run_of("subspace_covariance", z, masks, gather_distributed, backend)
    with no_autocast(z):
        z, masks = widen(z, masks)
        return _covariance(_statistics(z, run), masks, run)


@ops.raised_by_all
def subspace_moments(
    z: Tensor, masks: Tensor, *, eps: float = 1e-4, gather_distributed: bool = False, backend: Backend = "auto"
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
    check_positive("eps", eps)
    return moments(z, masks, _run_of("subspace_moments", z, masks, gather_distributed, backend, eps=eps), eps)


def moments(z: Tensor, masks: Tensor, run: Run, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """The same, of checked arguments."""
    with no_autocast(z):
        z, masks = widen(z, masks)
        statistics = _statistics(z, run)
        return _hinge(statistics.variance, masks, eps), _covariance(statistics, masks, run)


@ops.raised_by_all
def subspace_barlow_twins(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    kinds: Tensor | None = None,
    kind: Tensor | None = None,
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Barlow Twins' two terms inside every subspace, from one cross-correlation matrix C.

    ``invariance_k = sum_d m_kd^2 (C_dd - 1)^2`` and ``redundancy_k = sum_{i != j} (m_ki m_kj C_ij)^2``.
    Masks act after the standardisation over the batch, which would undo them before it.

    Args:
        z0: Embedding of the first view, (N, D), floating point, N >= 2.
        z1: Embedding of the second view, (N, D), same device; float64 beside float64 alone.
        masks: One mask per subspace, (K, D).
        kinds: Of :func:`mast_ops.functional.masked_distance`.
        kind: Likewise. With it, the invariance is that of each kind of pairs, in which the mask of the kind acts. It
            looks only at the correlations of the kind's own samples (standardised over the whole batch) and counts by
            their share of the batch, so that an absent kind counts nothing. Redundancy has no pairs: it uses every
            mask alone and the whole batch either way.
        gather_distributed: Whether the batch is that of all ranks, as in :func:`subspace_variance`.
        backend: Of :func:`subspace_covariance`.

    Returns:
        ``(invariance, redundancy)``, (K,) each, the first (S,) with ``kind``: their means are the loss's terms. float32
        for input of at most 32 bits, else float64.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer, fewer
            than two samples, ``kind`` is out of range, or the asked backend cannot run.

    Source: Barlow Twins (arXiv 2103.03230), equation 1; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_barlow_twins
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> invariance, redundancy = subspace_barlow_twins(z, z, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
        >>> invariance.round(decimals=4), redundancy.round(decimals=4)
        (tensor([0., 0.]), tensor([2., 0.]))
    """
    pairs = Pairs.of(z0, z1, masks, kinds=kinds, kind=kind)
    run = Run(backend, gather_distributed).of("subspace_barlow_twins", pairs)
    return barlow_twins(pairs, run)


def barlow_twins(pairs: Pairs, run: Run) -> tuple[Tensor, Tensor]:
    """The same, of checked pairs."""
    check_batch(pairs.z0, run, "a standard deviation over the batch needs two")
    with no_autocast(pairs.z0):
        z0, z1, masks = widen(pairs.z0, pairs.z1, pairs.masks)
        statistics0, statistics1 = (_statistics(z, run, correction=0) for z in (z0, z1))
        num_samples, rows, kind = statistics0.num_samples, pairs.rows().square(), pairs.kind
        z0, z1 = _standardise(statistics0), _standardise(statistics1)
        redundancy = _off_diagonal(z0, z1 / num_samples, masks.square(), run)
        if kind is None:
            diagonal = run.total((z0 * z1).sum(dim=0)) / num_samples
            return rows @ (diagonal - 1).square(), redundancy
        member = members(kind, len(rows)).to(z0.dtype)
        totals = run.total(torch.cat([member.T @ (z0 * z1), member.sum(dim=0)[:, None]], dim=1))
        count = totals[:, -1]
        diagonal = totals[:, :-1] / count.clamp_min(1)[:, None]
        invariance = (rows * (diagonal - 1).square()).sum(dim=1)
        return invariance * count * (len(rows) / num_samples), redundancy


def spread(z0: Tensor, z1: Tensor, run: Run) -> Tensor:
    """Variance of every dimension over both views' batches, (D,), as a constant."""
    views = widen(z0.detach(), z1.detach())
    return torch.stack([_statistics(z, run, correction=0).variance for z in views]).mean(dim=0)


def check_batch(z: Tensor, run: Run, why: str = "a variance over the batch needs two", name: str = "z0") -> None:
    """At least two samples; over ranks every one of them brings at least one."""
    if not run.distributed:
        check_min_samples(len(z), 2, why, name=name)


class _Statistics(NamedTuple):
    """Of a batch: samples less their mean (this rank's), (N, D); variance, (D,); the number of samples of all ranks."""

    centred: Tensor
    variance: Tensor
    num_samples: Tensor | int


def _run_of(
    function: str,
    z: Tensor,
    masks: Tensor,
    gather_distributed: bool,
    backend: Backend = "auto",
    *,
    eps: float | None = None,
) -> Run:
    check_embedding("z", z)
    check_masks(masks, z)
    run = Run(backend, gather_distributed).of(function, Pairs(z, z, masks), None if eps is None else {"eps": eps})
    check_batch(z, run, name="z")
    return run


def _statistics(z: Tensor, run: Run, correction: int = 1) -> _Statistics:
    """In two passes, the mean first: a difference of sums of squares would cancel."""
    num_samples: Tensor | int = len(z)
    mean = z.mean(dim=0)
    if run.distributed:
        totals = run.total(torch.cat([z.sum(dim=0), z.new_full((1,), len(z))]))
        num_samples = totals[-1]
        mean = totals[:-1] / num_samples
    centred = z - mean
    variance = run.total(centred.square().sum(dim=0)) / (num_samples - correction)
    return _Statistics(centred, variance, num_samples)


def _hinge(variance: Tensor, masks: Tensor, eps: float | Tensor) -> Tensor:
    eps = eps.to(variance.dtype) if isinstance(eps, Tensor) else eps
    hinge = torch.relu(1 - (masks.square() * variance + eps).sqrt())
    # 0 * inf is NaN: without it an infinite mask would look like a large deviation, and cost nothing.
    return (hinge + 0 * masks).mean(dim=1)


def _covariance(statistics: _Statistics, masks: Tensor, run: Run) -> Tensor:
    scaled = statistics.centred * (statistics.num_samples - 1) ** -0.5
    return _off_diagonal(scaled, None, masks.square(), run) / scaled.shape[1]


def _off_diagonal(x: Tensor, y: Tensor | None, squared: Tensor, run: Run) -> Tensor:
    return run.told(ops.off_diagonal(x, y, run.tied(squared, x, y), run.distributed, run.backend))


def _standardise(statistics: _Statistics) -> Tensor:
    return statistics.centred * (statistics.variance + _BATCH_NORM_EPS).sqrt().reciprocal()
