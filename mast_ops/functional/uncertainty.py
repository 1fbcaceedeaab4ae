"""Invariance of positive pairs, reweighted by a predicted variance."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_alike, check_choice, check_flag, check_floats
from mast_ops._precision import exact, largest_exponent, no_autocast, widen
from mast_ops.functional.distance import REDUCTIONS, Reduction, cosine_distance_of_pairs, mean_gap
from mast_ops.kinds import members
from mast_ops.ops import Backend, Gap, Table
from mast_ops.pairs import Granularity, Pairs, Uncertainty
from mast_ops.run import Run

Distance = Literal["squared", "cosine"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)


def combine_log_variance(log_variance0: Tensor, log_variance1: Tensor) -> Tensor:
    """Log-variance of the difference of two independent Gaussians: ``log(exp(a) + exp(b))``, without overflow.

    Args:
        log_variance0: Natural log of the first view's variance, any shape, floating point.
        log_variance1: The same for the second view.

    Returns:
        A tensor of the same shape, float32 for half precision.

    Raises:
        ValueError: Shapes, dtypes or devices differ.
        TypeError: One of them is no dense floating-point tensor.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import combine_log_variance
        >>> combine_log_variance(torch.zeros(2), torch.tensor([0.0, 200.0]))
        tensor([  0.6931, 200.0000])
    """
    for name, log_variance in (("log_variance0", log_variance0), ("log_variance1", log_variance1)):
        check_floats(name, log_variance)
    check_alike("log_variance1", log_variance1, "log_variance0", log_variance0)
    return torch.logaddexp(*widen(log_variance0, log_variance1))


@ops.raised_by_all
def uncertainty_invariance(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    kinds: Tensor | None = None,
    kind: Tensor | None = None,
    log_variance: Tensor | None = None,
    granularity: Granularity | None = None,
    distance: Distance = "squared",
    normalize: bool = False,
    reduction: Reduction = "none",
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Masked invariance of every pair, reweighted by the pair's predicted variance.

    Without ``log_variance``, the masked mean-squared error: ``d_ik = mean_d (m_kd (z0_id - z1_id))^2``, or
    one minus the masked cosine. With it, the negative log-likelihood of the masked difference as a Gaussian
    of variance ``v``, each dimension counted by its squared mask::

        mean_d [ m_kd^2 (z0_id - z1_id)^2 / (2 v) + min(m_kd^2, 1) log(v) / 2 ]       squared
        (1 - cos_ik) / (2 v) + log(v) / 2                                              cosine

    so that an ambiguous pair counts less, at a price that grows with the doubt. The log counts by the mask as
    a dimension that a subspace leaves out says nothing about its variance. Beyond 1 a mask only scales, as a Gaussian's
    own units do: were it to multiply the log as well, masks that grow would be paid for without end.

    The likelihood's pull on an embedding grows without end as its pairs come closer (its weight is 1 / (2 v)),
    which upsets a loss whose other terms are weighted against a mean-squared error; and an ambiguous view is often
    embedded near the mean, where distances are small, so that its variance is small as well. ``normalize`` answers
    both. The variance is then that of the difference *relative* to the two embeddings, less the batch's mean and
    masked, ``r_ik = |m_k (z0_i - z1_i)|^2 / (|m_k z0_i|^2 + |m_k z1_i|^2)``, 0 for a pair that agrees and 1 for one
    that has nothing in common; its likelihood trains the prediction alone, and the prediction only weighs pairs::

        w_ik d_ik + r_ik / v + log(v),    w_ik = (1 / v) / mean_i(1 / v)

    where ``w`` and ``r`` are constants, ``d_ik`` is what there is without ``log_variance``, and the mean is over the
    batch, for each subspace, or each kind of pair, apart. With a variance per dimension, the likelihood above is
    multiplied by twice the batch's harmonic mean of ``v`` instead.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D), same device; float64 beside float64 alone.
        masks: One mask per subspace, (K, D).
        kinds: Of :func:`mast_ops.functional.masked_distance`.
        kind: Likewise.
        log_variance: Natural log of the *pair's* variance (see :func:`combine_log_variance`): (N, 1) per
            sample, (N, K) per subspace, or (N, D) per dimension. What differs in a pair adds up: the variance of a
            kind is the sum of those of its subspaces.
        granularity: What the columns of ``log_variance`` are, ``"sample"``, ``"subspace"`` or ``"dimension"``: given
            together with it, since K and D may be alike.
        distance: ``"squared"`` or ``"cosine"``.
        normalize: Whether pairs are only weighed against one another, with weights that average 1 over the batch.
        reduction: ``"none"``, or ``"mean"`` over samples and subspaces. A mean of squared distances with no variance,
            or one per dimension, sums over samples before masks act, and costs no more for K than for 1.
        gather_distributed: Whether the mean, and that of the weights with ``normalize``, is over the samples of all
            ranks; see :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"none"``: (N, K), or (N,) with ``kind``. ``"mean"``: a scalar. float64 for float64 input, else
        float32.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``kind`` is out of range, one of ``log_variance`` and ``granularity`` is missing, a variance per dimension
            is asked of the cosine, or the asked backend cannot run.

    Source: the paper's abstract (arXiv 2303.03679) states that uncertainty reweights ambiguous samples; the
    likelihood is that of Kendall and Gal 2017 (arXiv 1703.04977), and its masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import uncertainty_invariance
        >>> z0, z1, masks = torch.zeros(2, 4), torch.ones(2, 4), torch.ones(1, 4)
        >>> uncertainty_invariance(z0, z1, masks).flatten()
        tensor([1., 1.])
        >>> doubt = torch.tensor([[-2.0], [2.0]])
        >>> uncertainty_invariance(z0, z1, masks, log_variance=doubt, granularity="sample").flatten()
        tensor([2.6945, 1.0677])
    """
    check_choice("distance", distance, DISTANCES)
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("normalize", normalize)
    if (log_variance is None) != (granularity is None):
        missing, given = ("granularity", "log_variance") if granularity is None else ("log_variance", "granularity")
        raise ValueError(f"{missing}: got None beside {given}, wanted both or neither")
    uncertainty = None if log_variance is None or granularity is None else Uncertainty(log_variance, granularity)
    pairs = Pairs.of(z0, z1, masks, kinds=kinds, kind=kind, uncertainty=uncertainty)
    run = Run(backend, gather_distributed).of(
        "uncertainty_invariance", pairs, distance=distance, normalize=normalize, reduction=reduction
    )
    return invariance(pairs, run, distance=distance, normalize=normalize, reduction=reduction)


