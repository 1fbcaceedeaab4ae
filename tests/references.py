"""What every function means, one plain formula each, written without a look at the library's: for float64, and slow.

A pair is seen through R masks: ``seen`` is (N, R, D), each sample's own. With kinds of pairs R is 1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_rounding: list[tuple[float, torch.Generator]] = []


@contextmanager
def rounded(eps: float, seed: int) -> Iterator[None]:
    """Norms come out a little wrong, each by its own share of ``eps``, whatever they are of.

    No change of the inputs does that: a cosine of two numbers is 1 or -1 to the last digit, and its gradient zero. In a
    product over norms it is not, and the share that is left over is the larger, the less a mask leaves of a row.
    """
    _rounding.append((eps, torch.Generator().manual_seed(seed)))
    try:
        yield
    finally:
        _rounding.pop()


def seen_by(masks: Tensor, kinds: Tensor | None, kind: Tensor | None, n: int) -> Tensor:
    if kind is None:
        return masks[None].expand(n, -1, -1)
    return of_kinds(masks, kinds)[kind][:, None]


def of_kinds(masks: Tensor, kinds: Tensor | None) -> Tensor:
    if kinds is None:
        return masks
    rows = []
    for differs in kinds.tolist():
        row = torch.ones_like(masks[0])
        for mask, one in zip(masks, differs, strict=True):
            row = row * mask if one else row
        rows.append(row)
    return torch.stack(rows)


def norm(x: Tensor, eps: float) -> Tensor:
    right = x.square().sum(-1).clamp_min(eps**2).sqrt()
    for share, generator in _rounding:
        right = right + share * torch.randn(right.shape, generator=generator, dtype=right.dtype) * right.detach()
    return right


def cosines(x: Tensor, y: Tensor, eps: float) -> Tensor:
    return (x * y).sum(-1) / (norm(x, eps) * norm(y, eps))


def distance(z0: Tensor, z1: Tensor, seen: Tensor) -> Tensor:
    return (seen * (z0 - z1)[:, None]).square().sum(-1)


def cosine(z0: Tensor, z1: Tensor, seen: Tensor, eps: float = 1e-8) -> Tensor:
    return cosines(seen * z0[:, None], seen * z1[:, None], eps)


def all_cosines(anchors: Tensor, candidates: Tensor, seen: Tensor) -> Tensor:
    """(N, C, R)."""
    unit0 = seen * anchors[:, None]
    unit0 = unit0 / norm(unit0, 1e-12)[..., None]
    unit1 = seen[:, None] * candidates[None, :, None]
    unit1 = unit1 / norm(unit1, 1e-12)[..., None]
    return (unit0[:, None] * unit1).sum(-1)


def softmax_losses(scores: Tensor, positive: Tensor, allowed: Tensor) -> Tensor:
    scores = scores.masked_fill(~allowed[..., None], -math.inf)
    chosen = torch.where(positive[..., None], scores, 0).sum(1) / positive.sum(1)[:, None]
    return torch.logsumexp(scores, 1) - chosen


def info_nce(
    z0: Tensor, z1: Tensor, seen: Tensor, temperature: Tensor, samples: tuple[Tensor, Tensor], both_ways: bool
) -> tuple[Tensor, Tensor | None]:
    scores = all_cosines(z0, z1, seen) / temperature
    positive = samples[0][:, None] == samples[1]
    everyone = torch.ones_like(positive)
    of_anchors = softmax_losses(scores, positive, everyone)
    return of_anchors, softmax_losses(scores.transpose(0, 1), positive.T, everyone.T) if both_ways else None


def sup_con(z: Tensor, sample: Tensor, seen: Tensor, temperature: Tensor) -> Tensor:
    others = ~torch.eye(len(z), dtype=torch.bool)
    return softmax_losses(all_cosines(z, z, seen) / temperature, (sample[:, None] == sample) & others, others)


def nt_xent(z0: Tensor, z1: Tensor, seen: Tensor, temperature: Tensor) -> Tensor:
    n = len(z0)
    losses = sup_con(torch.cat([z0, z1]), torch.arange(n).repeat(2), torch.cat([seen, seen]), temperature)
    return (losses[:n] + losses[n:]) / 2


def sigmoid(
    z0: Tensor, z1: Tensor, seen: Tensor, scale: Tensor, bias: Tensor, samples: tuple[Tensor, Tensor]
) -> Tensor:
    logits = all_cosines(z0, z1, seen) * scale + bias
    sign = torch.where(samples[0][:, None] == samples[1], 1.0, -1.0)
    return -torch.nn.functional.logsigmoid(logits * sign[..., None]).sum(1)


def variance_hinge(z: Tensor, masks: Tensor, eps: float = 1e-4) -> Tensor:
    deviation = ((masks[:, None] * z).var(1) + eps).sqrt()
    return torch.relu(1 - deviation).mean(-1)


def off_diagonal(matrix: Tensor, masks: Tensor) -> Tensor:
    away = 1 - torch.eye(matrix.shape[0], dtype=matrix.dtype)
    return torch.stack([((mask[:, None] * mask * matrix).square() * away).sum() for mask in masks])


def covariance(z: Tensor, masks: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return off_diagonal(centred.T @ centred / (len(z) - 1), masks) / z.shape[1]


def barlow_twins(
    z0: Tensor, z1: Tensor, masks: Tensor, kinds: Tensor | None, kind: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, y = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z0, z1))
    redundancy = off_diagonal(x.T @ y / len(x), masks)
    if kind is None:
        return (masks.square() * ((x * y).mean(0) - 1).square()).sum(1), redundancy
    terms = []
    rows = of_kinds(masks, kinds)
    for s, row in enumerate(rows):
        mine = kind == s
        share = len(rows) * int(mine.sum()) / len(kind)
        own = (x * y)[mine].sum(0) / max(int(mine.sum()), 1)
        terms.append(share * (row.square() * (own - 1).square()).sum())
    return torch.stack(terms), redundancy


def sensitivity(
    z0: Tensor, z1: Tensor, masks: Tensor, kinds: Tensor | None, kind: Tensor, weight: Tensor | None, eps: float = 1e-4
) -> Tensor:
    spread = (z0.detach().var(0, correction=0) + z1.detach().var(0, correction=0)) / 2
    weight = torch.ones(len(z0), dtype=z0.dtype) if weight is None else weight.detach()
    alone = torch.eye(len(masks), dtype=torch.bool) if kinds is None else kinds
    terms = []
    for k, mask in enumerate(masks):
        only_k = torch.zeros(len(masks), dtype=torch.bool)
        only_k[k] = True
        mine = (alone == only_k).all(1)[kind]
        own = torch.where(mine, weight, 0)
        if own.sum() > 0:
            ratio = (own[:, None] * (z0 - z1).square()).sum(0) / own.sum() / 2 / spread.clamp_min(eps)
            hinge = torch.relu(1 - (ratio + eps).sqrt())
        else:
            hinge = torch.zeros_like(mask) * z0.sum()
        size = torch.where(mask < 0, -mask, mask)  # at 0 the way out is up
        terms.append((torch.relu(1 - size) * hinge).mean())
    return torch.stack(terms)


def pair_variance(log_variance: Tensor, granularity: str, kinds: Tensor | None, kind: Tensor | None) -> Tensor:
    """Log-variances of all the columns that pairs choose from: those of kinds add up those of their subspaces."""
    if granularity != "subspace" or kind is None or kinds is None:
        return log_variance
    return torch.stack([log_variance[:, row].exp().sum(1).log() for row in kinds], 1)


def own(x: Tensor, kind: Tensor | None) -> Tensor:
    """(N, R) of a table with a column for each row of the masks, or one for all."""
    if kind is None or x.shape[1] == 1:
        return x
    return x[torch.arange(len(x)), kind][:, None]


def invariance(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    kinds: Tensor | None,
    kind: Tensor | None,
    *,
    log_variance: Tensor | None,
    granularity: str | None,
    cosine_distance: bool,
    normalize: bool,
) -> Tensor:
    seen, dim = seen_by(masks, kinds, kind, len(z0)), z0.shape[1]
    squared = seen.square()
    counted = squared - torch.relu(squared - 1)  # min(squared, 1), with all of the slope at 1
    plain = 1 - cosine(z0, z1, seen) if cosine_distance else distance(z0, z1, seen) / dim
    if log_variance is None or granularity is None:
        return plain
    columns = pair_variance(log_variance, granularity, kinds, kind)
    if granularity == "dimension":
        harmonic = 1 / (-columns.detach()).exp().mean(0)
        factor = harmonic if normalize else 0.5
        gap = (z0 - z1).square() * (-columns).exp()
        return (factor * (squared * gap[:, None] + counted * columns[:, None])).sum(-1) / dim
    doubt = own(columns, kind)
    if not normalize:
        price = doubt if cosine_distance else doubt * counted.mean(-1)
        return (plain * (-doubt).exp() + price) / 2
    weight = own((-columns.detach()).exp() / (-columns.detach()).exp().mean(0), kind)
    x, y = (z.detach() - torch.cat([z0, z1]).detach().mean(0) for z in (z0, z1))
    still = seen.detach()
    norms = (still * x[:, None]).square().sum(-1) + (still * y[:, None]).square().sum(-1)
    mismatch = (still * (z0 - z1).detach()[:, None]).square().sum(-1) / torch.where(norms > 0, norms, 1)
    return weight * plain + mismatch * (-doubt).exp() + doubt


def weights_of_pairs(log_variance: Tensor, granularity: str, kinds: Tensor | None, kind: Tensor) -> Tensor | None:
    if granularity == "dimension":
        return None
    columns = pair_variance(log_variance.detach(), granularity, kinds, kind)
    return own((-columns).exp() / (-columns).exp().mean(0), kind)[:, 0]
