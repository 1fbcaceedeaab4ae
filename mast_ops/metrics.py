"""What to log while training: plain floats, for any logger."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mast_ops._checks import (
    check_choice,
    check_embedding,
    check_is,
    check_log_variance,
    check_masks,
    check_names,
    check_values,
)
from mast_ops._precision import exact, no_autocast, widen, with_float64
from mast_ops.analysis import closedness, mask_density, mask_overlap
from mast_ops.kinds import check_kind, check_kinds, members, names_of_kinds
from mast_ops.output import SubspaceOutput
from mast_ops.pairs import GRANULARITIES, Granularity


@torch.no_grad()
def subspace_metrics(
    out: SubspaceOutput, subspaces: Sequence[str] | None = None, *, kind: Tensor | None = None
) -> dict[str, float]:
    """Density, overlap, uncertainty and effective rank of every subspace.

    The device is waited for once. The effective ranks are singular values of K matrices: log every hundred steps
    rather than at each.

    Args:
        out: A head's output: embedding (N, D), masks (K, D), log-variances of its granularity or None.
        subspaces: K names, those of ``head.subspaces``; by default "0", "1", ...
        kind: (N,) int64, the kind of each sample's pair, a row of ``out.kinds``; wanted only to tell a variance per
            sample apart.

    Returns:
        A flat dictionary, ready for ``logger.log(...)``, or ``self.log_dict(...)`` in Lightning:

        - ``"density/<name>"``: share of the dimensions that the subspace uses, see
          :func:`mast_ops.analysis.mask_density`.
        - ``"mass/<name>"``: mean magnitude of the mask.
        - ``"overlap/<name>-<other>"``: cosine of what two masks close (:func:`mast_ops.analysis.closedness`), 0 where
          one closes nothing. A name with a hyphen of its own stands in quotes there.
        - ``"effective_rank/<name>"``: how many dimensions the masked embedding fills, 1 to min(N, D); 0 where all
          samples are the same.
        - ``"log_variance/<name>"``: mean predicted log-variance of the subspace's column, or of its dimensions weighed
          by the squared mask. A variance per sample has one for each kind of pair instead, by what differs
          (``"crop"``, ``"crop+color"``, ``"all"``), and without ``kind`` one ``"log_variance"``.

        NaN where the input holds one.

    Raises:
        ValueError, TypeError: Shapes, dtypes or devices disagree, another number of names than of masks, two alike, or
            log-variances without their granularity.

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
         'overlap/crop-color': 0.816, 'effective_rank/crop': 2.0, 'effective_rank/color': 1.0}
    """
    check_is("out", out, SubspaceOutput, "the SubspaceOutput of a head")
    z, masks, log_variance = out.embedding, out.masks, out.log_variance
    check_embedding("out.embedding", z)
    check_values("out.embedding", z)
    check_masks(masks, z, name="out.masks")
    num_subspaces = len(masks)
    names = tuple(map(str, range(num_subspaces))) if subspaces is None else check_names("subspaces", subspaces)
    if len(names) != num_subspaces:
        raise ValueError(f"subspaces: got {len(names)} names, wanted {num_subspaces}, one a mask")
    kinds = torch.eye(num_subspaces, dtype=torch.bool) if out.kinds is None else out.kinds
    check_kinds(kinds, num_subspaces, "out.kinds")
    if kind is not None:
        check_kind(kind, len(z), len(kinds), z.device)
        kind = with_float64(kind)
    if log_variance is not None:
        _check_log_variance(log_variance, z, masks, out.granularity)
        log_variance = with_float64(log_variance)
    z, masks = with_float64(z), with_float64(masks)
    with no_autocast(z):
        z, masks = widen(z, masks)
        overlap = mask_overlap(closedness(masks))
        values = {f"density/{name}": x for name, x in zip(names, mask_density(masks), strict=True)}
        values |= {f"mass/{name}": x for name, x in zip(names, masks.abs().mean(1), strict=True)}
        pairs = [(i, j) for i in range(num_subspaces) for j in range(i + 1, num_subspaces)]
        values |= {f"overlap/{_part(names[i])}-{_part(names[j])}": overlap[i, j] for i, j in pairs}
        values |= {f"effective_rank/{name}": effective_rank(z * m) for name, m in zip(names, masks, strict=True)}
        if log_variance is not None:
            (log_variance,) = widen(log_variance)
            if out.granularity == "sample":
                values |= _by_kind(log_variance[:, 0], names_of_kinds(kinds, names), kind)
            else:
                means = log_variance.mean(0)
                if out.granularity == "dimension":
                    weight = masks.square()
                    means = weight @ means / weight.sum(1)
                values |= {f"log_variance/{name}": x for name, x in zip(names, means, strict=True)}
        return dict(zip(values, exact(torch.cat([x.reshape(1) for x in values.values()])).tolist(), strict=True))


def _part(name: str) -> str:
    """Of a name that a hyphen joins to another: "a-b" and "c" must not look like "a" and "b-c"."""
    return repr(name) if "-" in name else name


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


def _by_kind(log_variance: Tensor, names: Sequence[str], kind: Tensor | None) -> dict[str, Tensor]:
    """Means of an (N,) log-variance, one a kind of pair."""
    if kind is None:
        return {"log_variance": log_variance.mean()}
    member = members(kind, len(names)).to(log_variance.dtype)
    means = member.T @ log_variance / member.sum(0)
    return {f"log_variance/{name}": x for name, x in zip(names, means, strict=True)}


def _check_log_variance(log_variance: Tensor, z: Tensor, masks: Tensor, granularity: Granularity | None) -> None:
    check_log_variance("out.log_variance", log_variance, z)
    if granularity is None:
        raise ValueError("out.granularity: got None, wanted that of out.log_variance")
    check_choice("out.granularity", granularity, GRANULARITIES)
    width = {"sample": 1, "subspace": masks.shape[0], "dimension": z.shape[1]}[granularity]
    if log_variance.shape[1] != width:
        raise ValueError(
            f"out.log_variance: got shape {tuple(log_variance.shape)}, wanted (N, {width}) for one per {granularity}"
        )