def invariance(
    pairs: Pairs, run: Run, *, distance: Distance = "squared", normalize: bool = False, reduction: Reduction = "mean"
) -> Tensor:
    """The same, of checked pairs."""
    per_dimension = pairs.uncertainty is not None and pairs.uncertainty.granularity == "dimension"
    if per_dimension and distance == "cosine":
        raise ValueError("distance: got 'cosine' with a variance per dimension, wanted 'squared'")
    with no_autocast(pairs.z0):
        if distance == "squared" and (per_dimension or pairs.uncertainty is None):
            return _squared(pairs, run, normalize, reduction)
        losses = cosine_distance_of_pairs(pairs, run) if distance == "cosine" else _squared(pairs, run)
        log_variance = pairs.log_variance()
        if log_variance is not None and normalize:
            doubt = own_column(log_variance, pairs.kind)
            scale = _log_harmonic_mean(log_variance, run)
            weight = torch.exp(own_column(scale - log_variance.detach(), pairs.kind))
            losses = losses * weight + _over_variance(_mismatch(pairs, run), doubt) + doubt
        elif log_variance is not None:
            doubt = own_column(log_variance, pairs.kind)
            price = doubt * _mass(pairs) if distance == "squared" else doubt
            losses = (_over_variance(losses, doubt) + price) / 2
        return losses if reduction == "none" else run.mean(losses.mean(), len(pairs.z0))


def pair_weights(pairs: Pairs, run: Run) -> Tensor | None:
    """How much each pair counts, (N,) of known kinds, a constant that averages about 1 over the pairs of a kind.

    None where all count alike, or have a variance per dimension.
    """
    if pairs.uncertainty is None or pairs.uncertainty.granularity == "dimension":
        return None
    log_variance = pairs.log_variance()
    assert log_variance is not None
    log_variance = log_variance.detach()
    return torch.exp(own_column(_log_harmonic_mean(log_variance, run) - log_variance, pairs.kind))


def weighted_mean(losses: Tensor, weight: Tensor | None, run: Run) -> Tensor:
    """Over pairs, and over subspaces where there are several columns; None: all alike."""
    return run.mean((losses if weight is None else losses * weight).mean(), len(losses))


def weighted_invariance(pairs: Pairs, run: Run, *, distance: Distance = "squared", normalize: bool = False) -> Tensor:
    """:func:`invariance`; with a weight of each pair, that of the bare distances, by it and by no likelihood."""
    if pairs.weight is None:
        return invariance(pairs, run, distance=distance, normalize=normalize)
    losses = invariance(pairs._replace(uncertainty=None), run, distance=distance, reduction="none")
    return weighted_mean(losses, pairs.weight, run)


