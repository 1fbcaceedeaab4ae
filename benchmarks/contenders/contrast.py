"""All pairs: InfoNCE in both directions, and NT-Xent with negatives from both views."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks import limits
from benchmarks.case import Case, Contender, Loss, Settings, Shape
from benchmarks.contenders import peers
from benchmarks.inputs import two_views
from mast_ops.functional import subspace_info_nce, subspace_nt_xent

TEMPERATURE = 0.1
_ROWS = {"cpu": 512, "cuda": 4096}  # scores of a chunk of rows: 8 MB and 256 MB at the shapes below


def loop(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    return torch.stack([_both_directions(z0, z1, mask) for mask in masks]).mean()


def checkpointed_loop(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    losses = [checkpoint(_both_directions, z0, z1, mask, use_reentrant=False) for mask in masks]
    return torch.stack(losses).mean()


def _both_directions(z0: Tensor, z1: Tensor, mask: Tensor) -> Tensor:
    a, b = F.normalize(z0 * mask, dim=1), F.normalize(z1 * mask, dim=1)
    logits, target = a @ b.T / TEMPERATURE, torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def all_at_once(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    a, b = (F.normalize(z * masks[:, None], dim=2) for z in (z0, z1))
    logits, target = a @ b.mT / TEMPERATURE, torch.arange(len(z0), device=z0.device).repeat(len(masks))
    both = (F.cross_entropy(scores.flatten(0, 1), target) for scores in (logits, logits.mT))
    return sum(both, z0.new_zeros(())) / 2


def row_chunks(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    """Scores made once for both directions, a chunk of rows at a time, and again in the backward pass."""
    losses = []
    for mask in masks:
        a, b = F.normalize(z0 * mask, dim=1), F.normalize(z1 * mask, dim=1)
        chunks = [checkpoint(_chunk, part, b, use_reentrant=False) for part in a.split(_ROWS[a.device.type])]
        rows, columns = torch.cat([row for row, _ in chunks]), torch.stack([column for _, column in chunks])
        losses.append(((rows + columns.logsumexp(0)) / 2 - (a * b).sum(1) / TEMPERATURE).mean())
    return torch.stack(losses).mean()


def _chunk(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    logits = a @ b.T / TEMPERATURE
    return logits.logsumexp(1), logits.logsumexp(0)


def auto_chunked_loop(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    """Inductor's auto-chunker, which splits one product a graph, and only its rows: one direction at a time.

    A torch that lacks it refuses the option, and the run goes on without.
    """
    one_direction = _auto_chunked_direction()
    both = [one_direction(*views, mask) for mask in masks for views in ((z0, z1), (z1, z0))]
    if not torch._inductor.metrics.num_auto_chunking:
        raise RuntimeError("Inductor's auto-chunker found nothing to chunk at this shape")
    return torch.stack(both).mean()


@cache
def _auto_chunked_direction() -> Loss:
    return torch.compile(_direction, fullgraph=True, dynamic=False, options={"auto_chunker.enable": True})


def _direction(z0: Tensor, z1: Tensor, mask: Tensor) -> Tensor:
    a, b = F.normalize(z0 * mask, dim=1), F.normalize(z1 * mask, dim=1)
    return F.cross_entropy(a @ b.T / TEMPERATURE, torch.arange(len(a), device=a.device))


def info_nce(settings: Settings, shape: Shape | None = None) -> Case:
    shape = shape or settings.shape(Shape(4096, 128, 8), Shape(32768, 256, 15), Shape(128, 32, 3))
    n, d, k = shape
    scores = n * n * settings.dtype.itemsize

    def ours(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
        return subspace_info_nce(z0, z1, masks, temperature=TEMPERATURE, symmetric=True, backend=settings.backend)

    def ours_again(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
        return subspace_info_nce(
            z0, z1, masks, temperature=TEMPERATURE, reduction="none", symmetric=True, backend=settings.backend
        ).mean()

    contenders = (
        Contender("mast_ops", ours, "ours"),
        Contender('mast_ops, reduction="none"', ours_again),
        Contender("loop over K", loop, "loop"),
        Contender("loop, a checkpoint a subspace", checkpointed_loop),
        Contender("all K at once, K x N x N", all_at_once, needs=5 * k * scores),
        Contender("row chunks, checkpointed", row_chunks),
        Contender("loop over K, compiled", loop, compile="whole"),
        Contender("one direction at a time, Inductor's auto-chunker", auto_chunked_loop, compile="inside"),
    )
    found, missing = peers.info_nce(settings.device, TEMPERATURE)
    return Case(
        "info-nce",
        f"InfoNCE in both directions, temperature {TEMPERATURE}",
        shape,
        two_views(settings, shape),
        (*contenders, *found),
        row_chunks,
        limits.info_nce(n, d, k, settings.dtype.itemsize),
        (n, d, n),
        missing,
    )


def nt_xent_loop(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    """SimCLR's loss as its scripts have it, in every subspace."""
    losses = []
    for mask in masks:
        z = F.normalize(torch.cat([z0 * mask, z1 * mask]))
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        losses.append(F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z0))))
    return torch.stack(losses).mean()


def nt_xent_chunks(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    """A chunk of rows at a time: the reference, which has no room for 2N x 2N in float64."""
    losses = []
    for mask in masks:
        z = F.normalize(torch.cat([z0 * mask, z1 * mask]))
        number = torch.arange(len(z), device=z.device)
        parts = zip(*(x.split(_ROWS[z.device.type]) for x in (z, number)), strict=True)
        lse = torch.cat([checkpoint(_without_itself, part, z, own, use_reentrant=False) for part, own in parts])
        losses.append((lse - (z * z.roll(len(z0), 0)).sum(1) / TEMPERATURE).mean())
    return torch.stack(losses).mean()


def _without_itself(part: Tensor, z: Tensor, own: Tensor) -> Tensor:
    return (part @ z.T / TEMPERATURE).scatter(1, own[:, None], -torch.inf).logsumexp(1)


def nt_xent(settings: Settings) -> Case:
    shape = settings.shape(Shape(2048, 128, 8), Shape(16384, 256, 15), Shape(64, 32, 3))
    n, d, k = shape

    def ours(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
        return subspace_nt_xent(z0, z1, masks, temperature=TEMPERATURE, backend=settings.backend)

    by_hand = Contender("loop over K", nt_xent_loop, "loop")
    found, missing = peers.nt_xent(settings.device, TEMPERATURE)
    return Case(
        "nt-xent",
        f"NT-Xent, temperature {TEMPERATURE}",
        shape,
        two_views(settings, shape),
        (
            Contender("mast_ops", ours, "ours"),
            by_hand,
            Contender("row chunks, checkpointed", nt_xent_chunks),
            *found,
            by_hand.compiled(),
        ),
        nt_xent_chunks,
        limits.nt_xent(n, d, k, settings.dtype.itemsize),
        (2 * n, d, 2 * n),
        missing,
    )
