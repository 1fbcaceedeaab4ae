"""VICReg's variance and covariance in all subspaces. What matters is the time for K masks over that for one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import limits
from benchmarks.case import Case, Contender, Loss, Settings, Shape
from benchmarks.contenders import peers
from benchmarks.inputs import two_views
from mast_ops.functional import subspace_moments

_LARGE = Shape(256, 2048, 15)
_VARIANCE = 25.0  # VICReg's weight; the covariance has 1


def loop(z: Tensor, masks: Tensor) -> Tensor:
    losses = []
    for mask in masks:
        x = z * mask
        x = x - x.mean(0)
        hinge = F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()
        covariance = (x.T @ x / (len(x) - 1)).square()
        losses.append(_VARIANCE * hinge + (covariance.sum() - covariance.diagonal().sum()) / x.shape[1])
    return torch.stack(losses).mean()


def moments(settings: Settings) -> Case:
    n, d, k = shape = settings.shape(_LARGE, _LARGE, Shape(64, 128, 3))
    size = settings.dtype.itemsize

    def ours(z: Tensor, masks: Tensor) -> Tensor:
        variance, covariance = subspace_moments(z, masks, backend=settings.backend)
        return _VARIANCE * variance.mean() + covariance.mean()

    one, alone = limits.moments(n, d, 1, size), _first(loop)
    by_hand = Contender(f"loop over K={k}", loop, "loop")
    found, missing = peers.vicreg_moments(_VARIANCE)
    draw = two_views(settings, shape)
    return Case(
        "moments",
        "VICReg's variance and covariance of one view",
        shape,
        lambda generator: (drawn := draw(generator))._replace(learned=drawn.learned[1:]),
        (
            Contender(f"mast_ops, K={k}", ours, "ours"),
            Contender("mast_ops, K=1", _first(ours), work=one, reference=alone),
            by_hand,
            Contender("one mask by hand, K=1", alone, work=one, reference=alone),
            *found,
            by_hand.compiled(),
        ),
        loop,
        limits.moments(n, d, k, size),
        (d, n, d),
        missing,
    )


def _first(loss: Loss) -> Loss:
    return lambda z, masks: loss(z, masks[:1])
