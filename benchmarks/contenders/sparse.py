"""Sparse masks: columns where a mask is zero cost nothing. The dense ``mast_ops`` row is what the others divide by."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import limits
from benchmarks.case import Case, Contender, Inputs, Loss, Role, Settings, Shape
from benchmarks.contenders.contrast import TEMPERATURE, row_chunks
from benchmarks.inputs import learned, pair
from benchmarks.limits import Work
from mast_ops.functional import subspace_info_nce

_LARGE = Shape(1024, 2048, 8)
_BLOCK = 32  # columns that stay or go together
_VARIANTS = ((1.0, 1), (0.5, 1), (0.25, 1), (0.1, 1), (0.5, _BLOCK), (0.25, _BLOCK), (0.1, _BLOCK))


def selecting_loop(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
    """The columns of each subspace selected by hand."""
    target, losses = torch.arange(len(z0), device=z0.device), []
    for mask in masks:
        kept = mask.nonzero()[:, 0]
        a, b = (F.normalize(z[:, kept] * mask[kept], dim=1) for z in (z0, z1))
        logits = a @ b.T / TEMPERATURE
        losses.append((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
    return torch.stack(losses).mean()


def sparse(settings: Settings) -> Case:
    shape = settings.shape(_LARGE, _LARGE, Shape(64, 256, 3))

    def ours(z0: Tensor, z1: Tensor, masks: Tensor) -> Tensor:
        return subspace_info_nce(z0, z1, masks, temperature=TEMPERATURE, symmetric=True, backend=settings.backend)

    def draw(generator: torch.Generator) -> Inputs:
        masks = (_draw_masks(shape, *variant, generator, settings.device) for variant in _VARIANTS)
        return learned(settings, *pair(settings, shape, generator), *masks)

    def work(density: float) -> Work:
        return limits.info_nce(shape.n, shape.d, shape.k * density, settings.dtype.itemsize)

    references = [_with_masks(number, row_chunks) for number in range(len(_VARIANTS))]
    rivals: tuple[tuple[str, Loss, Role], ...] = (
        ("mast_ops", ours, "ours"),
        ("loop that selects", selecting_loop, "loop"),
    )
    contenders = [
        Contender(
            f"{name}, {_words(density, block)}",
            _with_masks(number, loss),
            role if density == 1 else "other",
            work=work(density),
            reference=references[number],
        )
        for name, loss, role in rivals
        for number, (density, block) in enumerate(_VARIANTS)
    ]
    return Case(
        "sparse",
        f"InfoNCE in both directions, sparse masks, temperature {TEMPERATURE}",
        shape,
        draw,
        tuple(contenders),
        references[0],
        work(1.0),
        (shape.n, shape.d, shape.n),
    )


def _words(density: float, block: int) -> str:
    if density == 1:
        return "dense"
    return f"{density:.0%} of the columns" + (f" in blocks of {block}" if block > 1 else "")


def _draw_masks(shape: Shape, density: float, block: int, generator: torch.Generator, device: str) -> Tensor:
    """Values in (0, 1] on exactly ``density`` of the columns, or of the blocks of columns, of each mask."""
    values = 1 - torch.rand(shape.k, shape.d, generator=generator, device=device)
    order = torch.rand(shape.k, shape.d // block, generator=generator, device=device).argsort(1).argsort(1)
    kept = order < max(round(density * shape.d / block), 1)
    return values * kept.repeat_interleave(block, 1)


def _with_masks(number: int, loss: Loss) -> Loss:
    return lambda z0, z1, *masks: loss(z0, z1, masks[number])
