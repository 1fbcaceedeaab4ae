"""All pairs: InfoNCE and NT-Xent inside every subspace."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import reduce, repeat
from torch import Tensor

from mast_ops._checks import check_choice, check_positive, values_are_free
from mast_ops.functional._precision import no_autocast, widen
from mast_ops.functional.pairs import check_pairs, inverse_norm, select_rows

_EPS = 1e-12  # that of F.normalize


def subspace_info_nce(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    temperature: float | Tensor,
    subspace: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """InfoNCE of ``z0`` against ``z1`` inside every subspace.

    Row i of ``z0`` is the anchor, row i of ``z1`` its positive and the other rows of ``z1`` its negatives,
    all seen through mask k and compared by cosine.

    Args:
        z0: Anchors, (N, D), floating point.
        z1: Candidates, (N, D), same dtype and device.
        masks: One mask per subspace, (K, D).
        temperature: Divides the cosines; > 0. A float, or a tensor of one element to learn it.
        subspace: (N,) int64. With it, anchor i contrasts in subspace ``subspace[i]`` alone.
        reduction: ``"mean"`` over samples, or ``"none"``.

    Returns:
        ``"mean"``: (K,), or a scalar with ``subspace``. ``"none"``: (N, K), or (N,) with ``subspace``.
        float32 for half-precision input, else the dtype of ``z0``.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``subspace`` is out of range, or ``temperature`` is not a positive number.

    Source: InfoNCE is van den Oord et al. 2018 (arXiv 1807.03748); its masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_info_nce
        >>> z = torch.eye(4)
        >>> subspace_info_nce(z, z, torch.ones(2, 4), temperature=0.1)
        tensor([0.0001, 0.0001])
    """
    _check(z0, z1, masks, temperature, subspace, reduction)
    with no_autocast(z0):
        z0, z1, masks = widen(z0, z1, masks)
        scores = _scores(z0, z1, masks, subspace)
        positive = torch.arange(z0.shape[0], device=z0.device)
        losses = [F.cross_entropy(score / temperature, positive, reduction="none") for score in scores]
        return _reduce(losses, subspace, reduction)


def subspace_nt_xent(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    temperature: float | Tensor,
    subspace: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """NT-Xent, SimCLR's loss, inside every subspace: both directions, with negatives from both views.

    Each of the 2N views is an anchor; its positive is the other view of its sample, its negatives are the
    2N - 2 views of the other samples.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D), same dtype and device.
        masks: One mask per subspace, (K, D).
        temperature: Divides the cosines; > 0. A float, or a tensor of one element to learn it.
        subspace: (N,) int64. With it, both views of sample i contrast in subspace ``subspace[i]`` alone.
        reduction: ``"mean"`` over the 2N anchors, or ``"none"``: the mean of a sample's two anchors.

    Returns:
        ``"mean"``: (K,), or a scalar with ``subspace``. ``"none"``: (N, K), or (N,) with ``subspace``.
        float32 for half-precision input, else the dtype of ``z0``.

    Raises:
        ValueError, TypeError: As for :func:`subspace_info_nce`.

    Source: NT-Xent is SimCLR's equation 1 (arXiv 2002.05709); its masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_nt_xent
        >>> z = torch.eye(4)
        >>> subspace_nt_xent(z, z, torch.ones(2, 4), temperature=0.1)
        tensor([0.0003, 0.0003])
    """
    _check(z0, z1, masks, temperature, subspace, reduction)
    n = z0.shape[0]
    with no_autocast(z0):
        z0, z1, masks = widen(z0, z1, masks)
        z = torch.cat([z0, z1])
        scores = _scores(z, z, masks, None if subspace is None else repeat(subspace, "n -> (view n)", view=2))
        itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
        positive = torch.arange(2 * n, device=z.device).roll(n)
        losses = []
        for score in scores:
            logits = (score / temperature).masked_fill(itself, -torch.inf)
            losses.append(reduce(F.cross_entropy(logits, positive, reduction="none"), "(view n) -> n", "mean", view=2))
        return _reduce(losses, subspace, reduction)


def _check(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    temperature: float | Tensor,
    subspace: Tensor | None,
    reduction: str,
) -> None:
    check_choice("reduction", reduction, ("mean", "none"))
    check_temperature(temperature)
    check_pairs(z0, z1, masks, subspace)


def check_temperature(temperature: float | Tensor) -> None:
    """A positive number, or a tensor of one element; its value is looked at only where that is free."""
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
    elif temperature.numel() != 1 or not temperature.is_floating_point():
        raise ValueError(
            f"temperature: got a {temperature.dtype} tensor of shape {tuple(temperature.shape)}, "
            "wanted a float or a floating-point tensor of one element"
        )
    elif values_are_free(temperature):
        check_positive("temperature", float(temperature.detach()))


def _scores(anchors: Tensor, candidates: Tensor, masks: Tensor, subspace: Tensor | None) -> list[Tensor]:
    """Masked cosines of every anchor with every candidate: one (N, N) a subspace, or one in all.

    ``S_k = r_k * ((anchors * m_k^2) candidates^T) * r'_k``: only the anchors are masked, and the norms of
    all subspaces come from two skinny products.
    """
    squared = masks.square()
    anchor_scale = inverse_norm(anchors.square() @ squared.T, _EPS)
    candidate_scale = inverse_norm(squared @ candidates.square().T, _EPS)
    if subspace is None:
        return [
            ((anchors * squared[k]) @ candidates.T) * anchor_scale[:, k, None] * candidate_scale[k]
            for k in range(masks.shape[0])
        ]
    masked = anchors * select_rows(squared, subspace)
    own_scale = anchor_scale.gather(1, subspace[:, None])
    return [(masked @ candidates.T) * own_scale * select_rows(candidate_scale, subspace)]


def _reduce(losses: list[Tensor], subspace: Tensor | None, reduction: str) -> Tensor:
    per_sample = losses[0] if subspace is not None else torch.stack(losses, dim=1)
    return per_sample if reduction == "none" else per_sample.mean(0)
