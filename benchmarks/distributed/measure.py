"""The same on real processes: every byte that the library hands to torch.distributed, and the peak of memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory
from benchmarks.case import Inputs
from benchmarks.distributed.model import Setup
from mast_ops import functional


def rank(own: int, name: str, s: Setup) -> dict[str, float]:
    """``sent`` and ``peak`` bytes of one forward and backward pass on this rank."""
    g = torch.Generator().manual_seed(own)
    z0, z1 = torch.randn(2, s.samples, s.dim, generator=g).unbind()
    masks = torch.rand(s.subspaces, s.dim, generator=torch.Generator().manual_seed(0))
    learned = tuple(x.clone().requires_grad_() for x in (z0, z1, masks))
    loss = _LOSSES[name]
    with _counted() as sent:
        loss(*learned).backward()
    return {"sent": sum(sent), "peak": memory.measure(loss, Inputs(learned))["peak"]}


def _info_nce(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return functional.subspace_info_nce(
        z0, z1, masks, temperature=0.2, symmetric=True, gather_distributed=True, backend="chunked"
    )


def _nt_xent(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return functional.subspace_nt_xent(z0, z1, masks, temperature=0.2, gather_distributed=True, backend="chunked")


def _vicreg(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    moments = [functional.subspace_moments(z, masks, gather_distributed=True, backend="chunked") for z in (z0, z1)]
    return torch.stack([x.mean() for pair in moments for x in pair]).sum()


def _gathered(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    """What a user writes: all views of all ranks, and the plain loss for each mask."""
    all0, all1 = _Gather.apply(z0), _Gather.apply(z1)
    own = torch.arange(len(z0)) + dist.get_rank() * len(z0)
    losses = []
    for mask in masks:
        for anchors, candidates in ((z0, all1), (z1, all0)):
            scores = F.normalize(anchors * mask) @ F.normalize(candidates * mask).T / 0.2
            losses.append(F.cross_entropy(scores, own))
    return torch.stack(losses).mean()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "InfoNCE, ring": _info_nce,
    "NT-Xent, ring": _nt_xent,
    "InfoNCE, gathered": _gathered,
    "VICReg's statistics, reduced": _vicreg,
}
MEASURED = tuple(_LOSSES)


@contextmanager
def _counted() -> Iterator[list[float]]:
    """Collects bytes sent, a collective as its ring algorithm moves it."""
    sent: list[float] = []
    others = dist.get_world_size() - 1

    def counting(name: str, count: Callable[..., float]) -> Any:
        real = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            sent.append(count(*args))
            return real(*args, **kwargs)

        return mock.patch.object(dist, name, call)

    def exchanged(operations: list[dist.P2POp]) -> float:
        return sum(x.tensor.nbytes for x in operations if x.op is dist.isend)

    with (
        counting("all_reduce", lambda x: 2 * x.nbytes * others / (others + 1)),
        counting("all_gather", lambda _, x: x.nbytes * others),
        counting("batch_isend_irecv", exchanged),
    ):
        yield sent
