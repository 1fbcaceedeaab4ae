"""Masked cosine similarity of all pairs in all subspaces."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import limits
from benchmarks.case import Case, Contender, Settings
from benchmarks.contenders.pairs import CPU, CUDA, QUICK, weighted
from benchmarks.inputs import two_views
from mast_ops.functional import masked_cosine_similarity


def loop(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return torch.stack([F.cosine_similarity(z0 * mask, z1 * mask) for mask in masks], 1)


def skinny(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    squared = masks.square().T
    dot, norm0, norm1 = (z0 * z1) @ squared, z0.square() @ squared, z1.square() @ squared
    return dot * norm0.rsqrt() * norm1.rsqrt()


def cosine(settings: Settings) -> Case:
    shape = settings.shape(CPU, CUDA, QUICK)

    def ours(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
        return masked_cosine_similarity(z0, z1, masks, backend=settings.backend)

    by_hand = (Contender("loop over K", weighted(loop), "loop"), Contender("skinny products", weighted(skinny)))
    return Case(
        "cosine",
        "masked cosine of every pair, an upstream gradient for each",
        shape,
        two_views(settings, shape, lambda g: torch.rand(shape.n, shape.k, generator=g, device=settings.device)),
        (Contender("mast_ops", weighted(ours), "ours"), *by_hand, *(c.compiled() for c in by_hand)),
        weighted(loop),
        limits.pairs(*shape, settings.dtype.itemsize, products=3),
    )
