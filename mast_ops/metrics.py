"""What to log while training: plain floats, for any logger."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mast_ops._checks import check_embedding, check_masks, check_names, check_subspace
from mast_ops._precision import no_autocast, widen
from mast_ops.analysis import mask_density, mask_overlap
from mast_ops.output import SubspaceOutput


@torch.no_grad()
def subspace_metrics(
    out: SubspaceOutput, subspaces: Sequence[str] | None = None, subspace: Tensor | None = None
) -> dict[str, float]:
    """Density, overlap, uncertainty and effective rank of every subspace.

    The device is waited for once. The effective ranks are singular values of K matrices: log every hundred steps
    rather than at each.

    Args:
        out: A head's output: embedding (N, D), masks (K, D), log-variances or None.
        subspaces: K names, those of ``head.subspaces``; by default "0", "1", ...
        subspace: (N,) int64, the subspace of each sample; wanted only to tell a variance per sample apart.

    Returns:
        A flat dictionary, ready for ``logger.log(...)``, or ``self.log_dict(...)`` in Lightning:

        - ``"density/<name>"``: share of the dimensions that the subspace uses, see
          :func:`mast_ops.analysis.mask_density`.
        - ``"mass/<name>"``: mean magnitude of the mask.
        - ``"overlap/<name>-<other>"``: cosine of two masks, see :func:`mast_ops.analysis.mask_overlap`.
        - ``"effective_rank/<name>"``: how many dimensions the masked embedding fills, 1 to min(N, D); 0 where all
          samples are the same.
        - ``"log_variance/<name>"``: mean predicted log-variance: of the subspace's column, of its samples (a variance
          per sample; without ``subspace`` one ``"log_variance"``), or of its dimensions weighed by the squared mask.

        NaN where the input holds one.

    Raises:
        ValueError, TypeError: Shapes, dtypes or devices disagree, another number of names than of masks, or two alike.

    Source: effective rank is Roy and Vetterli 2007 (The effective rank: a measure of effective dimensionality),
    the exponential of the entropy of the normalised singular values; the rest is ours.

    Example:
        >>> import torch
        >>> from mast_ops import SubspaceOutput, subspace_metrics
        >>> masks = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
        >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).repeat(1, 2)
        >>> values = subspace_metrics(SubspaceOutput(z, masks), ["crop", "color"])
        >>> {name: round(value, 3) for name, value in values.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'density/crop': 0.5, 'density/color': 0.25, 'mass/crop': 0.5, 'mass/color': 0.25,
         'overlap/crop-color': 0.707, 'effective_rank/crop': 2.0, 'effective_rank/color': 1.0}
    """
    z, masks, log_variance = (None if x is None else x.detach() for x in out)
    assert z is not None
    assert masks is not None
    check_embedding("out.embedding", z)
    check_masks(masks, z, name="out.masks")
    num_subspaces = len(masks)
    names = tuple(map(str, range(num_subspaces))) if subspaces is None else tuple(subspaces)
    check_names("subspaces", names)
    if len(names) != num_subspaces:
        raise ValueError(f"subspaces: got {len(names)} names, wanted {num_subspaces}, one a mask")
    if subspace is not None:
        check_subspace(subspace, len(z), num_subspaces, z.device)
    with no_autocast(z):
        z, masks = widen(z, masks)
        overlap = mask_overlap(masks)
        values = {f"density/{name}": x for name, x in zip(names, mask_density(masks), strict=True)}
        values |= {f"mass/{name}": x for name, x in zip(names, masks.abs().mean(1), strict=True)}
        pairs = [(i, j) for i in range(num_subspaces) for j in range(i + 1, num_subspaces)]
        values |= {f"overlap/{names[i]}-{names[j]}": overlap[i, j] for i, j in pairs}
        values |= {f"effective_rank/{name}": effective_rank(z * m) for name, m in zip(names, masks, strict=True)}
        if log_variance is not None:
            values |= _log_variances(log_variance, masks, names, subspace)
        return dict(zip(values, torch.stack([x.double() for x in values.values()]).tolist(), strict=True))


def effective_rank(z: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values of (N, D) samples less their mean: a scalar, see above."""
    centred = z - z.mean(dim=0)
    gram = centred @ centred.T if len(z) < z.shape[1] else centred.T @ centred
    if not gram.isfinite().all():
        return gram.new_full((), torch.nan)
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = singular.sum()
    share = singular / total.clamp_min(torch.finfo(total.dtype).tiny)
    entropy: Tensor = torch.special.entr(share).sum()
    rank: Tensor = entropy.exp() * (total > 0)
    return rank


def _log_variances(
    log_variance: Tensor, masks: Tensor, names: Sequence[str], subspace: Tensor | None
) -> dict[str, Tensor]:
    check_embedding("out.log_variance", log_variance)
    (log_variance,) = widen(log_variance)
    num_subspaces, dim = masks.shape
    width = log_variance.shape[1]
    if width == num_subspaces and (width > 1 or subspace is None):
        means = log_variance.mean(0)
    elif width == 1:
        if subspace is None:
            return {"log_variance": log_variance.mean()}
        member = torch.nn.functional.one_hot(subspace, num_subspaces).to(log_variance.dtype)
        means = (member.T @ log_variance)[:, 0] / member.sum(0)
    elif width == dim:
        weight = masks.square()
        means = weight @ log_variance.mean(0) / weight.sum(1)
    else:
        raise ValueError(
            f"out.log_variance: got shape {tuple(log_variance.shape)}, wanted 1, K={num_subspaces} or D={dim} columns"
        )
    return {f"log_variance/{name}": x for name, x in zip(names, means, strict=True)}
