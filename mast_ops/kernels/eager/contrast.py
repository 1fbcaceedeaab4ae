"""All pairs: every anchor against every candidate, by masked cosine, one N x C matrix a subspace."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops._precision import widen

EPS = 1e-12  # that of F.normalize


def contrast(
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None = None,
    subspace: Tensor | None = None,
    columns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Contrastive loss of every anchor: ``logsumexp_j s_ij - mean_{j positive} s_ij``.

    ``s`` is the cosine of ``m_k z0_i`` with ``m_k z1_j``, times ``inverse_temperature`` (of one element).
    Candidate j is a positive of anchor i where ``sample1[j] == sample0[i]``; with none, the loss is NaN.
    With ``z1`` None the candidates are the anchors themselves, (z0, sample0), each without itself.

    Returns (rows, columns): (N, K), or (N,) with ``subspace``, and the same for the other direction with
    each candidate as the anchor, (C, K), or (0, K) unless ``columns``. ``columns`` goes with neither
    ``subspace`` nor a missing ``z1``.
    """
    alone = z1 is None
    z1, sample1 = (z0, sample0) if z1 is None or sample1 is None else (z1, sample1)
    z0, z1 = widen(z0, z1)
    positive = sample0[:, None] == sample1
    itself = torch.eye(len(z0), dtype=torch.bool, device=z0.device) if alone else None
    if itself is not None:
        positive = positive & ~itself
    if subspace is not None:
        own = F.embedding(subspace, masks)
        scores = [_scores(z0 * own, z1, inverse_temperature, own)]
    else:
        scores = [_scores(z0 * mask, z1 * mask, inverse_temperature) for mask in masks]
    if itself is not None:
        scores = [score.masked_fill(itself, -torch.inf) for score in scores]
    rows = [_loss(score, positive, 1) for score in scores]
    if subspace is not None:
        return rows[0], z0.new_empty(0)
    other = [_loss(score, positive, 0) for score in scores] if columns else [z0.new_empty(0) for _ in scores]
    return torch.stack(rows, 1), torch.stack(other, 1)


def _scores(x0: Tensor, z1: Tensor, inverse_temperature: Tensor, own: Tensor | None = None) -> Tensor:
    """Cosines of masked anchors with candidates; with ``own``, each anchor's mask is still to act on them."""
    a = F.normalize(x0, dim=1, eps=EPS)
    if own is None:
        return a @ F.normalize(z1, dim=1, eps=EPS).T * inverse_temperature
    norm = (own.square() @ z1.square().T).clamp_min(EPS * EPS).rsqrt()
    return (a * own) @ z1.T * norm * inverse_temperature


def _loss(score: Tensor, positive: Tensor, dim: int) -> Tensor:
    total = torch.where(positive, score, 0).sum(dim)
    return torch.logsumexp(score, dim) - total / positive.sum(dim)
