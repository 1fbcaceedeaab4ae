"""Random inputs: never zeros, which run faster and hide errors, and enough sets to be cold in every cache."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.case import Case, Inputs, Settings, Shape

_COLD = 128 * 2**20  # bytes, several times a last-level cache
_FEWEST, _MOST = 4, 64


def two_views(
    settings: Settings, shape: Shape, *constants: Callable[[torch.Generator], Tensor]
) -> Callable[[torch.Generator], Inputs]:
    """z0, z1 related to it, and masks in [0, 1); then what ``constants`` draw."""

    def draw(generator: torch.Generator) -> Inputs:
        z0, z1 = pair(settings, shape, generator)
        masks = torch.rand(shape.k, shape.d, generator=generator, device=settings.device)
        return learned(settings, z0, z1, masks)._replace(constant=tuple(make(generator) for make in constants))

    return draw


def pair(settings: Settings, shape: Shape, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    z0, noise = torch.randn(2, shape.n, shape.d, generator=generator, device=settings.device)
    return z0, z0 + 2 * noise  # near enough to tell the positives, far enough that no loss is almost zero


def learned(settings: Settings, *tensors: Tensor) -> Inputs:
    return Inputs(tuple(x.to(settings.dtype, copy=True).requires_grad_() for x in tensors))


def draw_sets(case: Case, settings: Settings) -> list[Inputs]:
    def draw(seed: int) -> Inputs:
        return case.inputs(torch.Generator(settings.device).manual_seed(seed))

    first = draw(0)
    wanted = _FEWEST if settings.quick else min(max(math.ceil(_COLD / first.nbytes), _FEWEST), _MOST)
    return [first, *(draw(seed) for seed in range(1, wanted))]
