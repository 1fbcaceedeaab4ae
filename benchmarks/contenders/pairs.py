"""Masked squared distances of all pairs in all subspaces: each with a weight of its own, and their mean."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import limits
from benchmarks.case import Case, Contender, Loss, Settings, Shape
from benchmarks.inputs import two_views
from mast_ops.functional import masked_distance

CPU, CUDA, QUICK = Shape(256, 8192, 15), Shape(4096, 8192, 15), Shape(64, 512, 3)


def loop(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return torch.stack([(z0 * mask - z1 * mask).square().sum(1) for mask in masks], 1)


def broadcast(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return ((z0 - z1)[:, None] * masks).square().sum(-1)


def skinny(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return (z0 - z1).square() @ masks.square().T


def weighted(values: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """A loss whose gradient differs from entry to entry, as an upstream gradient does."""

    def loss(z0: Tensor, z1: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
        return (values(z0, z1, masks) * weight).sum()

    return loss


def pairs(settings: Settings, shape: Shape | None = None) -> Case:
    shape = shape or settings.shape(CPU, CUDA, QUICK)

    def ours(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
        return masked_distance(z0, z1, masks, backend=settings.backend)

    mine = Contender("mast_ops", weighted(ours), "ours")
    by_hand = (
        Contender("loop over K", weighted(loop), "loop"),
        Contender("broadcast N x K x D", weighted(broadcast), needs=_broadcast_bytes(settings, shape)),
        Contender("skinny product", weighted(skinny)),
    )
    return Case(
        "pairs",
        "masked squared distance of every pair, an upstream gradient for each",
        shape,
        two_views(settings, shape, lambda g: torch.rand(shape.n, shape.k, generator=g, device=settings.device)),
        (mine, *by_hand, mine.compiled(), *(c.compiled() for c in by_hand)),
        weighted(loop),
        limits.pairs(*shape, settings.dtype.itemsize),
    )


def mean_loop(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return torch.stack([F.mse_loss(z0 * mask, z1 * mask) for mask in masks]).mean() * z0.shape[1]


def mean_broadcast(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return broadcast(z0, z1, masks).mean()


def mean_skinny(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return skinny(z0, z1, masks).mean()


def sum_first(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return (masks.square() @ (z0 - z1).square().sum(0)).sum() / (len(z0) * len(masks))


def pairs_mean(settings: Settings, shape: Shape | None = None) -> Case:
    shape = shape or settings.shape(CPU, CUDA, QUICK)

    def mean(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
        return masked_distance(z0, z1, masks, reduction="mean", backend=settings.backend)

    ours = Contender("mast_ops", mean, "ours")
    by_hand = (
        Contender("loop over K", mean_loop, "loop"),
        Contender("broadcast N x K x D", mean_broadcast, needs=_broadcast_bytes(settings, shape)),
        Contender("skinny product", mean_skinny),
        Contender("sum over N first", sum_first),
    )
    return Case(
        "pairs-mean",
        "mean masked squared distance, as a loss has it",
        shape,
        two_views(settings, shape),
        (ours, *by_hand, ours.compiled(), *(c.compiled() for c in by_hand)),
        mean_loop,
        limits.pairs(*shape, settings.dtype.itemsize, products=0),
    )


def _broadcast_bytes(settings: Settings, shape: Shape) -> float:
    """The difference times the masks, its square, and one gradient of that size."""
    return 3 * shape.n * shape.d * shape.k * settings.dtype.itemsize
