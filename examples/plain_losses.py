"""The losses of SimCLR, BYOL and VICReg as plain scripts have them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR."""
    n, z = len(z0), F.normalize(torch.cat([z0, z1]))
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL."""
    return -F.cosine_similarity(prediction, target).mean()


def vicreg(z0: Tensor, z1: Tensor) -> Tensor:
    """VICReg."""
    hinge = sum(F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean() for z in (z0, z1)) / 2
    covariances = [torch.cov(z.T).square() for z in (z0, z1)]
    off_diagonal = sum(c.sum() - c.diagonal().sum() for c in covariances) / z0.shape[1]
    return 25 * F.mse_loss(z0, z1) + 25 * hinge + off_diagonal


def over_pairs(loss: Callable[[Tensor, Tensor], Tensor], outs: list[Tensor]) -> Tensor:
    """The mean over pairs of views, one of them at least among the first two, the global ones."""
    pairs = [(outs[i], out) for i in range(2) for out in outs[i + 1 :]]
    return torch.stack([loss(z0, z1) for z0, z1 in pairs]).mean()
