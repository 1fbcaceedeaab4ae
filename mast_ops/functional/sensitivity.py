"""What the dimensions outside a mask are free to keep, asked for: they change with the augmentation."""

from typing import NamedTuple

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_embedding, check_index, check_is, check_positive, check_weight, values_are_free
from mast_ops._precision import no_autocast, widen
from mast_ops.functional.moments import check_batch, spread
from mast_ops.kinds import members
from mast_ops.ops import Backend, Gap
from mast_ops.pairs import Pairs
from mast_ops.run import Run


@ops.raised_by_all
def subspace_sensitivity(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    kind: Tensor,
    kinds: Tensor | None = None,
    weight: Tensor | None = None,
    eps: float = 1e-4,
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """How far the dimensions outside each mask are from changing with that mask's augmentation.

    ``mean_d relu(1 - |m_kd|) relu(1 - sqrt(r_kd + eps))``, where ``r_kd = mean_i (z0_id - z1_id)^2 / (2 var(z_d))``
    over the pairs in which augmentation k alone differs, and ``var``, a constant, is the mean of the two views'
    variances over the whole batch, at least ``eps``. ``r`` is 0 for a dimension that is invariant to augmentation k,
    and 1 for one whose variance is all its doing. It is VICReg's variance hinge, on differences of pairs and outside of
    the masks: without it nothing asks a free dimension to hold what the others give up. A mask of ones has no outside,
    and costs nothing. A pair in which several augmentations differ does not say which of them changed a dimension: it
    counts nothing here.

    Samples are summed before masks act, so that all K cost about as much as one, and nothing of size N x K x D exists.

    Args:
        z0: Embedding of the first view, (N, D), floating point, N >= 2.
        z1: Embedding of the second view, (N, D), same device; float64 beside float64 alone.
        masks: One mask per subspace, (K, D).
        kind: (N,) int64, a row of ``kinds``. An augmentation that differs alone in no pair of the batch costs nothing.
        kinds: (S, K) bool, which augmentations differ in pairs of each kind, every one of them in some. Default: one at
            a time, ``eye(K)``.
        weight: (N,), how much pair i counts, >= 0: pairs that predicted uncertainty calls ambiguous should not pass
            for sensitivity. A constant: it gets no gradient. Default: all alike.
        eps: Under the square root, so that an invariant dimension has a gradient; and below the variance.
        gather_distributed: Whether the batch is that of all ranks; sums are reduced, not gathered. See
            :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        (K,). float32 for input of at most 32 bits, else float64.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer, fewer than two
            samples, ``kind`` is out of range, an augmentation differs in no kind of pair, ``weight`` has a negative
            entry, ``eps`` <= 0, or the asked backend cannot run.

    Source: ours; the hinge is VICReg's (arXiv 2105.04906), equation 1.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_sensitivity
        >>> z0, z1 = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> masks = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # the pairs differ in the second dimension
        >>> subspace_sensitivity(z0, z1, masks, kind=torch.tensor([0, 0]))
        tensor([0., 0.])
        >>> subspace_sensitivity(z0, z1, masks, kind=torch.tensor([1, 1]))
        tensor([0.0000, 0.4950])
    """
    check_positive("eps", eps)
    pairs = Pairs.of(z0, z1, masks, kinds=kinds, kind=kind)
    check_index("kind", kind, len(z0), z0.device)  # here it is not optional
    if weight is not None:
        check_weight("weight", weight, z0)
    run = Run(backend, gather_distributed).of("subspace_sensitivity", pairs, {"eps": eps}, weight=weight is not None)
    return sensitivity(pairs, run, weight=weight, eps=eps)


def sensitivity(pairs: Pairs, run: Run, *, weight: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    """The same, of checked pairs of known kinds."""
    check_all_differ(pairs)
    return outside(explained(pairs, run, weight=weight, eps=eps), pairs.masks, eps)


@ops.raised_by_all
def explained_variance(
    z0: Tensor,
    z1: Tensor,
    *,
    kind: Tensor,
    kinds: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-4,
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """What share of each dimension's variance each augmentation explains, from the pairs in which it differs alone.

    ``r_kd = mean_i (z0_id - z1_id)^2 / (2 var(z_d))``, as in :func:`subspace_sensitivity`: 0 for a dimension that is
    invariant to augmentation k, 1 for one whose variance is all its doing. A mean of it over batches is what
    :class:`mast_ops.masks.AllocatedMasks` are made of and what :func:`mast_ops.analysis.relations` reads.

    Args:
        z0: Embedding of the first view, (N, D), floating point, N >= 2.
        z1: Embedding of the second view, (N, D), same device; float64 beside float64 alone.
        kind: (N,) int64, a row of ``kinds``.
        kinds: (S, K) bool, which augmentations differ in pairs of each kind.
        weight: Of :func:`subspace_sensitivity`, as are ``eps``, ``gather_distributed`` and ``backend``.

    Returns:
        (K, D), >= 0; NaN in the row of an augmentation that differs alone in no pair of the batch. float32 for input of
        at most 32 bits, else float64.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer, fewer than two
            samples, ``kind`` is out of range, ``weight`` has a negative entry, ``eps`` <= 0, or the asked backend
            cannot run.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import explained_variance
        >>> z0, z1 = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> explained_variance(z0, z1, kind=torch.tensor([1, 1]), kinds=torch.eye(2, dtype=torch.bool))
        tensor([[nan, nan],
                [0., 2.]])
    """
    check_positive("eps", eps)
    check_is("kinds", kinds, Tensor, "a boolean tensor of shape (S, K)")
    check_embedding("z0", z0)
    width = kinds.shape[1] if kinds.dim() == 2 else 1  # of another shape it is refused below
    pairs = Pairs.of(z0, z1, z0.new_ones(max(1, width), z0.shape[1]), kinds=kinds, kind=kind)
    check_index("kind", kind, len(z0), z0.device)  # here it is not optional
    if weight is not None:
        check_weight("weight", weight, z0)
    run = Run(backend, gather_distributed).of("explained_variance", pairs, {"eps": eps}, weight=weight is not None)
    found = explained(pairs, run, weight=weight, eps=eps)
    return torch.where(found.pairs[:, None] > 0, found.share, torch.nan)


class Explained(NamedTuple):
    """Of every augmentation, over the pairs in which it differs alone."""

    share: Tensor
    """(K, D), 0 where there is no such pair."""
    pairs: Tensor
    """(K,), how many those are, by their weights."""


def explained(pairs: Pairs, run: Run, *, weight: Tensor | None = None, eps: float = 1e-4) -> Explained:
    """Of checked pairs of known kinds."""
    check_batch(pairs.z0, run, "sensitivity wants a variance over the batch; sensitivity_param=0 goes without")
    kind, kinds = pairs.kind, pairs.kinds
    assert kind is not None
    num_kinds = len(pairs.masks) if kinds is None else len(kinds)
    with no_autocast(pairs.z0):
        variance = spread(pairs.z0, pairs.z1, run)
        gap, counted = Gap(pairs.z0, pairs.z1), variance.new_ones(len(kind))
        if weight is not None:
            (counted,) = widen(weight.detach())
            gap = _weighted(gap, counted)
        sums = ops.gap_sums(gap, num_kinds, kind, run.backend)
        count = counted @ members(kind, num_kinds).to(counted.dtype)
        totals = torch.cat([sums, count[:, None]], dim=1)
        if kinds is not None:  # those in which one augmentation differs, sorted by it
            alone = (kinds.sum(dim=1) == 1)[:, None]
            totals = (kinds & alone).T.to(totals.dtype) @ torch.where(alone, totals, 0 * totals)
        totals = run.total(totals)
        sums, count = totals[:, :-1], totals[:, -1]
        return Explained(sums / (2 * torch.where(count > 0, count, 1))[:, None] / variance.clamp_min(eps), count)


def outside(found: Explained, masks: Tensor, eps: float = 1e-4) -> Tensor:
    """The hinge, where masks are closed: (K,)."""
    with no_autocast(found.share):
        (masks,) = widen(masks)
        hinge = torch.relu(1 - (found.share + eps).sqrt()) * (found.pairs > 0)[:, None]
        size = torch.where(masks < 0, -masks, masks)  # not abs: it has no gradient at 0
        # 0 * inf is NaN: an infinite mask must not look like one without an outside.
        return (torch.relu(1 - size) * hinge + 0 * masks).mean(dim=1)


def _weighted(gap: Gap, weight: Tensor) -> Gap:
    """Weights act on the difference: on the views before it, digits that they share would be lost."""
    z0, z1 = widen(gap.z0, gap.z1)
    difference = weight.sqrt()[:, None] * (z0 - z1)
    return Gap(difference, torch.zeros_like(difference))


def check_all_differ(pairs: Pairs) -> None:
    """Every augmentation differs in some kind of pair."""
    kinds = pairs.kinds
    if kinds is None:
        return
    differs = kinds.any(dim=0)
    wanted = "wanted every one of them in at least one: sensitivity asks what each of them changes"
    if not values_are_free(kinds):
        torch._assert_async(differs.all(), f"kinds: got an augmentation that differs in no kind of pair, {wanted}")
    elif not differs.all():
        never = (~differs).nonzero()[:, 0].tolist()
        raise ValueError(f"kinds: got augmentations {never} that differ in no kind of pair, {wanted}")
