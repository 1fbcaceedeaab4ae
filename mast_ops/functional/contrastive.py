"""All pairs: InfoNCE, NT-Xent and SupCon inside every subspace."""

import torch
from einops import rearrange, repeat
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import (
    check_choice,
    check_embedding,
    check_index,
    check_masks,
    check_positive,
    check_subspace,
    check_views,
    values_are_free,
)
from mast_ops._precision import no_autocast, wide
from mast_ops.functional.pairs import Reduction, over_ranks
from mast_ops.ops import Backend


def subspace_info_nce(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    temperature: float | Tensor,
    subspace: Tensor | None = None,
    reduction: Reduction = "mean",
    symmetric: bool = False,
    sample0: Tensor | None = None,
    sample1: Tensor | None = None,
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """InfoNCE of ``z0`` against ``z1`` inside every subspace.

    Row i of ``z0`` is the anchor, row i of ``z1`` its positive and the other rows of ``z1`` its negatives,
    all seen through mask k and compared by cosine. Memory does not grow with K N C: ``"chunked"`` holds scores of
    one subspace at a time, at most 2^24 of them, and ``"triton"`` none; ``"eager"`` and ``"compile"`` hold all.

    Args:
        z0: Anchors, (N, D), floating point.
        z1: Candidates, (C, D), same D, dtype and device; C = N unless samples are given.
        masks: One mask per subspace, (K, D). Columns where a mask is zero are skipped.
        temperature: Divides the cosines; > 0. A float, or a tensor of one element to learn it.
        subspace: (N,) int64. With it, anchor i contrasts in subspace ``subspace[i]`` alone.
        reduction: ``"mean"`` over anchors and subspaces, or ``"none"``. The mean is faster: its gradients are
            made in the forward pass.
        symmetric: Average with the other direction, in which every candidate is an anchor: CLIP's loss. Goes
            without ``subspace``, and with ``"none"`` for C = N alone.
        sample0: (N,) int64, the sample that each anchor shows, given together with ``sample1``. Candidates of
            the same sample are the anchor's positives, as many as there are: the loss is then the mean of
            ``logsumexp - logit`` over them. An anchor without any gives NaN.
        sample1: (C,) int64, likewise for the candidates.
        gather_distributed: Whether the candidates are those of all ranks, which go round a ring: memory does not grow
            with the number of ranks, and ranks may have different N. The mean is that over all ranks, the same on
            each; ``"none"`` gives the own anchors' losses. Goes without ``sample0`` and ``sample1``. Without a process
            group there is one rank. For gradients see :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"mean"``: a scalar. ``"none"``: (N, K), or (N,) with ``subspace``. float32 for half-precision input, else
        the dtype of ``z0``.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``subspace`` is out of range, ``temperature`` is not a positive number, one of ``sample0`` and
            ``sample1`` is missing, ranks disagree in D or K, or the asked backend cannot run.

    Source: InfoNCE is van den Oord et al. 2018 (arXiv 1807.03748), several positives as in SupCon (Khosla et al.
    2020, arXiv 2004.11362, equation 2); the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_info_nce
        >>> z = torch.eye(4)
        >>> subspace_info_nce(z, z, torch.ones(2, 4), temperature=0.1, reduction="none")[0]
        tensor([0.0001, 0.0001])
    """
    check_choice("reduction", reduction, ("mean", "none"))
    check_temperature(temperature)
    if (sample0 is None) != (sample1 is None):
        missing, given = ("sample0", "sample1") if sample0 is None else ("sample1", "sample0")
        raise ValueError(f"{missing}: got None beside {given}, wanted both or neither")
    aligned = sample0 is None
    if sample0 is None or sample1 is None:
        check_views(z0, z1)
        sample0 = sample1 = torch.arange(len(z0), device=z0.device)
    else:
        _check_candidates(z0, z1)
        check_index("sample0", sample0, len(z0), z0.device)
        check_index("sample1", sample1, len(z1), z1.device)
    check_masks(masks, z0)
    if subspace is not None:
        check_subspace(subspace, len(z0), len(masks), z0.device)
    if gather_distributed and not aligned:
        raise ValueError(
            "gather_distributed: got True beside sample0 and sample1, wanted False: "
            "positives are not sought on other ranks"
        )
    if symmetric and subspace is not None:
        raise ValueError("symmetric: got True beside subspace, wanted False: a candidate has no subspace of its own")
    if symmetric and reduction == "none" and len(z0) != len(z1):
        raise ValueError(
            f"reduction: got 'none' for {len(z0)} anchors and {len(z1)} candidates in both directions, wanted 'mean'"
        )
    inputs = (z0, z1, *_scales(z0, masks, temperature), sample0, sample1, subspace, symmetric)
    distributed = ops.ranks(gather_distributed) > 1
    with no_autocast(z0):
        if reduction == "mean" and not distributed:
            return ops.contrast_mean(*inputs, backend)
        rows, columns = ops.contrast(*inputs, distributed, backend)
        losses = (rows + columns) / 2 if symmetric else rows
        return over_ranks(losses.mean(), len(z0), gather_distributed) if reduction == "mean" else losses


def subspace_nt_xent(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    temperature: float | Tensor,
    subspace: Tensor | None = None,
    reduction: Reduction = "mean",
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """NT-Xent, SimCLR's loss, inside every subspace: both directions, with negatives from both views.

    Each of the 2N views is an anchor; its positive is the other view of its sample, its negatives are the
    2N - 2 views of the other samples. Memory is as in :func:`subspace_info_nce`.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D), same dtype and device.
        masks: One mask per subspace, (K, D). Columns where a mask is zero are skipped.
        temperature: Divides the cosines; > 0. A float, or a tensor of one element to learn it.
        subspace: (N,) int64. With it, both views of sample i contrast in subspace ``subspace[i]`` alone.
        reduction: ``"mean"`` over the 2N anchors and subspaces, or ``"none"``: the mean of a sample's two anchors.
            The mean is faster: its gradients are made in the forward pass.
        gather_distributed: Whether the negatives are those of all ranks, as in :func:`subspace_info_nce`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"mean"``: a scalar. ``"none"``: (N, K), or (N,) with ``subspace``. float32 for half-precision input, else
        the dtype of ``z0``.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``subspace`` is out of range, ``temperature`` is not a positive number, ranks disagree in D or K, or the
            asked backend cannot run.

    Source: NT-Xent is SimCLR's equation 1 (arXiv 2002.05709); its masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_nt_xent
        >>> z = torch.eye(4)
        >>> subspace_nt_xent(z, z, torch.ones(2, 4), temperature=0.1)
        tensor(0.0003)
    """
    check_views(z0, z1)
    if subspace is not None:
        check_masks(masks, z0)
        check_subspace(subspace, len(z0), len(masks), z0.device)
        subspace = repeat(subspace, "n -> (view n)", view=2)
    z, sample = torch.cat([z0, z1]), repeat(torch.arange(len(z0), device=z0.device), "n -> (view n)", view=2)
    losses = _sup_con(z, sample, masks, temperature, subspace, reduction, gather_distributed, backend)
    return losses if reduction == "mean" else rearrange(losses, "(view n) ... -> view n ...", view=2).mean(0)


def subspace_sup_con(
    z: Tensor,
    sample: Tensor,
    masks: Tensor,
    temperature: float | Tensor,
    subspace: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
) -> Tensor:
    """Contrastive loss with any number of positives inside every subspace: several views, or class labels.

    Every row is an anchor, the other rows of its sample are its positives, and all other rows stand under the
    softmax: ``logsumexp_{j != i} s_ij - mean_{j positive} s_ij``. Two views a sample make it NT-Xent.

    Args:
        z: Embedding of all views, (N, D), floating point.
        sample: (N,) int64, the sample (or the class) that each row shows. A row that is alone gives NaN.
        masks: One mask per subspace, (K, D). Columns where a mask is zero are skipped.
        temperature: Divides the cosines; > 0. A float, or a tensor of one element to learn it.
        subspace: (N,) int64. With it, row i contrasts as an anchor in subspace ``subspace[i]`` alone.
        reduction: ``"mean"`` over anchors and subspaces, or ``"none"``. The mean is faster: its gradients are
            made in the forward pass.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"mean"``: a scalar. ``"none"``: (N, K), or (N,) with ``subspace``. float32 for half-precision input, else
        the dtype of ``z``.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or of another kind,
            ``subspace`` is out of range, ``temperature`` is not a positive number, or the asked backend cannot run.

    Source: SupCon (Khosla et al. 2020, arXiv 2004.11362), equation 2; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_sup_con
        >>> z = torch.eye(2).repeat_interleave(3, dim=0)  # three views of two samples
        >>> subspace_sup_con(z, torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(1, 2), temperature=0.1)
        tensor(0.6932)
    """
    return _sup_con(z, sample, masks, temperature, subspace, reduction, False, backend)


def _sup_con(
    z: Tensor,
    sample: Tensor,
    masks: Tensor,
    temperature: float | Tensor,
    subspace: Tensor | None,
    reduction: Reduction,
    gather_distributed: bool,
    backend: Backend,
) -> Tensor:
    check_choice("reduction", reduction, ("mean", "none"))
    check_temperature(temperature)
    check_embedding("z", z)
    check_index("sample", sample, len(z), z.device)
    check_masks(masks, z)
    if subspace is not None:
        check_subspace(subspace, len(z), len(masks), z.device)
    inputs = (z, None, *_scales(z, masks, temperature), sample, None, subspace, False)
    distributed = ops.ranks(gather_distributed) > 1
    with no_autocast(z):
        if reduction == "mean" and not distributed:
            return ops.contrast_mean(*inputs, backend)
        losses, _ = ops.contrast(*inputs, distributed, backend)
        return over_ranks(losses.mean(), len(z), gather_distributed) if reduction == "mean" else losses


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


def _scales(z: Tensor, masks: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Masks and inverse temperature, in the dtype that sums run in and on the embedding's device."""
    dtype = wide(z.dtype)
    if isinstance(temperature, Tensor):
        inverse = temperature.reshape(()).to(z.device, dtype).reciprocal()
    else:
        inverse = torch.full((), 1 / temperature, dtype=dtype, device=z.device)
    return masks.to(dtype), inverse


def _check_candidates(z0: Tensor, z1: Tensor) -> None:
    """Embeddings that may differ in their number of rows alone."""
    check_embedding("z0", z0)
    check_embedding("z1", z1)
    wanted = (z1.shape[0], z0.shape[1])
    if tuple(z1.shape) != wanted:
        raise ValueError(f"z1: got shape {tuple(z1.shape)}, wanted (C, {z0.shape[1]}), the D of z0")
    check_views(z0[:1], z1[:1])
