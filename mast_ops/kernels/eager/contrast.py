"""All pairs: every anchor against every candidate, by masked cosine, one N x C matrix a row of the masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops._precision import widen
from mast_ops.kernels.contract import Both, Contrast

EPS = 1e-12  # that of F.normalize


def losses(problem: Contrast) -> Both:
    """``logsumexp_j s_ij - mean_{j positive} s_ij``; NaN for an anchor without a positive."""
    sample1 = problem.sample0 if problem.sample1 is None else problem.sample1
    z0 = problem.z0
    positive = problem.sample0[:, None] == sample1
    itself = torch.eye(len(z0), dtype=torch.bool, device=z0.device) if problem.z1 is None else None
    if itself is not None:
        positive = positive & ~itself
    of_rows = scores(problem)
    if itself is not None:
        of_rows = [score.masked_fill(itself, -torch.inf) for score in of_rows]
    of_anchors = [_loss(score, positive, 1) for score in of_rows]
    if problem.row is not None:
        return of_anchors[0], of_anchors[0].new_empty(0)
    of_candidates = [_loss(score, positive, 0) if problem.both_ways else score.new_empty(0) for score in of_rows]
    return torch.stack(of_anchors, 1), torch.stack(of_candidates, 1)


def scores(problem: Contrast) -> list[Tensor]:
    """Those under every row of the masks, or, with ``row``, under each anchor's own."""
    z0, z1 = widen(problem.z0, problem.candidates)
    if problem.row is None:
        return [_scores(z0 * mask, z1 * mask, problem.inverse_temperature) for mask in problem.masks]
    own = F.embedding(problem.row, problem.masks)
    return [_scores(z0 * own, z1, problem.inverse_temperature, own)]


def _scores(x0: Tensor, z1: Tensor, inverse_temperature: Tensor, own: Tensor | None = None) -> Tensor:
    """Cosines of masked anchors with candidates; with ``own``, each anchor's mask is still to act on them."""
    a = F.normalize(x0, dim=1, eps=EPS)
    if own is None:
        return a @ F.normalize(z1, dim=1, eps=EPS).T * inverse_temperature
    norm = (own.square() @ z1.square().T).clamp_min(EPS * EPS).sqrt()
    return (a * own) @ z1.T / norm * inverse_temperature


def _loss(score: Tensor, positive: Tensor, dim: int) -> Tensor:
    total = torch.where(positive, score, 0).sum(dim)
    return torch.logsumexp(score, dim) - total / positive.sum(dim)
