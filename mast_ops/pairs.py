"""The pair: two views, the masks, and which augmentations differ in it."""

from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

from mast_ops._checks import check_choice, check_index, check_log_variance, check_masks, check_views, is_traced
from mast_ops._precision import alike, wide, widen
from mast_ops.kinds import check_kind, check_kinds
from mast_ops.ops import Table

Granularity = Literal["sample", "subspace", "dimension"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


class Uncertainty(NamedTuple):
    """The log-variance of every pair, and what its columns are."""

    log_variance: Tensor
    """(N, 1) per sample, (N, K) per subspace, (N, D) per dimension."""
    granularity: Granularity

    def check(self, z: Tensor, masks: Tensor) -> None:
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_log_variance("log_variance", self.log_variance, z)
        width = {"sample": 1, "subspace": len(masks), "dimension": z.shape[1]}[self.granularity]
        if self.log_variance.shape[1] != width:
            raise ValueError(
                f"log_variance: got shape {tuple(self.log_variance.shape)}, "
                f"wanted ({len(z)}, {width}), one per {self.granularity}"
            )


class Pairs(NamedTuple):
    """N checked pairs: one that differs in a set of augmentations must agree where all their masks are open.

    K masks, one an augmentation, stand for S kinds of pairs: the mask of a kind is the product of the masks of what
    differs in it. Without ``kind`` every pair counts in every mask alone.
    """

    z0: Tensor
    """(N, D)."""
    z1: Tensor
    """(N, D)."""
    masks: Tensor
    """(K, D)."""
    kinds: Tensor | None = None
    """(S, K) bool, what differs in pairs of each kind. None: one augmentation at a time, S = K."""
    kind: Tensor | None = None
    """(N,) int64, a row of ``kinds``."""
    uncertainty: Uncertainty | None = None
    sample: Tensor | None = None
    """(N,) int64, what each pair shows: pairs of one sample are positives of one another. None: all apart."""
    weight: Tensor | None = None
    """How much each counts for terms of single pairs, a constant that broadcasts to (N,) or (N, K). None: all alike."""

    @classmethod
    def of(
        cls,
        z0: Tensor,
        z1: Tensor,
        masks: Tensor,
        *,
        kinds: Tensor | None = None,
        kind: Tensor | None = None,
        uncertainty: Uncertainty | None = None,
        sample: Tensor | None = None,
    ) -> Self:
        """Pairs after every check.

        Raises:
            ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or of another kind, or
                ``kind`` is out of range.
            RuntimeError: Inside ``torch.jit.trace``.
        """
        if is_traced():
            raise RuntimeError(
                "torch.jit.trace: got a loss, whose number of samples it would keep for every batch; wanted it under "
                "torch.compile, and the head or SubspaceFeatures alone traced"
            )
        check_views(z0, z1)
        z0, z1 = alike(z0, z1)
        check_masks(masks, z0)
        if kinds is not None:
            check_kinds(kinds, len(masks))
            if kinds.device != z0.device:
                raise ValueError(f"kinds: got device {kinds.device}, wanted {z0.device}, that of the embedding")
        if kind is not None:
            check_kind(kind, len(z0), len(masks) if kinds is None else len(kinds), z0.device)
        if uncertainty is not None:
            uncertainty.check(z0, masks)
        if sample is not None:
            check_index("sample", sample, len(z0), z0.device)
        return cls(z0, z1, masks, kinds, kind, uncertainty, sample)

    def rows(self) -> Tensor:
        """What pairs are seen through, (R, D), in the dtype that sums run in: the mask of every kind, or every mask."""
        masks = self.masks.to(wide(self.z0.dtype))
        if self.kind is None:
            return masks
        masks = masks + nothing(masks)  # one may be the mask of what differs in no pair
        return masks if self.kinds is None else masks_of_kinds(masks, self.kinds)

    def table(self) -> Table:
        """The same, and the row of each pair."""
        return Table(self.rows(), self.kind)

    def log_variance(self) -> Tensor | None:
        """In the dtype that sums run in: (N, D) per dimension, (N, 1) per sample, else a column for each of the rows.

        What differs in a pair adds up: so do variances.
        """
        if self.uncertainty is None:
            return None
        (log_variance,) = widen(self.uncertainty.log_variance)
        if self.uncertainty.granularity != "subspace" or self.kind is None:
            return log_variance
        log_variance = log_variance + nothing(log_variance)  # as of masks: a pair reads one column
        if self.kinds is None:
            return log_variance
        return log_variance[:, None].masked_fill(~self.kinds, -torch.inf).logsumexp(2)


def nothing(x: Tensor) -> Tensor:
    """0, or NaN where an entry is not finite: so that it shows where no pair reads it."""
    return (0 * x.detach()).sum()


def masks_of_kinds(masks: Tensor, kinds: Tensor) -> Tensor:
    """The product of the masks of what differs: (S, D) of (K, D) and (S, K). Exact zeros stay exact."""
    product = torch.ones_like(masks[:1]).expand(len(kinds), -1)
    for mask, differs in zip(masks.unbind(), kinds.unbind(1), strict=True):  # prod()'s gradient makes the CPU wait
        product = torch.where(differs[:, None], product * mask, product)
    return product
