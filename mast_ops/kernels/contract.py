"""What every backend gives: the same functions of the same values, checked by mypy where a backend is chosen.

``eager`` gives the formulas, which autograd differentiates; ``chunked`` and ``triton`` give the formulas and their
gradients. A new backend is a folder with modules of these names.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

LENGTH = 16384.0
"""Of all pairs' rows in float16, where 1 would do: it then holds what is 1e-8 of a row with all of its digits."""
_LARGEST = 4096.0  # weight of a score in float16: no sum of two overflows, and what is lost is 1e-11 of it


def unit_of(peak: Tensor) -> Tensor:
    """In what units the weights of scores are rounded to float16, where they must neither vanish nor overflow."""
    return peak.float().clamp_min(1e-30) / _LARGEST


class Table(NamedTuple):
    """Rows of masks, (R, D), in the dtype that sums run in: operators square them. And what row each sample reads."""

    masks: Tensor
    row: Tensor | None = None
    """(N,) int64. None: every sample reads all R rows, and results are (N, R) instead of (N,)."""

    @property
    def squared(self) -> Tensor:
        return self.masks.square()


class Gap(NamedTuple):
    """How far the views of each pair lie apart in each dimension, (N, D).

    ``(z0 - z1)^2``, and with a log-variance (N, D) and its scale (1, D), a constant,
    ``scale (z0 - z1)^2 exp(-log_variance)``.
    """

    z0: Tensor
    z1: Tensor
    log_variance: Tensor | None = None
    scale: Tensor | None = None


class Contrast(NamedTuple):
    """All pairs of anchors and candidates, compared by masked cosine times ``inverse_temperature``.

    Candidate j is a positive of anchor i where ``sample1[j] == sample0[i]``. With ``z1`` and ``sample1`` None the
    candidates are the anchors themselves, each without itself.
    """

    z0: Tensor
    """Anchors, (N, D)."""
    z1: Tensor | None
    """Candidates, (C, D)."""
    masks: Tensor
    """(R, D), in the dtype that sums run in."""
    inverse_temperature: Tensor
    """Of one element, likewise."""
    sample0: Tensor
    """(N,) int64."""
    sample1: Tensor | None
    """(C,) int64."""
    row: Tensor | None = None
    """(N,) int64, the row of ``masks`` that each anchor reads. None: all of them."""
    both_ways: bool = False
    """Whether candidates are anchors too, in the other direction; goes with neither ``row`` nor a missing ``z1``."""

    @property
    def symmetric(self) -> bool:
        """Whether the scores of i and j are those of j and i."""
        return self.z1 is None and self.row is None

    @property
    def num_rows(self) -> int:
        """How many losses an anchor has."""
        return len(self.masks) if self.row is None else 1

    @property
    def candidates(self) -> Tensor:
        return self.z0 if self.z1 is None else self.z1


Both = tuple[Tensor, Tensor]
"""Of anchors, (N, R), or (N,) with ``row``; of candidates, (C, R) with ``both_ways``, else empty, (0, R) or (0,)."""


class Contrasted(NamedTuple):
    """Losses ``logsumexp_j s_ij - mean_{j positive} s_ij`` and the logsumexps in them."""

    losses: Both
    lse: Both


class ContrastGradients(NamedTuple):
    """In the dtype that sums run in; None for candidates that are the anchors.

    Those of z0 and z1 that ``triton`` keeps in a ``fused`` pass are in :func:`mast_ops._precision.kept`'s.
    """

    z0: Tensor
    z1: Tensor | None
    masks: Tensor
    inverse_temperature: Tensor


class PairsFormulas(Protocol):
    """Positive pairs."""

    def distance(self, gap: Gap, table: Table) -> Tensor:
        """``sum_d masks_rd^2 gap_id``."""

    def gap_sums(self, gap: Gap, num_rows: int, row: Tensor | None) -> Tensor:
        """Sum of the gap over samples, (1, D), or (num_rows, D) with ``row``, each row over its own samples."""

    def products(self, z0: Tensor, z1: Tensor, table: Table) -> tuple[Tensor, Tensor, Tensor]:
        """``sum_d masks_rd^2 x_id`` for x = z0 z1, z0^2 and z1^2: dot products and squared norms."""


class PairsKernels(PairsFormulas, Protocol):
    """With their gradients."""

    def distance_backward(self, grad: Tensor, gap: Gap, table: Table) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Of z0, z1, masks and log_variance."""

    def gap_sums_backward(self, grad: Tensor, gap: Gap, row: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of z0, z1 and log_variance."""

    def products_backward(
        self, grads: tuple[Tensor, Tensor, Tensor], z0: Tensor, z1: Tensor, table: Table
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of z0, z1 and masks."""


class ContrastFormulas(Protocol):
    """All pairs."""

    def losses(self, problem: Contrast) -> Both:
        """See :class:`Contrasted`."""


class ContrastKernels(Protocol):
    """All pairs, with their gradients."""

    def forward(self, problem: Contrast) -> Contrasted:
        """Losses and logsumexps."""

    def backward(self, problem: Contrast, grads: Both, lse: Both) -> ContrastGradients:
        """Given the gradients of the losses, and the logsumexps."""

    def fused(self, problem: Contrast, weights: tuple[float, float]) -> tuple[Both, ContrastGradients]:
        """Losses, and the gradients of the sum of those of anchors and of candidates, each with its weight."""


class SigmoidFormulas(Protocol):
    """All pairs, each by itself: ``sum_j softplus(-l_ij (s_ij + bias))``, l_ij = 1 for positives and -1 for all others.

    Candidates are given, and nothing is ``both_ways``.
    """

    def losses(self, problem: Contrast, bias: Tensor) -> Tensor:
        """Of anchors, (N, R), or (N,) with ``row``."""


class SigmoidKernels(Protocol):
    """With their gradients. Slopes are the sums over candidates of the losses' derivatives by the bias."""

    def forward(self, problem: Contrast, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and slopes."""

    def backward(self, problem: Contrast, bias: Tensor, grad: Tensor) -> ContrastGradients:
        """Given the gradient of the losses."""

    def fused(self, problem: Contrast, bias: Tensor, weight: float) -> tuple[Tensor, Tensor, ContrastGradients]:
        """Losses, slopes, and the gradients of the losses' sum, times ``weight``."""


Reduce = Callable[[Tensor], Tensor]


class MomentsFormulas(Protocol):
    """Second moments over the batch."""

    def off_diagonal(self, x: Tensor, y: Tensor | None, squared: Tensor, reduce: Reduce | None) -> Tensor:
        """``sum_{i != j} squared_ki squared_kj (x^T y)_ij^2``, (K,). ``y`` None stands for x; ``reduce`` sums ``x^T y``
        over ranks."""


class MomentsKernels(MomentsFormulas, Protocol):
    """With their gradients."""

    def off_diagonal_backward(
        self, grad: Tensor, x: Tensor, y: Tensor | None, squared: Tensor, reduce: Reduce | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Of x, y and squared."""
