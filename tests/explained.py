"""Pairs whose augmentations explain dimensions of their own, and the plain formula of what they explain."""

import torch
from torch import nn

from mast_ops import AllocatedMasks, MaskedSubspaceHead

KINDS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.bool)
D = 12


def head(**options) -> MaskedSubspaceHead:
    masks = AllocatedMasks(3, D, coverage=1 - 2 / D, **{"warmup": 1, "renew": 1, **options})
    return MaskedSubspaceHead(nn.Identity(), ["a", "b", "c"], masks=masks, kinds=KINDS, output_dim=D)


def pairs(seed: int = 0, n: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Augmentation k moves dimensions 2k and 2k + 1 alone, and all augmentations move 6 to 8 a little."""
    g = torch.Generator().manual_seed(seed)
    z0 = torch.randn(n, D, generator=g)
    kind = torch.arange(n) % len(KINDS)
    z1 = z0.clone()
    for k in range(3):
        differs = KINDS[kind, k]
        z1[differs, 2 * k : 2 * k + 2] = torch.randn(int(differs.sum()), 2, generator=g)
    z1[:, 6:9] += 0.3 * torch.randn(n, 3, generator=g)
    return z0, z1, kind


def plain(z0: torch.Tensor, z1: torch.Tensor, kind: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    z0, z1, weight = z0.double(), z1.double(), weight.double()
    variance = (z0.var(0, correction=0) + z1.var(0, correction=0)) / 2
    gap = (z0 - z1).square()
    rows = []
    for k in range(3):
        mine = weight * ((KINDS[kind].sum(1) == 1) & KINDS[kind, k])
        rows.append((mine[:, None] * gap).sum(0) / mine.sum() / (2 * variance))
    return torch.stack(rows)
