"""Positive pairs: masked distances and cosines in all K subspaces, or in one subspace per sample."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_choice, check_masks, check_positive, check_subspace, check_views
from mast_ops._precision import no_autocast, wide
from mast_ops.ops import Backend

COSINE_EPS = 1e-8  # that of torch.nn.functional.cosine_similarity


Reduction = Literal["mean", "none"]


def masked_distance(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    subspace: Tensor | None = None,
    reduction: Reduction = "none",
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    r"""Squared distance of every pair inside every subspace: ``d_ik = sum_d (m_kd (z0_id - z1_id))^2``.

    All K come from one (N, D) x (D, K) product; nothing of size N x K x D exists.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D), same dtype and device.
        masks: One mask per subspace, (K, D); zeros drop a dimension, the sign of an entry does not matter.
        subspace: (N,) int64. With it, sample i is measured in subspace ``subspace[i]`` alone, at the price
            of one subspace.
        reduction: ``"none"``, or ``"mean"`` over samples and subspaces: then samples are summed before masks
            act, and all K cost no more than one.
        gather_distributed: Whether the mean is over the samples of all ranks; see
            :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"none"``: (N, K), or (N,) with ``subspace``. ``"mean"``: a scalar. float32 for half-precision input, else
        the dtype of ``z0``.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``subspace`` holds an index outside 0..K-1, or the asked backend cannot run.

    Source: ours; the paper's abstract (arXiv 2303.03679) states masks that select dimensions, no equation.

    Example:
        >>> import torch
        >>> from mast_ops.functional import masked_distance
        >>> z0, z1 = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
        >>> masks = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> masked_distance(z0, z1, masks)
        tensor([[5., 9.],
                [0., 1.]])
        >>> masked_distance(z0, z1, masks, subspace=torch.tensor([0, 1]))
        tensor([5., 1.])
    """
    check_choice("reduction", reduction, ("mean", "none"))
    check_pairs(z0, z1, masks, subspace)
    with no_autocast(z0):
        squared = masks.to(wide(z0.dtype)).square()
        if reduction == "mean":
            mean = mean_gap(z0, z1, squared, None, None, subspace, backend)
            return over_ranks(mean, len(z0), gather_distributed)
        return ops.distance(z0, z1, squared, subspace=subspace, backend=backend)


def masked_cosine_similarity(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    subspace: Tensor | None = None,
    eps: float = COSINE_EPS,
    reduction: Reduction = "none",
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Cosine similarity of ``m_k * z0_i`` and ``m_k * z1_i`` for every pair and subspace.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D), same dtype and device.
        masks: One mask per subspace, (K, D).
        subspace: (N,) int64. With it, sample i is compared in subspace ``subspace[i]`` alone.
        eps: Each norm counts as at least this, so that a zero mask or embedding gives 0 with a zero
            gradient; 1e-8 is the default of ``torch.nn.functional.cosine_similarity``.
        reduction: ``"none"``, or ``"mean"`` over samples and subspaces.
        gather_distributed: Whether the mean is over the samples of all ranks; see
            :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"none"``: (N, K), or (N,) with ``subspace``. ``"mean"``: a scalar. float32 for half-precision input, else
        the dtype of ``z0``.

    Raises:
        ValueError, TypeError: As for :func:`masked_distance`, or ``eps`` is not positive.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import masked_cosine_similarity
        >>> z0, z1 = torch.tensor([[1.0, 1.0, 5.0]]), torch.tensor([[1.0, 1.0, -5.0]])
        >>> masked_cosine_similarity(z0, z1, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).round(decimals=4)
        tensor([[ 1., -1.]])
    """
    check_positive("eps", eps)
    check_choice("reduction", reduction, ("mean", "none"))
    check_pairs(z0, z1, masks, subspace)
    with no_autocast(z0):
        cosine = pooled_cosine(z0, z1, masks.to(wide(z0.dtype)).square(), subspace, eps, backend)
        return cosine if reduction == "none" else over_ranks(cosine.mean(), len(z0), gather_distributed)


def check_pairs(z0: Tensor, z1: Tensor, masks: Tensor, subspace: Tensor | None) -> None:
    check_views(z0, z1)
    check_masks(masks, z0)
    if subspace is not None:
        check_subspace(subspace, z0.shape[0], masks.shape[0], z0.device)


def over_ranks(mean: Tensor, num_samples: int, gather_distributed: bool) -> Tensor:
    """A mean over this rank's samples as it is, or over those of all ranks."""
    return ops.mean_over_ranks(mean, num_samples) if ops.ranks(gather_distributed) > 1 else mean


def mean_gap(
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    log_variance: Tensor | None,
    scale: Tensor | None,
    subspace: Tensor | None,
    backend: Backend,
) -> Tensor:
    """Mean over samples, and over subspaces unless each sample has its own, of a masked distance."""
    sums = ops.gap_sums(z0, z1, len(squared), log_variance, scale, subspace, backend)
    if subspace is None:
        return (squared * sums).sum() / (len(z0) * len(squared))
    return (squared * sums).sum() / len(z0)


def pooled_cosine(
    z0: Tensor, z1: Tensor, squared: Tensor, subspace: Tensor | None, eps: float, backend: Backend
) -> Tensor:
    dot, norm0, norm1 = ops.products(z0, z1, squared, subspace, backend)
    return dot * inverse_norm(norm0, eps) * inverse_norm(norm1, eps)


def select_rows(table: Tensor, subspace: Tensor) -> Tensor:
    """Row ``subspace[i]`` of a (K, ...) table for each sample; unlike indexing, refuses negative indices."""
    return F.embedding(subspace, table)


def inverse_norm(squared_norm: Tensor, eps: float) -> Tensor:
    """``1 / max(norm, eps)``, with the zero gradient below eps that a bare square root does not have."""
    return squared_norm.clamp_min(eps * eps).rsqrt()
