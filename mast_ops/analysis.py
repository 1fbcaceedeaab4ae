"""What the masks and the predicted uncertainty say about the augmentations: pure functions on tensors.

The paper (arXiv 2303.03679, abstract) reports how augmentations relate and that uncertainty reflects learning
difficulty; the measures here are ours. A subspace weighs dimension d by m_kd squared, so the sign of a mask
value has no meaning and magnitudes count throughout.

Results carry no gradient, are on the input's device, and are float32, or float64 where an input is. NaN or
infinity gives NaN where a result can hold it, and a ValueError where not (bool, a bin): a GPU synchronises.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mast_ops._checks import check_count, check_dense, check_fraction, check_masks, check_values
from mast_ops._precision import exact


class ClosingSets(NamedTuple):
    """Every dimension is closed by exactly one set of masks: by none of them, by one, or by several."""

    sets: Tensor  # (M, K) bool: which masks are in the set
    dimensions: Tensor  # (M,) int64, >= 1: how many dimensions just these masks close

    @property
    def closed(self) -> Tensor:
        """(K,) int64: how many dimensions each mask closes."""
        return (self.sets * self.dimensions[:, None]).sum(dim=0)

    @property
    def closed_alone(self) -> Tensor:
        """(K,) int64: how many of them no other mask closes."""
        alone = self.sets.sum(dim=1) == 1
        return (self.sets * self.dimensions[:, None])[alone].sum(dim=0)


class GroupUncertainty(NamedTuple):
    log_variance: Tensor  # (num_groups,) mean predicted log-variance, NaN for a group with no samples
    samples: Tensor  # (num_groups,) int64: how many samples the group has


class StrengthUncertainty(NamedTuple):
    strength: Tensor  # (bins,) the bins' centres, in the unit of the strength
    log_variance: Tensor  # (bins,) mean predicted log-variance, NaN for a bin with no samples
    samples: Tensor  # (bins,) int64: how many samples the bin has


def open_dimensions(masks: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Which dimensions each subspace uses: those with |m_kd| >= threshold * max_d |m_kd|, zeros excepted.

    Relative to the row's largest value, because masks may be unbounded (ReLU) or of a fixed norm, and a row
    times a constant selects the same features. The price: a row that is evenly almost closed counts as open
    everywhere (look at its values too), and one outlier closes all the rest.

    Args:
        masks: (K, D) masks.
        threshold: from 0 (every value but zero) to 1 (the largest alone). At the default 0.5 an open
            dimension has at least a quarter of the strongest one's weight in a masked squared distance.

    Returns:
        (K, D) bool. A row of zeros opens nothing.

    Raises:
        TypeError, ValueError: masks are not a finite floating-point (K, D); threshold is not from 0 to 1.

    >>> open_dimensions(torch.tensor([[0.9, 0.8, 0.1], [0.0, 0.0, 0.0]])).tolist()
    [[True, True, False], [False, False, False]]
    """
    check_masks(masks)
    check_fraction("threshold", threshold)
    _check_finite("masks", masks)
    return _open(masks, threshold)


def mask_density(masks: Tensor, *, threshold: float = 0.5) -> Tensor:
    """The fraction of the D dimensions that each subspace uses. Arguments: see `open_dimensions`.

    Returns:
        (K,) from 0 to 1: 0 for a row of zeros, NaN for a row that holds NaN or infinity.

    Raises:
        TypeError, ValueError: masks are not a non-empty floating-point (K, D); threshold is not from 0 to 1.

    >>> mask_density(torch.tensor([[4.0, 3.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.2]]))
    tensor([0.5000, 0.2500])
    """
    check_masks(masks)
    check_fraction("threshold", threshold)
    density = _open(masks, threshold).to(_wide(masks)).mean(dim=1)
    return density.masked_fill(masks.isfinite().all(dim=1).logical_not(), torch.nan)


