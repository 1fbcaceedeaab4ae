"""Soft masks of fixed coverage."""

import torch
from torch import Tensor

from mast_ops._checks import check_share
from mast_ops._dials import Dial
from mast_ops.masks.parameterization import MaskParameterization


class NormalizedMasks(MaskParameterization):
    """``sigmoid(weight - t_k)`` with t_k such that each mask's mean is exactly ``coverage``: entries in (0, 1).

    A soft choice of the best ``coverage`` D dimensions. Ends: as :class:`SigmoidMasks`. Collapse: impossible
    in mass, since the mean is fixed and each entry bounded by 1; what can still happen is that a mask picks
    dimensions that were invariant anyway. Needs no coverage floor.

    Args:
        num_subspaces: K.
        dim: D.
        coverage: Mean entry of every mask, strictly between 0 and 1; it may be set anew while training. 0.8 leaves a
            fifth of the dimensions free to keep what an augmentation changes, and costs the invariance little.
        mean: Start of ``weight``; only differences within a row matter.
        std: Spread of the start. 4 starts masks nearly binary: every subspace has dimensions that it leaves
            alone from the first step, where a soft start presses on all of them.

    Raises:
        ValueError: ``coverage`` is not strictly between 0 and 1.

    Source: ours.

    Example:
        >>> from mast_ops.masks import NormalizedMasks
        >>> NormalizedMasks(num_subspaces=2, dim=8, coverage=0.25)().mean(dim=1).detach()
        tensor([0.2500, 0.2500])
    """

    coverage = Dial(check_share)
    _coverage: Tensor

    _BISECTIONS = 20  # to a millionth of the row's spread; the Newton step squares what is left of the error

    def __init__(
        self, num_subspaces: int, dim: int, *, coverage: float = 0.8, mean: float = 0.0, std: float = 4.0
    ) -> None:
        self.coverage = coverage
        super().__init__(num_subspaces, dim, mean=mean, std=std)

    def forward(self) -> Tensor:
        coverage = self._coverage.to(self.weight.dtype)
        threshold = self._threshold(coverage)
        masks = torch.sigmoid(self.weight - threshold)
        # One Newton step polishes the threshold, and carries its implicit gradient.
        slope = (masks * (1 - masks)).mean(dim=1, keepdim=True).detach()
        residual = masks.mean(dim=1, keepdim=True) - coverage
        return torch.sigmoid(self.weight - threshold - residual / slope.clamp_min(1e-12))

    def settings(self) -> dict[str, float | list[float]]:
        return {"coverage": self.coverage}

    @torch.no_grad()
    def _threshold(self, coverage: Tensor) -> Tensor:
        """The t_k that solves mean_d sigmoid(weight - t_k) = coverage, between the row's extremes' solutions."""
        single = torch.logit(self._coverage).to(self.weight.dtype)
        low = self.weight.amin(dim=1, keepdim=True) - single
        high = self.weight.amax(dim=1, keepdim=True) - single
        for _ in range(self._BISECTIONS):
            middle = (low + high) / 2
            covered = torch.sigmoid(self.weight - middle).mean(dim=1, keepdim=True) >= coverage
            low, high = torch.where(covered, middle, low), torch.where(covered, high, middle)
        return (low + high) / 2
