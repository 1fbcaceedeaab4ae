"""Invariance of positive pairs, reweighted by a predicted variance."""

from typing import Literal, get_args

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_alike, check_choice, check_log_variance
from mast_ops._precision import no_autocast, wide, widen
from mast_ops.functional.pairs import (
    COSINE_EPS,
    Reduction,
    check_pairs,
    mean_gap,
    over_ranks,
    pooled_cosine,
    select_rows,
)
from mast_ops.ops import Backend

Distance = Literal["squared", "cosine"]
Granularity = Literal["sample", "subspace", "dimension"]

DISTANCES: tuple[Distance, ...] = get_args(Distance)
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


def combine_log_variance(log_variance0: Tensor, log_variance1: Tensor) -> Tensor:
    """Log-variance of the difference of two independent Gaussians: ``log(exp(a) + exp(b))``, without overflow.

    Args:
        log_variance0: Natural log of the first view's variance, any shape, floating point.
        log_variance1: The same for the second view.

    Returns:
        A tensor of the same shape.

    Raises:
        ValueError: Shapes, dtypes or devices differ.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import combine_log_variance
        >>> combine_log_variance(torch.zeros(2), torch.tensor([0.0, 200.0]))
        tensor([  0.6931, 200.0000])
    """
    check_alike("log_variance1", log_variance1, "log_variance0", log_variance0)
    return torch.logaddexp(log_variance0, log_variance1)


def uncertainty_invariance(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    log_variance: Tensor | None = None,
    subspace: Tensor | None = None,
    distance: Distance = "squared",
    granularity: Granularity | None = None,
    normalize: bool = False,
    reduction: Reduction = "none",
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Masked invariance of every pair, reweighted by the pair's predicted variance.

    Without ``log_variance``, the masked mean-squared error: ``d_ik = mean_d (m_kd (z0_id - z1_id))^2``, or
    one minus the masked cosine. With it, the negative log-likelihood of the masked difference as a Gaussian
    of variance ``v``, each dimension counted by its squared mask::

        mean_d m_kd^2 [ (z0_id - z1_id)^2 / (2 v) + log(v) / 2 ]       squared
        (1 - cos_ik) / (2 v) + log(v) / 2                               cosine

    so that an ambiguous pair counts less, at a price that grows with the doubt. The log counts by the mask as
    a dimension that a subspace leaves out says nothing about its variance.

    The likelihood's pull on an embedding grows without end as its pairs come closer (its weight is 1 / (2 v)),
    which upsets a loss whose other terms are weighted against a mean-squared error; and an ambiguous view is often
    embedded near the mean, where distances are small, so that its variance is small as well. ``normalize`` answers
    both. The variance is then that of the difference *relative* to the two embeddings, less the batch's mean and
    masked, ``r_ik = |m_k (z0_i - z1_i)|^2 / (|m_k z0_i|^2 + |m_k z1_i|^2)``, 0 for a pair that agrees and 1 for one
    that has nothing in common; its likelihood trains the prediction alone, and the prediction only weighs pairs::

        w_ik d_ik + r_ik / v + log(v),    w_ik = (1 / v) / mean_i(1 / v)

    where ``w`` and ``r`` are constants, ``d_ik`` is what there is without ``log_variance``, and the mean is over each
    column of ``log_variance``. With a variance per dimension, the likelihood above is multiplied by twice the batch's
    harmonic mean of ``v`` instead.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D), same dtype and device.
        masks: One mask per subspace, (K, D).
        log_variance: Natural log of the *pair's* variance (see :func:`combine_log_variance`): (N, 1) per
            sample, (N, K) per subspace, or (N, D) per dimension.
        subspace: (N,) int64. With it, sample i counts in subspace ``subspace[i]`` alone.
        distance: ``"squared"`` or ``"cosine"``.
        granularity: What the columns of ``log_variance`` are; by default told from their number, and asked
            for only where K == D > 1 leaves that open.
        normalize: Whether pairs are only weighed against one another, with weights that average 1 over the batch.
        reduction: ``"none"``, or ``"mean"`` over samples and subspaces. A mean of squared distances with no variance,
            or one per dimension, sums over samples before masks act, and costs no more for K than for 1.
        gather_distributed: Whether the mean, and that of the weights with ``normalize``, is over the samples of all
            ranks; see :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"none"``: (N, K), or (N,) with ``subspace``. ``"mean"``: a scalar. float32 for half-precision input, else
        the dtype of ``z0``.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``subspace`` is out of range, a variance per dimension is asked of the cosine, or the asked backend
            cannot run.

    Source: the paper's abstract (arXiv 2303.03679) states that uncertainty reweights ambiguous samples; the
    likelihood is that of Kendall and Gal 2017 (arXiv 1703.04977), and its masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import uncertainty_invariance
        >>> z0, z1, masks = torch.zeros(2, 4), torch.ones(2, 4), torch.ones(1, 4)
        >>> uncertainty_invariance(z0, z1, masks).flatten()
        tensor([1., 1.])
        >>> sure, unsure = torch.tensor([[-2.0], [2.0]])
        >>> uncertainty_invariance(z0, z1, masks, torch.stack([sure, unsure])).flatten()
        tensor([2.6945, 1.0677])
    """
    check_choice("distance", distance, DISTANCES)
    check_choice("reduction", reduction, ("mean", "none"))
    if granularity is not None:
        check_choice("granularity", granularity, GRANULARITIES)
    check_pairs(z0, z1, masks, subspace)
    if log_variance is not None:
        granularity = _resolve_granularity(log_variance, z0, masks, granularity)
        if granularity == "dimension" and distance == "cosine":
            raise ValueError("distance: got 'cosine' with a variance per dimension, wanted 'squared'")
    else:
        granularity = None
    with no_autocast(z0):
        squared = masks.to(wide(z0.dtype)).square()
        scale = None
        if log_variance is not None:
            (log_variance,) = widen(log_variance)
            scale = (
                _harmonic_mean(log_variance, gather_distributed)
                if normalize
                else torch.full_like(log_variance[:1], 0.5)
            )
        if distance == "squared" and granularity in (None, "dimension"):
            if reduction == "mean":
                mean = mean_gap(z0, z1, squared, log_variance, scale, subspace, backend) / z0.shape[1]
                return over_ranks(mean, len(z0), gather_distributed)
            return ops.distance(z0, z1, squared, log_variance, scale, subspace, backend) / z0.shape[1]
        gap = _gap(z0, z1, squared, subspace, distance, backend)
        if log_variance is not None and scale is not None:
            weight = own_column(scale * torch.exp(-log_variance), subspace)
            if normalize:
                doubt = own_column(log_variance, subspace)
                mismatch = _mismatch(scale, z0, z1, squared.detach(), subspace, gather_distributed, backend)
                gap = gap * weight.detach() + mismatch * torch.exp(-doubt) + doubt
            else:
                price = own_column(scale * log_variance, subspace)
                gap = gap * weight + (price * _mass(squared, subspace) if distance == "squared" else price)
        if reduction == "none":
            return gap
        return over_ranks(gap.mean(), len(z0), gather_distributed)


def own_column(x: Tensor, subspace: Tensor | None) -> Tensor:
    """Of an (N, K) or (N, 1) table each sample's own entry, (N,); the table itself without ``subspace``."""
    if subspace is None:
        return x
    column = subspace[:, None] if x.shape[1] > 1 else torch.zeros_like(subspace[:, None])
    return x.gather(1, column).squeeze(1)


