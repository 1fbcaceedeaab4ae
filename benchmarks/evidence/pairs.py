"""Pairs of views: which augmentations differ in each, and in which subspace that is."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.evidence.factors import Draws, draw
from benchmarks.evidence.methods import Method


class Pairs(NamedTuple):
    draws0: Draws
    draws1: Draws
    subspace: Tensor
    """(N,): the augmentation that differs, or K where all do; of all-but-one spaces, the one that does not."""


def sample(method: Method, num_samples: int, generator: torch.Generator) -> Pairs:
    names = method.augmentations
    count = len(names)
    draws0, fresh = (draw(num_samples, generator, names) for _ in range(2))
    single = torch.randint(count, (num_samples,), generator=generator)
    composed = {
        "composed": torch.ones(num_samples, dtype=torch.bool),
        "factorised": torch.zeros(num_samples, dtype=torch.bool),
        "half composed": torch.rand(num_samples, generator=generator) < 0.5,
        "all but one": torch.rand(num_samples, generator=generator) < 1 / (count + 1),
    }[method.pairs]
    one = F.one_hot(single, count).bool()
    allowed = torch.tensor([name not in method.shared for name in names])
    differs = torch.where(composed[:, None], allowed, ~one if method.pairs == "all but one" else one)
    draws1 = {name: torch.where(differs[:, k : k + 1], fresh[name], draws0[name]) for k, name in enumerate(names)}
    return Pairs(draws0, draws1, torch.where(composed, count, single))