def mask_overlap(masks: Tensor) -> Tensor:
    """How augmentations relate: the cosine between the magnitudes of each two rows of (K, D) masks.

    0: two subspaces have no dimension in common; 1: they are the same up to a scale. Rows that have nothing
    to do with each other overlap too (uniform on [0, 1]: 0.75), so compare values with one another. Masks that open
    nearly everything overlap by nearly 1, whatever they close: ask for ``mask_overlap(closedness(masks))`` there.

    Returns:
        (K, K), symmetric, from 0 to 1. The diagonal is 1, but a row of zeros overlaps with nothing, itself
        included: 0. A row that holds NaN or infinity makes its row and column NaN.

    Raises:
        TypeError, ValueError: masks are not a non-empty floating-point (K, D).

    >>> mask_overlap(torch.tensor([[2.0, 0.0], [3.0, 4.0]]))
    tensor([[1.0000, 0.6000],
            [0.6000, 1.0000]])
    """
    check_masks(masks)
    rows = exact(masks).abs()
    largest = rows.amax(dim=1, keepdim=True)
    rows = torch.nn.functional.normalize(rows / largest.masked_fill(largest == 0, 1), dim=1)
    overlap = rows @ rows.T
    overlap = ((overlap + overlap.T) / 2).clamp(0, 1)  # symmetric also where the product is not
    itself = torch.eye(len(masks), dtype=torch.bool, device=overlap.device) & (overlap > 0)
    return _as_result(overlap.masked_fill(itself, 1), masks)


def relations(explained: Tensor) -> Tensor:
    """How augmentations relate: whether they explain the same dimensions, whatever the masks are.

    The cosine similarity of the rows of ``sqrt(r)``, less their mean over rows: without that, all augmentations look
    alike where some dimensions simply vary more than others. Compare values with one another: rows that have nothing to
    do with each other have -1 / (K - 1) on average.

    Args:
        explained: (K, D) >= 0, what share of each dimension's variance each augmentation explains: a mean over batches
            of :func:`mast_ops.functional.explained_variance`, or ``explained`` of :class:`mast_ops.AllocatedMasks`.
            An augmentation with a row of zeros explains nothing and is related to none, itself included.

    Returns:
        (K, K), symmetric, from -1 to 1, with a diagonal of 1 but for rows that do not stand apart from the mean (0), as
        with K = 1. A row that holds NaN or infinity makes all NaN: it is part of the mean.

    Raises:
        TypeError, ValueError: explained is not a non-empty floating-point (K, D), or has a negative entry.

    >>> relations(torch.tensor([[0.5, 0.0, 0.1], [0.4, 0.0, 0.1], [0.0, 0.9, 0.1]])).round(decimals=1)
    tensor([[ 1.,  1., -1.],
            [ 1.,  1., -1.],
            [-1., -1.,  1.]])
    """
    check_masks(explained, name="explained")
    check_values("explained", explained)
    values = exact(explained)
    if bool((values < 0).any()):
        raise ValueError(f"explained: got {float(values.min())} among its entries, wanted numbers >= 0")
    rows = torch.nn.functional.normalize(values.sqrt(), dim=1)
    explains = rows.any(dim=1, keepdim=True)
    apart = torch.where(explains, rows - rows.sum(dim=0) / explains.sum().clamp_min(1), rows)
    apart = torch.nn.functional.normalize(apart, dim=1)
    related = apart @ apart.T
    return _as_result(((related + related.T) / 2).clamp(-1, 1), explained)


def closedness(masks: Tensor) -> Tensor:
    """How far a mask closes each dimension, ``1 - |m_kd| / max_d |m_kd|``: what `MaskedSubspaceHead.features` keeps.

    Args:
        masks: (K, D) masks.

    Returns:
        (K, D) from 0 (as open as the row's largest) to 1. A row of zeros closes everything: 1; a row that holds NaN or
        infinity is NaN.

    Raises:
        TypeError, ValueError: masks are not a non-empty floating-point (K, D).

    >>> closedness(torch.tensor([[4.0, 3.0, 0.0]]))
    tensor([[0.0000, 0.2500, 1.0000]])
    """
    check_masks(masks)
    size = exact(masks).abs()
    largest = size.amax(dim=1, keepdim=True)
    closed = 1 - size / largest.masked_fill(largest == 0, 1)
    return _as_result(closed.masked_fill(~size.isfinite().all(dim=1, keepdim=True), torch.nan), masks)


