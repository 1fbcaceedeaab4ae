"""Exact zeros and ones of fixed coverage."""

import torch
from torch import Tensor, nn

from mast_ops._checks import check_positive
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
        coverage: Share of open entries in every row, strictly between 0 and 1, rounded to whole entries, at least one;
            of few dimensions none may be left to close (D <= 10 at the default).
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

    def __init__(
        self,
        num_subspaces: int,
        dim: int,
        coverage: float = 0.95,
        mean: float = 0.0,
        std: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        if not 0 < coverage < 1:
            raise ValueError(f"coverage: got {coverage}, wanted a number strictly between 0 and 1")
        check_positive("temperature", temperature)
        self.coverage, self.temperature = coverage, temperature
        super().__init__(num_subspaces, dim, mean, std)

    @property
    def num_open(self) -> int:
        """Open entries of every row."""
        return max(1, round(self.coverage * self.dim))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, self.mean, self.std)
        closed = self.dim - self.num_open
        order = torch.randperm(self.dim, device=self.weight.device)
        for k, row in enumerate(self.weight):
            places = order.roll(-k * closed)
            own, others = places[:closed], places[closed:]
            row[own] -= 5 * self.std
            ordered = row.sort().values  # of many dimensions the tails reach across: those values change places
            row[own[row[own].argsort()]] = ordered[:closed]
            row[others[row[others].argsort()]] = ordered[closed:]

    def forward(self) -> Tensor:
        ordered = self.weight.detach().sort(dim=1, descending=True)
        edge = ordered.values[:, self.num_open - 1 : self.num_open + 1].mean(dim=1, keepdim=True)
        soft = torch.sigmoid((self.weight - edge) / self.temperature)
        hard = torch.zeros_like(soft).scatter(1, ordered.indices[:, : self.num_open], 1.0)
        return hard + (soft - soft.detach())

    def settings(self) -> dict[str, float | list[float]]:
        return {"coverage": self.coverage, "temperature": self.temperature}
