"""Positive pairs: masked distances and cosines in all K subspaces, or in the subspace of each pair."""

from typing import Literal

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_choice, check_positive
from mast_ops._precision import no_autocast
from mast_ops.ops import Backend, Gap, Table
from mast_ops.pairs import Pairs
from mast_ops.run import Run

COSINE_EPS = 1e-8  # that of torch.nn.functional.cosine_similarity

Reduction = Literal["mean", "none"]
REDUCTIONS = ("mean", "none")


@ops.raised_by_all
def masked_distance(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    kinds: Tensor | None = None,
    kind: Tensor | None = None,
    reduction: Reduction = "none",
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    r"""Squared distance of every pair inside every subspace: ``d_ik = sum_d (m_kd (z0_id - z1_id))^2``.

    All K come from one (N, D) x (D, K) product; nothing of size N x K x D exists.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D), same device; float64 beside float64 alone.
        masks: One mask per subspace, (K, D); zeros drop a dimension, the sign of an entry does not matter.
        kinds: (S, K) bool: which augmentations differ in pairs of each kind. Default: one at a time, ``eye(K)``.
        kind: (N,) int64, a row of ``kinds``. With it, pair i is measured where the masks of all that differs in it are
            open, at the price of one subspace. Default: in every mask alone.
        reduction: ``"none"``, or ``"mean"`` over samples and subspaces: then samples are summed before masks
            act, and all K cost no more than one.
        gather_distributed: Whether the mean is over the samples of all ranks; see
            :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"none"``: (N, K), or (N,) with ``kind``. ``"mean"``: a scalar. float64 for float64 input, else
        float32.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``kind`` holds an index that is no row of ``kinds``, or the asked backend cannot run.

    Source: ours; the paper's abstract (arXiv 2303.03679) states masks that select dimensions, no equation.

    Example:
        >>> import torch
        >>> from mast_ops.functional import masked_distance
        >>> z0, z1 = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
        >>> masks = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> masked_distance(z0, z1, masks)
        tensor([[5., 9.],
                [0., 1.]])
        >>> masked_distance(z0, z1, masks, kind=torch.tensor([0, 1]))
        tensor([5., 1.])
        >>> both = torch.tensor([[True, True]])  # one kind of pair, in which both augmentations differ
        >>> masked_distance(z0, z1, masks, kinds=both, kind=torch.tensor([0, 0]))
        tensor([0., 0.])
    """
    check_choice("reduction", reduction, REDUCTIONS)
    pairs = Pairs.of(z0, z1, masks, kinds=kinds, kind=kind)
    run = Run(backend, gather_distributed).of("masked_distance", pairs, reduction=reduction)
    with no_autocast(pairs.z0):
        gap, table = Gap(pairs.z0, pairs.z1), pairs.table()
        if reduction == "none":
            return ops.distance(gap, table, run.backend)
        return run.mean(mean_gap(gap, table, run), len(z0))


@ops.raised_by_all
def masked_cosine_similarity(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    kinds: Tensor | None = None,
    kind: Tensor | None = None,
    eps: float = COSINE_EPS,
    reduction: Reduction = "none",
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Cosine similarity of ``m_k * z0_i`` and ``m_k * z1_i`` for every pair and subspace.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D), same device; float64 beside float64 alone.
        masks: One mask per subspace, (K, D).
        kinds: Of :func:`masked_distance`.
        kind: Likewise.
        eps: Each norm counts as at least this, so that a zero mask or embedding gives 0 with a zero
            gradient; 1e-8 is the default of ``torch.nn.functional.cosine_similarity``.
        reduction: ``"none"``, or ``"mean"`` over samples and subspaces.
        gather_distributed: Whether the mean is over the samples of all ranks; see
            :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"none"``: (N, K), or (N,) with ``kind``. ``"mean"``: a scalar. float64 for float64 input, else
        float32.

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
    check_choice("reduction", reduction, REDUCTIONS)
    pairs = Pairs.of(z0, z1, masks, kinds=kinds, kind=kind)
    run = Run(backend, gather_distributed).of("masked_cosine_similarity", pairs, {"eps": eps}, reduction=reduction)
    cosine = cosine_of_pairs(pairs, run, eps)
    return cosine if reduction == "none" else run.mean(cosine.mean(), len(z0))


def mean_gap(gap: Gap, table: Table, run: Run) -> Tensor:
    """Mean over this rank's samples, and over the rows that each of them reads, of a masked distance.

    Samples are summed before masks act: all rows cost no more than one.
    """
    sums = ops.gap_sums(gap, len(table.masks), table.row, run.backend)
    total = (table.squared * sums).sum() / len(gap.z0)
    return total / len(table.masks) if table.row is None else total


def cosine_of_pairs(pairs: Pairs, run: Run, eps: float | Tensor = COSINE_EPS) -> Tensor:
    """Masked cosine of every pair: (N, K), or (N,) with kinds of pairs."""
    with no_autocast(pairs.z0):
        dot, norm0, norm1 = ops.products(pairs.z0, pairs.z1, pairs.table(), run.backend)
        return dot * _inverse_norm(norm0, eps) * _inverse_norm(norm1, eps)


def cosine_distance_of_pairs(pairs: Pairs, run: Run, eps: float = COSINE_EPS) -> Tensor:
    """One minus the masked cosine of every pair, with its digits where views are near: 0 for views that are equal.

    ``(|x - y|^2 - (|x| - |y|)^2) / (2 |x| |y|)``: the difference is taken before the products.
    """
    with no_autocast(pairs.z0):
        table = pairs.table()
        dot, norm0, norm1 = ops.products(pairs.z0, pairs.z1, table, run.backend)
        length0, length1 = _length(norm0, eps), _length(norm1, eps)
        inverse0, inverse1 = length0.reciprocal(), length1.reciprocal()
        gap = ops.distance(Gap(pairs.z0, pairs.z1), table, run.backend)
        near = (gap - (length0 - length1).square()) * inverse0 * inverse1 / 2
        # Of views far apart in length it would be the difference of two large numbers.
        is_near = (gap * inverse0 * inverse1 < 0.5) & (norm0 >= eps * eps) & (norm1 >= eps * eps)
        return torch.where(is_near, near, 1 - dot * inverse0 * inverse1)


def _length(squared_norm: Tensor, eps: float | Tensor) -> Tensor:
    """``max(norm, eps)``, with the zero gradient below eps that a bare square root does not have."""
    least = eps * eps
    if isinstance(least, Tensor):
        least = least.to(squared_norm.dtype)
    return torch.where(squared_norm < least, least, squared_norm).sqrt()


def _inverse_norm(squared_norm: Tensor, eps: float | Tensor) -> Tensor:
    """No rsqrt: its gradient is made of the result's cube, which a float32 does not hold for norms above 1e12."""
    return _length(squared_norm, eps).reciprocal()
