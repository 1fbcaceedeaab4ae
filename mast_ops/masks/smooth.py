"""One smooth function of every entry, and nothing that holds a mask open."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops.masks.parameterization import MaskParameterization


class SigmoidMasks(MaskParameterization):
    """``sigmoid(weight)``: entries in (0, 1).

    Ends: 0 and 1 are approached, never reached, and gradients fade towards both. Collapse: cannot grow to
    buy a coverage with a few entries, but shrinks under an invariance term alone: add
    :class:`mast_ops.MaskCoverage`.

    Args:
        num_subspaces: K.
        dim: D.
        mean: Start of ``weight``; 1 opens masks to about 0.7, above the coverage floor, so that every
            dimension trains.
        std: Spread of the start.

    Example:
        >>> from mast_ops.masks import SigmoidMasks
        >>> masks = SigmoidMasks(num_subspaces=3, dim=8)()
        >>> masks.shape, bool(((masks > 0) & (masks < 1)).all())
        (torch.Size([3, 8]), True)
    """

    def __init__(self, num_subspaces: int, dim: int, *, mean: float = 1.0, std: float = 0.5) -> None:
        super().__init__(num_subspaces, dim, mean=mean, std=std)

    def forward(self) -> Tensor:
        return torch.sigmoid(self.weight) + 0 * self.weight  # weights that are not finite show


class ReLUMasks(MaskParameterization):
    """``relu(weight)``: entries in [0, inf).

    Ends: exact zeros, from which no gradient leads back; no upper bound. Collapse: yes. Under an invariance
    term the masks shrink, and held up by their mean or their norm they retreat to a few dimensions of large
    value.

    Args:
        num_subspaces: K.
        dim: D.
        mean: Start of ``weight``: 0.9, that of Conditional Similarity Networks (arXiv 1603.07810).
        std: Spread of the start: 0.7, likewise; a tenth of the entries start closed for good.

    Example:
        >>> from mast_ops.masks import ReLUMasks
        >>> bool((ReLUMasks(num_subspaces=3, dim=8)() >= 0).all())
        True
    """

    def __init__(self, num_subspaces: int, dim: int, *, mean: float = 0.9, std: float = 0.7) -> None:
        super().__init__(num_subspaces, dim, mean=mean, std=std)

    def forward(self) -> Tensor:
        return torch.relu(self.weight) + 0 * self.weight


class SoftplusMasks(MaskParameterization):
    """``softplus(weight)``: entries in (0, inf), a ReLU whose closed entries can open again.

    Ends: 0 is approached, never reached, and the gradient fades towards it; no upper bound. Collapse: yes,
    as for :class:`ReLUMasks`.

    Args:
        num_subspaces: K.
        dim: D.
        mean: Start of ``weight``: 0.54 opens masks to about 1.
        std: Spread of the start.

    Example:
        >>> from mast_ops.masks import SoftplusMasks
        >>> bool((SoftplusMasks(num_subspaces=3, dim=8)() > 0).all())
        True
    """

    def __init__(self, num_subspaces: int, dim: int, *, mean: float = 0.54, std: float = 0.5) -> None:
        super().__init__(num_subspaces, dim, mean=mean, std=std)

    def forward(self) -> Tensor:
        return F.softplus(self.weight) + 0 * self.weight