def _mismatch(
    before: Tensor,
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    subspace: Tensor | None,
    gather_distributed: bool,
    backend: Backend,
) -> Tensor:
    """Masked squared distance of a pair relative to its squared norms, all less the batch's mean: a constant.

    For ``before`` see :mod:`mast_ops.ops.collectives`.
    """
    z0, z1 = widen(z0.detach(), z1.detach())
    total = torch.cat([z0.sum(dim=0) + z1.sum(dim=0), z0.new_full((1,), 2 * len(z0))])
    if ops.ranks(gather_distributed) > 1:
        total = ops.all_reduce(ops.after(total, before))
    mean = total[:-1] / total[-1]
    dot, norm0, norm1 = ops.products(z0 - mean, z1 - mean, squared, subspace, backend)
    return 1 - 2 * dot / (norm0 + norm1).clamp_min(COSINE_EPS)


def _harmonic_mean(log_variance: Tensor, gather_distributed: bool) -> Tensor:
    """Of the variances in each column, over the batch, as a constant: ``1 / mean(1 / v)``, (1, columns)."""
    precision = torch.exp(-log_variance.detach())
    if ops.ranks(gather_distributed) == 1:
        return precision.mean(dim=0, keepdim=True).reciprocal()
    total = ops.all_reduce(torch.cat([precision.sum(dim=0), precision.new_full((1,), len(precision))]))
    return (total[-1] / total[:-1])[None]


def _gap(
    z0: Tensor, z1: Tensor, squared: Tensor, subspace: Tensor | None, distance: Distance, backend: Backend
) -> Tensor:
    if distance == "cosine":
        return 1 - pooled_cosine(z0, z1, squared, subspace, COSINE_EPS, backend)
    return ops.distance(z0, z1, squared, subspace=subspace, backend=backend) / z0.shape[1]


def _mass(squared: Tensor, subspace: Tensor | None) -> Tensor:
    """Share of the dimensions that a mask lets through, ``mean_d m_kd^2``: (K,), or (N,) with ``subspace``."""
    mass = squared.mean(dim=1)
    return mass if subspace is None else select_rows(mass[:, None], subspace).squeeze(1)


def _resolve_granularity(
    log_variance: Tensor, z: Tensor, masks: Tensor, granularity: Granularity | None
) -> Granularity:
    check_log_variance("log_variance", log_variance, z)
    width = log_variance.shape[1]
    widths: dict[Granularity, int] = {"sample": 1, "subspace": masks.shape[0], "dimension": z.shape[1]}
    fitting = [name for name in widths if widths[name] == width]
    if granularity is None and fitting == ["subspace", "dimension"]:
        raise ValueError(
            f"granularity: got None, wanted 'subspace' or 'dimension': log_variance of shape "
            f"{tuple(log_variance.shape)} fits both K={width} and D={width}"
        )
    if not fitting or (granularity is not None and granularity not in fitting):
        wanted = [f"(N, {widths[name]}) per {name}" for name in widths if granularity in (None, name)]
        raise ValueError(f"log_variance: got shape {tuple(log_variance.shape)}, wanted {' or '.join(wanted)}")
    return granularity or fitting[0]