def _squared(pairs: Pairs, run: Run, normalize: bool = False, reduction: Reduction = "none") -> Tensor:
    """Masked mean-squared error, or, with a variance per dimension, the likelihood."""
    gap, table = Gap(pairs.z0, pairs.z1), pairs.table()
    if pairs.uncertainty is not None and pairs.uncertainty.granularity == "dimension":
        log_variance = pairs.log_variance()
        assert log_variance is not None
        shared = _log_harmonic_mean(log_variance, run) if normalize else None
        return _likelihood(gap, table, run, (log_variance, shared), reduction) / pairs.z0.shape[1]
    if reduction == "none":
        return ops.distance(gap, table, run.backend) / pairs.z0.shape[1]
    return run.mean(mean_gap(gap, table, run) / pairs.z0.shape[1], len(pairs.z0))


def _likelihood(gap: Gap, table: Table, run: Run, doubt: tuple[Tensor, Tensor | None], reduction: Reduction) -> Tensor:
    """The likelihood per dimension, or twice that times a variance that all samples share; ``doubt``: both logarithms.

    The log counts by the squared mask, but at most once. Operators are told variances relative to the shared one, so
    that what weighs a difference neither overflows nor vanishes on the way.
    """
    log_variance, shared = doubt
    scale = torch.full_like(log_variance[:1], 0.5 if shared is None else 1)
    price = 0.5 * log_variance if shared is None else shared.exp() * log_variance
    price = _pooled(price, table.squared.clamp_max(1), table.row, reduction)
    gap = gap._replace(log_variance=log_variance if shared is None else log_variance - shared, scale=scale)
    if reduction == "none":
        return ops.distance(gap, table, run.backend) + price
    return run.mean(mean_gap(gap, table, run) + price, len(gap.z0))


def _pooled(x: Tensor, weight: Tensor, row: Tensor | None, reduction: Reduction) -> Tensor:
    """``sum_d weight_rd x_id``, as operators pool a gap; or its mean over this rank's samples and what each reads."""
    if reduction == "none":
        return x @ weight.T if row is None else (x * weight[row]).sum(1)
    if row is None:
        return (x.mean(0) * weight).sum() / len(weight)
    return (members(row, len(weight)).to(x.dtype).T @ x * weight).sum() / len(x)


def own_column(x: Tensor, row: Tensor | None) -> Tensor:
    """Of an (N, R) or (N, 1) table each sample's own entry, (N,); the table itself without ``row``."""
    if row is None:
        return x
    return x.gather(1, row[:, None]).squeeze(1) if x.shape[1] > 1 else x.squeeze(1)


def _over_variance(x: Tensor, log_variance: Tensor) -> Tensor:
    """``x / v``, in two steps: 0 over a tiny variance stays 0, and what fits a float does not overflow on the way."""
    half = torch.exp((-log_variance / 2).clamp_max(largest_exponent(log_variance.dtype)))
    # No distance has no gradient: not even where one over the variance is beyond a float, and 0 * inf would be NaN.
    half = torch.where((x == 0) & (half * half).isinf(), 1, half)
    return x * half * half


def _mismatch(pairs: Pairs, run: Run) -> Tensor:
    """Masked squared distance of a pair relative to its squared norms, all less the batch's mean: a constant.

    The difference is taken first: ``1 - 2 dot / norms`` would lose what near views differ in.
    """
    z0, z1 = widen(pairs.z0.detach(), pairs.z1.detach())
    total = run.total(torch.cat([z0.sum(dim=0) + z1.sum(dim=0), z0.new_full((1,), 2 * len(z0))]))
    mean = total[:-1] / total[-1]
    table = pairs.table()
    table = table._replace(masks=table.masks.detach())
    _, norm0, norm1 = ops.products(z0 - mean, z1 - mean, table, run.backend)
    norms = norm0 + norm1
    return ops.distance(Gap(z0, z1), table, run.backend) / torch.where(norms == 0, 1, norms)


def _log_harmonic_mean(log_variance: Tensor, run: Run) -> Tensor:
    """Log of the harmonic mean over the batch of the variances in each column, (1, columns), a constant."""
    log_sum = torch.logsumexp(-log_variance.detach(), dim=0, keepdim=True)
    if not run.distributed:
        return math.log(len(log_variance)) - log_sum
    sums = exact(log_sum).exp()
    total = run.total(torch.cat([sums, torch.full_like(sums[:, :1], len(log_variance))], dim=1))
    return (total[:, -1:].log() - total[:, :-1].log()).to(log_variance.dtype).to(log_variance.device)


def _mass(pairs: Pairs) -> Tensor:
    """Share of the dimensions that a pair is seen through, ``mean_d min(m_kd^2, 1)``: (K,), or (N,) with ``kind``."""
    table = pairs.table()
    squared, row = table.squared, table.row
    mass = (squared - torch.relu(squared - 1)).mean(dim=1)
    return mass if row is None else mass[row]
