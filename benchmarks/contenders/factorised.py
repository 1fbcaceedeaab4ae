"""One subspace a sample: pair i differs in augmentation ``kind[i]`` alone, and is measured there alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import limits
from benchmarks.case import Case, Contender, Loss, Settings
from benchmarks.contenders.pairs import CPU, CUDA, QUICK
from benchmarks.inputs import two_views
from mast_ops.functional import masked_distance

Distances = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def loop(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor) -> Tensor:
    distances, order = [], []
    for k, mask in enumerate(masks):
        own = (kind == k).nonzero()[:, 0]
        distances.append(((z0[own] - z1[own]) * mask).square().sum(1))
        order.append(own)
    return torch.cat(distances)[torch.cat(order).argsort()]


def gathered_masks(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor) -> Tensor:
    return ((z0 - z1) * masks[kind]).square().sum(1)


def all_then_gather(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor) -> Tensor:
    return ((z0 - z1).square() @ masks.square().T).gather(1, kind[:, None]).squeeze(1)


def mean(distances: Distances) -> Loss:
    def loss(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor, weight: Tensor) -> Tensor:
        return distances(z0, z1, masks, kind).mean()

    return loss


def weighted(distances: Distances) -> Loss:
    def loss(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor, weight: Tensor) -> Tensor:
        return (distances(z0, z1, masks, kind) * weight).sum()

    return loss


def factorised_mean(settings: Settings) -> Case:
    def ours(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor, weight: Tensor) -> Tensor:
        return masked_distance(z0, z1, masks, kind=kind, reduction="mean", backend=settings.backend)

    return _case(settings, "factorised-mean", "mean masked distance, one subspace a sample", ours, mean)


def factorised_none(settings: Settings) -> Case:
    def ours(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor, weight: Tensor) -> Tensor:
        return (masked_distance(z0, z1, masks, kind=kind, backend=settings.backend) * weight).sum()

    return _case(settings, "factorised-none", "masked distance of every pair, one subspace a sample", ours, weighted)


def _case(settings: Settings, name: str, title: str, ours: Loss, reduced: Callable[[Distances], Loss]) -> Case:
    shape = settings.shape(CPU, CUDA, QUICK)
    device = settings.device
    by_hand = (
        Contender("gather of masks", reduced(gathered_masks)),
        Contender("all K, gather", reduced(all_then_gather)),
    )
    return Case(
        name,
        title,
        shape,
        two_views(
            settings,
            shape,
            lambda g: torch.randint(shape.k, (shape.n,), generator=g, device=device),
            lambda g: torch.rand(shape.n, generator=g, device=device),
        ),
        (
            Contender("mast_ops", ours, "ours"),
            Contender("loop over K", reduced(loop), "loop"),
            *by_hand,
            *(c.compiled() for c in by_hand),
        ),
        reduced(gathered_masks),
        limits.pairs(*shape, settings.dtype.itemsize, products=0),
    )
