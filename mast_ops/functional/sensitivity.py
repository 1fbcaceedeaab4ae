"""What the dimensions outside a mask are free to keep, asked for: they change with the augmentation."""

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_min_samples, check_positive, check_subspace, check_weight
from mast_ops._precision import no_autocast, widen
from mast_ops.functional.moments import spread
from mast_ops.functional.pairs import check_pairs, select_rows
from mast_ops.ops import Backend


def subspace_sensitivity(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    subspace: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-4,
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """How far the dimensions outside each mask are from changing with that mask's augmentation.

    ``mean_d relu(1 - |m_kd|) relu(1 - sqrt(r_kd + eps))``, where ``r_kd = mean_i (z0_id - z1_id)^2 / (2 var(z_d))``
    over the pairs of subspace k, and ``var``, a constant, is the mean of the two views' variances over the whole
    batch, at least ``eps``. ``r`` is 0 for a dimension that is invariant to augmentation k, and 1 for one whose
    variance is all its doing. It is VICReg's variance hinge, on differences of pairs and outside of the masks:
    without it nothing asks a free dimension to hold what the others give up. A mask of ones has no outside, and costs
    nothing. Nor does a mask that lies within all the others, as the last of :class:`mast_ops.ComposedMasks` does: what
    it leaves out is the others' to keep, and a pair in which everything differs does not say which of them did.

    Samples are summed before masks act, so that all K cost about as much as one, and nothing of size N x K x D exists.

    Args:
        z0: Embedding of the first view, (N, D), floating point, N >= 2.
        z1: Embedding of the second view, (N, D), same dtype and device.
        masks: One mask per subspace, (K, D).
        subspace: (N,) int64: the augmentation in which pair i differs. A subspace without pairs in the batch costs
            nothing.
        weight: (N,), how much pair i counts, >= 0: pairs that predicted uncertainty calls ambiguous should not pass
            for sensitivity. A constant: it gets no gradient. Default: all alike.
        eps: Under the square root, so that an invariant dimension has a gradient; and below the variance.
        gather_distributed: Whether the batch is that of all ranks; sums are reduced, not gathered. See
            :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        (K,). float32 for half-precision input, else the dtype of ``z0``.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer, fewer than two
            samples, ``subspace`` is out of range, ``weight`` has a negative entry, ``eps`` <= 0, or the asked backend
            cannot run.

    Source: ours; the hinge is VICReg's (arXiv 2105.04906), equation 1.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_sensitivity
        >>> z0, z1 = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> masks = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # the pairs differ in the second dimension
        >>> subspace_sensitivity(z0, z1, masks, torch.tensor([0, 0]))
        tensor([0., 0.])
        >>> subspace_sensitivity(z0, z1, masks, torch.tensor([1, 1]))
        tensor([0.0000, 0.4950])
    """
    return sensitivity_after(None, z0, z1, masks, subspace, weight, eps, gather_distributed, backend)


def sensitivity_after(
    before: Tensor | None,
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    subspace: Tensor,
    weight: Tensor | None,
    eps: float,
    gather_distributed: bool,
    backend: Backend,
) -> Tensor:
    """The same, with ranks told nothing before they were told ``before``: see :mod:`mast_ops.ops.collectives`."""
    check_positive("eps", eps)
    check_pairs(z0, z1, masks, None)
    check_subspace(subspace, z0.shape[0], masks.shape[0], z0.device)
    if weight is not None:
        check_weight("weight", weight, z0)
    distributed = ops.ranks(gather_distributed) > 1
    if not distributed:
        check_min_samples(z0.shape[0], 2, "a variance over the batch needs two")
    num_subspaces = masks.shape[0]
    with no_autocast(z0):
        (masks,) = widen(masks)
        variance = spread(z0, z1, distributed, before)
        counted = torch.ones_like(subspace, dtype=masks.dtype)
        if weight is not None:
            (counted,) = widen(weight.detach())
            root = counted.sqrt()[:, None]
            z0, z1 = (root * x for x in widen(z0, z1))
        sums = ops.gap_sums(z0, z1, num_subspaces, subspace=subspace, backend=backend)
        member = select_rows(torch.eye(num_subspaces, dtype=masks.dtype, device=masks.device), subspace)
        count = counted @ member
        if distributed:
            totals = ops.after(torch.cat([sums, count[:, None]], dim=1), variance)
            totals = ops.all_reduce(totals if before is None else ops.after(totals, before))
            sums, count = totals[:, :-1], totals[:, -1]
        present = count > 0
        size = torch.where(masks < 0, -masks, masks)  # not abs: it has no gradient at 0
        asked = present if num_subspaces == 1 else present & ~(size <= size.amin(dim=0)).all(dim=1)
        ratio = sums / (2 * torch.where(present, count, 1))[:, None] / variance.clamp_min(eps)
        hinge = torch.relu(1 - (ratio + eps).sqrt()) * asked[:, None]
        # 0 * inf is NaN: an infinite mask must not look like one without an outside.
        return (torch.relu(1 - size) * hinge + 0 * masks).mean(dim=1)
