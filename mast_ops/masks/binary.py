"""Exact zeros and ones of fixed coverage."""

import torch
from torch import Tensor

from mast_ops._checks import check_positive, check_share
from mast_ops._dials import Dial
from mast_ops.masks.parameterization import MaskParameterization


class BinaryMasks(MaskParameterization):
    """Each row opens the ``coverage`` D entries of largest weight: entries are exactly 0 or 1.

    Gradients are those of ``sigmoid((weight - t_k) / temperature)``, with t_k between the last open entry and the first
    closed one: a straight-through estimator, under which entries change sides as weights cross. What is closed is
    exactly closed, so that an augmentation's effect is not pressed out of the dimensions that should keep it, and
    kernels skip their columns. Collapse: impossible in mass.

    Rows start with closed entries of their own, apart from one another where D has room for all: every subspace has
    dimensions that it alone leaves free. Training may make them overlap.

    The head's default: in `benchmarks/evidence` normalized masks did as well and sigmoid ones worse, on two seeds, and
    neither lets kernels skip a column. Masks that learned ten times as fast as the model did worse too.

    Args:
        num_subspaces: K.
        dim: D.
        coverage: Share of open entries in every row, strictly between 0 and 1, rounded to whole entries: at
            least one open, and from D = 2 on at least one closed. It may be set anew while training.
            0.95 leaves a twentieth of the dimensions to each augmentation: few numbers say what one of them did.
        mean: Start of ``weight``; only differences within a row matter.
        std: Spread of the start; entries that start closed lie five times as far below.
        temperature: Over how wide a band around the edge weights feel a gradient, > 0.

    Raises:
        ValueError: ``coverage`` is not strictly between 0 and 1, or ``temperature`` is not a positive number.

    Source: ours; the estimator is that of Bengio et al. 2013 (arXiv 1308.3432).

    Example:
        >>> from mast_ops.masks import BinaryMasks
        >>> masks = BinaryMasks(num_subspaces=2, dim=8, coverage=0.75)()
        >>> masks.sum(dim=1).detach(), masks.prod(dim=0).sum().detach()
        (tensor([6., 6.]), tensor(4.))
    """

    temperature = Dial(check_positive)
    edge = Dial(check_positive)  # between the places of the last open entry and the first closed one
    _temperature: Tensor
    _edge: Tensor

    def __init__(
        self,
        num_subspaces: int,
        dim: int,
        *,
        coverage: float = 0.95,
        mean: float = 0.0,
        std: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        self.temperature = temperature
        self._share = check_share("coverage", coverage)  # reset_parameters wants it, and the setter the weights
        super().__init__(num_subspaces, dim, mean=mean, std=std)
        self.coverage = self._share

    @property
    def coverage(self) -> float:
        """Share of open entries in every row."""
        return self._share

    @coverage.setter
    def coverage(self, value: float) -> None:
        self._share = check_share("coverage", value)
        self.edge = self.num_open - 0.5

    @property
    def num_open(self) -> int:
        """Open entries of every row."""
        return max(1, min(round(self._share * self.dim), self.dim - 1))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        super().start(weight)
        closed = self.dim - self.num_open
        order = torch.randperm(self.dim, device=weight.device)
        for k, row in enumerate(weight):
            places = order.roll(-k * closed)
            own, others = places[:closed], places[closed:]
            row[own] -= 5 * self.std
            ordered = row.sort().values  # of many dimensions the tails reach across: those values change places
            row[own[row[own].argsort()]] = ordered[:closed]
            row[others[row[others].argsort()]] = ordered[closed:]

    def forward(self) -> Tensor:
        dtype = self.weight.dtype
        ordered = self.weight.detach().sort(dim=1, descending=True)
        place, edge = torch.arange(self.weight.shape[1], dtype=dtype, device=self.weight.device), self._edge.to(dtype)
        beside = (place - edge).abs() < 1  # the last open entry, and the first closed one if there is any
        between = torch.where(beside, ordered.values, 0).sum(dim=1, keepdim=True) / beside.sum()
        soft = torch.sigmoid((self.weight - between) / self._temperature.to(dtype))
        hard = torch.zeros_like(soft).scatter(1, ordered.indices, (place < edge).to(dtype).expand_as(soft))
        # Beside infinite weights it is the others that were finite.
        return hard + (soft - soft.detach()) + 0 * self.weight

    def settings(self) -> dict[str, float | list[float]]:
        return {"coverage": self.coverage, "temperature": self.temperature}
