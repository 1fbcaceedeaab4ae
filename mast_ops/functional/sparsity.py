"""Regularizers of masks as pure functions: each maps (K, D) masks to a scalar to be minimised."""

import math

import torch
from torch import Tensor

from mast_ops._checks import check_dense, check_fraction, check_masks, check_values, values_are_free
from mast_ops._precision import no_autocast, widen

_LOG_EPS = 1e-7  # keeps the slope of x log x finite at an exact 0 or 1
_NORM_EPS = 1e-12


def mask_l1(masks: Tensor) -> Tensor:
    """Mean absolute entry of the masks: the pull towards few, small entries.

    Range 0 (closed masks) to the largest entry. Counteracts masks that stay open everywhere; it also
    shrinks open entries, and alone it closes every mask: pair it with :func:`mask_coverage`.

    Args:
        masks: (K, D), floating point.

    Returns:
        Scalar.

    Raises:
        ValueError, TypeError: ``masks`` is not a non-empty (K, D) floating-point tensor.

    Source: Conditional Similarity Networks (Veit et al. 2017, arXiv 1603.07810) penalises its masks so.

    Example:
        >>> import torch
        >>> from mast_ops.functional import mask_l1
        >>> mask_l1(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor(0.5000)
    """
    check_masks(masks)
    (masks,) = widen(masks)
    return masks.abs().mean()


def mask_hoyer(masks: Tensor) -> Tensor:
    """Hoyer-square of each mask over D, averaged: a density that ignores the mask's scale.

    ``(sum_d |m_kd|)^2 / (D sum_d m_kd^2)``: range 1/D (one open dimension) to 1 (all entries alike); a zero
    mask counts 0. Counteracts spread-out masks without the shrinkage of L1; it does not hold a mask open.

    Args:
        masks: (K, D), floating point.

    Returns:
        Scalar.

    Raises:
        ValueError, TypeError: ``masks`` is not a non-empty (K, D) floating-point tensor.

    Source: DeepHoyer (Yang et al. 2020, arXiv 1908.09979), divided by D (ours).

    Example:
        >>> import torch
        >>> from mast_ops.functional import mask_hoyer
        >>> mask_hoyer(torch.tensor([[3.0, 0.0, 0.0, 0.0]])), mask_hoyer(torch.ones(1, 4))
        (tensor(0.2500), tensor(1.))
    """
    check_masks(masks)
    (masks,) = widen(masks)
    energy = masks.square().sum(dim=1).clamp_min(_NORM_EPS)
    return (masks.abs().sum(dim=1).square() / (masks.shape[1] * energy)).mean()


def mask_expected_l0(open_probability: Tensor) -> Tensor:
    """Expected share of open entries, given the probability that each is open.

    Range 0 to 1. Counteracts open entries however small they are, and leaves the open ones unshrunk.

    Args:
        open_probability: (K, D) in [0, 1], as ``HardConcreteMasks.open_probability()`` gives; an entry outside counts
            as the nearer end.

    Returns:
        Scalar.

    Raises:
        ValueError, TypeError: ``open_probability`` is not a non-empty (K, D) floating-point tensor.

    Source: Louizos et al. 2018 (arXiv 1712.01312), equation 12, divided by K D (ours).

    Example:
        >>> import torch
        >>> from mast_ops.functional import mask_expected_l0
        >>> mask_expected_l0(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor(0.5000)
    """
    check_masks(open_probability, name="open_probability")
    (open_probability,) = widen(open_probability)
    # Signed masks would be paid for without end. 0 * inf is NaN: what is not finite shows.
    return (open_probability.clamp(0, 1) + 0 * open_probability).mean()


def mask_coverage(masks: Tensor, floor: float | Tensor = 0.5) -> Tensor:
    """How far each mask's mean stays under a floor, averaged: ``mean_k relu(floor - mean_d m_kd)``.

    Range 0 (every mask covers the floor) to ``floor`` (all masks closed). Counteracts collapse: a mask that
    only scales an invariance term shrinks until it trains nothing. Only for masks bounded by 1: a ReLU mask
    buys its coverage with a few large entries.

    Args:
        masks: (K, D), floating point, entries in [0, 1].
        floor: Wanted mean entry, 0 to 1: a number, or a scalar tensor, for which nothing is compiled again.

    Returns:
        Scalar.

    Raises:
        ValueError, TypeError: ``masks`` is not a non-empty (K, D) floating-point tensor, or ``floor`` is
            outside 0..1.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import mask_coverage
        >>> mask_coverage(torch.tensor([[1.0, 0.0], [0.0, 0.2]]), floor=0.5)
        tensor(0.2000)
    """
    check_masks(masks)
    if not isinstance(floor, Tensor):
        check_fraction("floor", floor)
    else:
        check_dense("floor", floor)
        if not masks.is_meta:
            check_values("floor", floor)
        if floor.dim() != 0 or not floor.is_floating_point():
            raise TypeError(f"floor: got {floor.dtype} of shape {tuple(floor.shape)}, wanted a floating-point scalar")
        if values_are_free(floor):
            check_fraction("floor", float(floor))
    (masks,) = widen(masks)
    floor = floor.to(masks.dtype) if isinstance(floor, Tensor) else floor
    coverage = masks.mean(dim=1)
    # 0 * inf is NaN: without it an infinite mask would look well covered.
    return (torch.relu(floor - coverage) + 0 * coverage).mean()


def mask_overlap(masks: Tensor) -> Tensor:
    """Mean cosine between the masks of different subspaces.

    Range 0 (disjoint) to 1 (all alike) for non-negative masks; 0 for K = 1. Counteracts subspaces that are
    copies of one another. The paper wants shared dimensions too: a small weight is enough.

    Args:
        masks: (K, D), floating point.

    Returns:
        Scalar.

    Raises:
        ValueError, TypeError: ``masks`` is not a non-empty (K, D) floating-point tensor.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import mask_overlap
        >>> mask_overlap(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]))
        tensor(0.5000)
    """
    check_masks(masks)
    num_subspaces = masks.shape[0]
    with no_autocast(masks):
        (masks,) = widen(masks)
        unit = masks * masks.square().sum(dim=1, keepdim=True).clamp_min(_NORM_EPS).sqrt().reciprocal()
        off_diagonal = 1 - torch.eye(num_subspaces, dtype=masks.dtype, device=masks.device)
        return (unit @ unit.T * off_diagonal).sum() / max(num_subspaces * (num_subspaces - 1), 1)


def mask_entropy(masks: Tensor) -> Tensor:
    """Mean binary entropy of the entries, in bits: how undecided the masks are.

    Range 0 (every entry 0 or 1) to 1 (every entry a half). Counteracts grey masks, whose subspaces are not
    really apart. Entries outside [0, 1] have no entropy and give NaN.

    Args:
        masks: (K, D), floating point, entries in [0, 1].

    Returns:
        Scalar.

    Raises:
        ValueError, TypeError: ``masks`` is not a non-empty (K, D) floating-point tensor.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import mask_entropy
        >>> mask_entropy(torch.tensor([[0.5, 0.5]])).round(decimals=4)
        tensor(1.)
        >>> mask_entropy(torch.tensor([[0.0, 1.0]])).abs().round(decimals=4)
        tensor(0.)
    """
    check_masks(masks)
    (masks,) = widen(masks)
    closed = 1 - masks
    nats = -(masks * (masks + _LOG_EPS).log() + closed * (closed + _LOG_EPS).log())
    return nats.mean() / math.log(2)