def closing_sets(masks: Tensor, *, threshold: float = 0.5) -> ClosingSets:
    """How many dimensions are closed by exactly which set of masks: those not of `open_dimensions`.

    Arguments and errors: `open_dimensions`.

    Returns:
        `ClosingSets(sets, dimensions)`, (M, K) bool and (M,) int64, for the M sets that close a dimension: the sets of
        one mask before those of two, and of the same size those with more dimensions before. The set of no mask, if a
        dimension is open in all, is the first.

    >>> found = closing_sets(torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]))
    >>> found.sets.tolist(), found.dimensions.tolist()
    ([[False, False], [True, False], [True, True]], [2, 1, 1])
    """
    is_open = open_dimensions(masks, threshold=threshold).cpu()
    # Sorted: the mask of the first row comes first.
    sets, dimensions = is_open.T.unique(dim=0, return_counts=True)  # type: ignore[no-untyped-call]
    order = (-sets.sum(dim=1) * (masks.shape[1] + 1) - dimensions).argsort(stable=True)
    sets, dimensions = ~sets[order], dimensions[order]
    return ClosingSets(sets.to(masks.device), dimensions.to(masks.device))


def _folded(sets: Sequence[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """The first of these names and their dimensions, at most so many; the last of them is then of all others.

    >>> _folded([("crop", 5), ("color", 2), ("blur", 1)], most=2)
    [('crop', 5), ('2 other sets', 3)]
    """
    if len(sets) <= most:
        return list(sets)
    others = sets[most - 1 :]
    return [*sets[: most - 1], (f"{len(others)} other sets", sum(dimensions for _, dimensions in others))]


def uncertainty_by_group(log_variance: Tensor, group: Tensor, num_groups: int) -> GroupUncertainty:
    """Mean predicted uncertainty per group of samples, for example per augmentation or per class.

    The mean is of the log-variance, the unit that a head predicts: its exp is the geometric mean of the
    variances, which a few samples with huge variances do not dominate.

    Args:
        log_variance: (N,) one per sample (that of its own subspace, where there are K).
        group: (N,) int64 indices from 0 to num_groups - 1.
        num_groups: how many groups there are, with samples or not.

    Returns:
        `GroupUncertainty(log_variance, samples)`, both (num_groups,). A group with no samples has NaN; a NaN
        or infinity in log_variance reaches its own group alone.

    Raises:
        TypeError, ValueError: log_variance is not a non-empty floating-point (N,); group is not int64 of the
            same shape and device, or leaves its range; num_groups is not a whole number >= 1.

    >>> uncertainty_by_group(torch.tensor([0.0, 2.0, 5.0]), torch.tensor([0, 0, 2]), num_groups=3)
    GroupUncertainty(log_variance=tensor([1., nan, 5.]), samples=tensor([2, 0, 1]))
    """
    _check_vector("log_variance", log_variance)
    _check_vector("group", group, ("log_variance", log_variance), index=True)
    num_groups = check_count("num_groups", num_groups)
    low, high = int(group.min()), int(group.max())
    if low < 0 or high >= num_groups:
        raise ValueError(f"group: got indices from {low} to {high}, wanted 0 to {num_groups - 1}")
    samples = torch.bincount(group, minlength=num_groups)
    values = exact(log_variance)
    total = values.new_zeros(num_groups).index_add_(0, group.to(values.device), values)
    return GroupUncertainty(_as_result(total / samples.to(values.device), log_variance), samples)


def uncertainty_by_strength(log_variance: Tensor, strength: Tensor, *, bins: int = 8) -> StrengthUncertainty:
    """Mean predicted log-variance in bins of equal width over the strength of one augmentation.

    Args:
        log_variance: (N,) one log-variance per sample.
        strength: (N,) floating point, how strong each sample's augmentation was, in any unit.
        bins: how many, from the smallest strength to the largest; 8 leave 32 of 256 samples to each.

    Returns:
        `StrengthUncertainty(strength, log_variance, samples)`, each (bins,). An empty bin has NaN; a NaN or
        infinity in log_variance reaches its own bin alone. Equal strengths all fall into the first bin.

    Raises:
        TypeError, ValueError: log_variance or strength is not a non-empty floating-point (N,), they differ in
            shape or device, strength is not finite, or bins is not a whole number >= 1.

    >>> curve = uncertainty_by_strength(torch.tensor([1.0, 3.0, 6.0]), torch.tensor([0.0, 1.0, 4.0]), bins=2)
    >>> curve.strength.tolist(), curve.log_variance.tolist(), curve.samples.tolist()
    ([1.0, 3.0], [2.0, 6.0], [2, 1])
    """
    _check_vector("log_variance", log_variance)
    _check_vector("strength", strength, ("log_variance", log_variance))
    _check_finite("strength", strength)
    bins = check_count("bins", bins)
    values = exact(strength)
    low, high = values.aminmax()
    place = ((values - low) / (high - low)).nan_to_num(0.0)  # 0 / 0 where all strengths are equal
    centres = low + (high - low) * (torch.arange(bins, device=values.device) + 0.5) / bins
    group = (place * bins).long().clamp(0, bins - 1).to(strength.device)
    return StrengthUncertainty(_as_result(centres, strength), *uncertainty_by_group(log_variance, group, bins))


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's rank correlation, ties having their average rank: does y rise with x, on any scale?

    Args:
        x, y: (N,) floating point, for example strength and predicted log-variance.

    Returns:
        A scalar from -1 to 1; NaN where x or y is constant (N = 1 too) or holds NaN or infinity.

    Raises:
        TypeError, ValueError: x or y is not a non-empty floating-point (N,); they differ in shape or device.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 10.0, 1000.0, 100.0]))
    tensor(0.8000)
    """
    _check_vector("x", x)
    _check_vector("y", y, ("x", x))
    a, b = _ranks(x), _ranks(y)
    rho = (a @ b / ((a @ a) * (b @ b)).sqrt()).clamp(-1, 1)
    finite = (x.isfinite() & y.isfinite()).all().to(rho.device)
    return rho.masked_fill(~finite, torch.nan).to(torch.promote_types(_wide(x), y.dtype)).to(x.device)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _as_result(x: Tensor, like: Tensor) -> Tensor:
    return x.to(_wide(like)).to(like.device)  # in this order: the device may have no float64


def _open(masks: Tensor, threshold: float) -> Tensor:
    size = exact(masks).abs()
    return ((size >= threshold * size.amax(dim=1, keepdim=True)) & (size > 0)).to(masks.device)


def _ranks(x: Tensor) -> Tensor:
    """Twice the average rank, centred at 0."""
    ascending, x = x.sort().values, x.contiguous()  # searchsorted warns of a column
    smaller, not_larger = torch.searchsorted(ascending, x), torch.searchsorted(ascending, x, right=True)
    return exact(smaller + not_larger - len(x))


def _check_finite(name: str, x: Tensor) -> None:
    check_values(name, x)
    if not x.isfinite().all():
        raise ValueError(f"{name}: got NaN or infinity, wanted finite values")


def _check_vector(name: str, x: Tensor, like: tuple[str, Tensor] | None = None, index: bool = False) -> None:
    """A non-empty floating-point (an index: int64) tensor (N,), with the shape and device of another."""
    kind = "torch.int64" if index else "floating-point"
    if isinstance(x, Tensor):
        check_dense(name, x)
        check_values(name, x)
    if not isinstance(x, Tensor) or not (x.dtype == torch.int64 if index else x.is_floating_point()):
        got = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: got {got}, wanted a {kind} tensor of shape (N,)")
    if x.dim() != 1 or len(x) == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, wanted (N,), one value per sample, N >= 1")
    if like is not None and (x.shape, x.device) != (like[1].shape, like[1].device):
        got, wanted = (f"shape {tuple(t.shape)} on {t.device}" for t in (x, like[1]))
        raise ValueError(f"{name}: got {got}, wanted {wanted}, as {like[0]}")
