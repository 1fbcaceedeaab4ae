"""One subspace a sample: what many subspaces cost where each sample reads one of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import limits
from benchmarks.case import Case, Contender, Inputs, Loss, Role, Settings, Shape
from benchmarks.contenders.contrast import TEMPERATURE
from benchmarks.inputs import learned, pair
from mast_ops.functional import subspace_info_nce

_FEW = 4


def selecting_loop(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor) -> Tensor:
    """The samples of each subspace selected by hand."""
    total = z0.new_zeros(())
    for k, mask in enumerate(masks):
        own = (kind == k).nonzero()[:, 0]
        logits = F.normalize(z0[own] * mask, dim=1) @ F.normalize(z1 * mask, dim=1).T / TEMPERATURE
        total = total + F.cross_entropy(logits, own, reduction="sum")
    return total / len(z0)


def own(settings: Settings) -> Case:
    shape = settings.shape(Shape(512, 128, 256), Shape(4096, 256, 256), Shape(32, 16, 32))
    n, d, k = shape

    def ours(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor) -> Tensor:
        return subspace_info_nce(z0, z1, masks, temperature=TEMPERATURE, kind=kind, backend=settings.backend)

    def plain(z0: Tensor, z1: Tensor, masks: Tensor, kind: Tensor) -> Tensor:
        return subspace_info_nce(z0, z1, masks, temperature=TEMPERATURE, kind=kind, backend="eager")

    def draw(generator: torch.Generator) -> Inputs:
        masks = torch.rand(k, d, generator=generator, device=settings.device)
        return learned(settings, *pair(settings, shape, generator), masks)

    ways: tuple[tuple[str, Loss, Role], ...] = (
        ("mast_ops", ours, "ours"),
        ("plain formula", plain, "other"),
        ("loop that selects", selecting_loop, "loop"),
    )
    contenders = [
        Contender(
            f"{name}, K={rows}", _first(rows, loss), role if rows == k else "other", reference=_first(rows, plain)
        )
        for name, loss, role in ways
        for rows in (k, _FEW)
    ]
    return Case(
        "own",
        f"InfoNCE, one subspace a sample, temperature {TEMPERATURE}",
        shape,
        draw,
        tuple(contenders),
        _first(k, plain),
        limits.info_nce(n, d, 1, settings.dtype.itemsize),
        (n, d, n),
    )


def _first(rows: int, loss: Loss) -> Loss:
    """With so many of the masks, which samples read in turn."""
    return lambda z0, z1, masks: loss(z0, z1, masks[:rows], torch.arange(len(z0), device=z0.device) % rows)
