"""All pairs: InfoNCE, NT-Xent and SupCon inside every subspace."""

import torch
from einops import rearrange, repeat
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import (
    check_choice,
    check_dense,
    check_embedding,
    check_flag,
    check_index,
    check_number,
    check_positive,
    check_values,
    check_views,
    values_are_free,
)
from mast_ops._precision import alike, no_autocast, wide
from mast_ops.functional.distance import REDUCTIONS, Reduction, cosine_of_pairs
from mast_ops.ops import Backend, Contrast
from mast_ops.pairs import Pairs, nothing
from mast_ops.run import Run


@ops.raised_by_all
def subspace_info_nce(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    temperature: float | Tensor,
    kinds: Tensor | None = None,
    kind: Tensor | None = None,
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
        z1: Candidates, (C, D), same D and device, float64 beside float64 alone; C = N unless samples are given.
        masks: One mask per subspace, (K, D). Columns where a mask is zero are skipped.
        temperature: Divides the cosines; > 0. A float, or a tensor of one element to learn it.
        kinds: Of :func:`mast_ops.functional.masked_distance`.
        kind: Likewise. With it, anchor i contrasts where the masks of all that differs in the pair are open.
        reduction: ``"mean"`` over anchors and subspaces, or ``"none"``. The mean is faster: its gradients are
            made in the forward pass.
        symmetric: Average with the other direction, in which every candidate is an anchor: CLIP's loss. Goes
            without ``kind``, and with ``"none"`` for C = N alone.
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
        ``"mean"``: a scalar. ``"none"``: (N, K), or (N,) with ``kind``. float64 for float64 input, else
        float32.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``kind`` is out of range, ``temperature`` is not a positive number, one of ``sample0`` and
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
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("symmetric", symmetric)
    check_temperature(temperature)
    pairs, z1, (sample0, sample1) = check_samples(
        z0, z1, masks, kinds=kinds, kind=kind, samples=(sample0, sample1), gather_distributed=gather_distributed
    )
    if symmetric and kind is not None:
        raise ValueError("symmetric: got True beside kind, wanted False: a candidate is of no kind of its own")
    if symmetric and reduction == "none" and len(z0) != len(z1):
        raise ValueError(
            f"reduction: got 'none' for {len(z0)} anchors and {len(z1)} candidates in both directions, wanted 'mean'"
        )
    problem = problem_of(pairs, _inverse(temperature, pairs.z0), sample0)._replace(
        z1=z1, sample1=sample1, both_ways=symmetric
    )
    run = Run(backend, gather_distributed).of(
        "subspace_info_nce",
        pairs._replace(z1=z1),
        {"temperature": temperature},
        reduction=reduction,
        symmetric=symmetric,
    )
    return _contrast(problem, run, reduction)


@ops.raised_by_all
def subspace_nt_xent(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    temperature: float | Tensor,
    kinds: Tensor | None = None,
    kind: Tensor | None = None,
    reduction: Reduction = "mean",
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """NT-Xent, SimCLR's loss, inside every subspace: both directions, with negatives from both views.

    Each of the 2N views is an anchor; its positive is the other view of its sample, its negatives are the
    2N - 2 views of the other samples. Memory is as in :func:`subspace_info_nce`.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D), same device; float64 beside float64 alone.
        masks: One mask per subspace, (K, D). Columns where a mask is zero are skipped.
        temperature: Divides the cosines; > 0. A float, or a tensor of one element to learn it.
        kinds: Of :func:`mast_ops.functional.masked_distance`.
        kind: Likewise. With it, both views of sample i contrast where the masks of all that differs in them are open.
        reduction: ``"mean"`` over the 2N anchors and subspaces, or ``"none"``: the mean of a sample's two anchors.
            The mean is faster: its gradients are made in the forward pass.
        gather_distributed: Whether the negatives are those of all ranks, as in :func:`subspace_info_nce`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"mean"``: a scalar. ``"none"``: (N, K), or (N,) with ``kind``. float64 for float64 input, else
        float32.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``kind`` is out of range, ``temperature`` is not a positive number, ranks disagree in D or K, or the
            asked backend cannot run.

    Source: NT-Xent is SimCLR's equation 1 (arXiv 2002.05709); its masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_nt_xent
        >>> z = torch.eye(4)
        >>> subspace_nt_xent(z, z, torch.ones(2, 4), temperature=0.1)
        tensor(0.0003)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_temperature(temperature)
    pairs = Pairs.of(z0, z1, masks, kinds=kinds, kind=kind)
    run = Run(backend, gather_distributed).of(
        "subspace_nt_xent", pairs, {"temperature": temperature}, reduction=reduction
    )
    return nt_xent(pairs, run, temperature=temperature, reduction=reduction)


def nt_xent(pairs: Pairs, run: Run, *, temperature: float | Tensor, reduction: Reduction = "mean") -> Tensor:
    """The same, of checked pairs."""
    sample = torch.arange(len(pairs.z0), device=pairs.z0.device)
    with no_autocast(pairs.z0):  # it refuses to join embeddings of the other half precision than its own
        views = torch.cat([pairs.z0, pairs.z1])
    row = None if pairs.kind is None else repeat(pairs.kind, "n -> (view n)", view=2)
    problem = problem_of(pairs, _inverse(temperature, views), repeat(sample, "n -> (view n)", view=2))
    problem = problem._replace(z0=views, row=row)
    losses = _contrast(problem, run, reduction)
    return losses if reduction == "mean" else rearrange(losses, "(view n) ... -> view n ...", view=2).mean(0)


def against_negatives(pairs: Pairs, negatives: Tensor, run: Run, *, temperature: float | Tensor) -> Tensor:
    """Of every anchor ``log(1 + exp(logsumexp_j s_ij - s_i+))``: the only negatives are those given, (M, D).

    All-pairs operators give a logsumexp less a positive. Here the first of the negatives stands in for a positive that
    all anchors share, and its score, added again, leaves the logsumexp.
    """
    with no_autocast(pairs.z0):
        dtype = wide(pairs.z0.dtype)
        z0, negatives = pairs.z0.to(dtype), negatives.to(dtype)
        inverse = _inverse(temperature, z0)
        shared = torch.zeros(len(z0), dtype=torch.int64, device=z0.device)
        problem = problem_of(pairs, inverse, shared)._replace(
            z0=z0, z1=negatives, sample1=torch.arange(len(negatives), device=z0.device)
        )
        rows, _ = ops.contrast(problem, backend=run.backend)
        first = pairs._replace(z0=z0, z1=negatives[:1].expand_as(z0).contiguous())
        log_sum = rows + inverse * cosine_of_pairs(first, run)
        excess = log_sum - inverse * cosine_of_pairs(pairs, run)
        return torch.logaddexp(excess, torch.zeros_like(excess))


def subspace_sup_con(
    z: Tensor,
    sample: Tensor,
    masks: Tensor,
    *,
    temperature: float | Tensor,
    kinds: Tensor | None = None,
    kind: Tensor | None = None,
    reduction: Reduction = "mean",
    skip_alone: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Contrastive loss with any number of positives inside every subspace: several views, or class labels.

    Every row is an anchor, the other rows of its sample are its positives, and all other rows stand under the
    softmax: ``logsumexp_{j != i} s_ij - mean_{j positive} s_ij``. Two views a sample make it NT-Xent.

    Args:
        z: Embedding of all views, (N, D), floating point.
        sample: (N,) int64, the sample (or the class) that each row shows.
        masks: One mask per subspace, (K, D). Columns where a mask is zero are skipped.
        temperature: Divides the cosines; > 0. A float, or a tensor of one element to learn it.
        kinds: Of :func:`mast_ops.functional.masked_distance`.
        kind: Likewise. With it, row i contrasts as an anchor where the masks of all that differs in the pair are open.
        reduction: ``"mean"`` over anchors and subspaces, or ``"none"``. The mean is faster: its gradients are
            made in the forward pass.
        skip_alone: What becomes of a row that is alone, which has no positive. False (default): its loss is NaN, and
            so is the mean. True: it counts as a negative of the others alone; its own loss is 0 and not in the mean,
            which is 0 where all rows are alone. Not the default, since labels that were read wrongly look like that.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"mean"``: a scalar. ``"none"``: (N, K), or (N,) with ``kind``. float64 for float64 input, else
        float32.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or of another kind,
            ``kind`` is out of range, ``temperature`` is not a positive number, or the asked backend cannot run.

    Source: SupCon (Khosla et al. 2020, arXiv 2004.11362), equation 2; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_sup_con
        >>> z = torch.eye(2).repeat_interleave(3, dim=0)  # three views of two samples
        >>> subspace_sup_con(z, torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(1, 2), temperature=0.1)
        tensor(0.6932)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("skip_alone", skip_alone)
    check_temperature(temperature)
    check_embedding("z", z)
    check_index("sample", sample, len(z), z.device)
    pairs = Pairs.of(z, z, masks, kinds=kinds, kind=kind)
    problem, run = problem_of(pairs, _inverse(temperature, z), sample), Run(backend)
    return _of_rows_with_positives(problem, run, reduction) if skip_alone else _contrast(problem, run, reduction)


def _of_rows_with_positives(problem: Contrast, run: Run, reduction: Reduction) -> Tensor:
    losses = _contrast(problem, run, "none")
    ordered = problem.sample0.sort().values
    ends = (torch.searchsorted(ordered, problem.sample0.contiguous(), right=right) for right in (False, True))
    first, last = ends
    counted = (last - first > 1).reshape(-1, *[1] * (losses.dim() - 1)).expand_as(losses)
    kept = torch.where(counted, losses, 0)
    # Of what is not finite nothing finite is made, where no row counts either.
    given = problem.z0, problem.masks, problem.inverse_temperature
    spoilt = sum(nothing(x.to(losses.dtype)) for x in given)
    return (kept if reduction == "none" else kept.sum() / counted.sum().clamp_min(1)) + spoilt


def check_temperature(temperature: float | Tensor) -> None:
    """A positive number, or a tensor of one element; its value is looked at only where that is free."""
    check_scalar("temperature", temperature)
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
    elif values_are_free(temperature):
        check_positive("temperature", float(temperature.detach()))


def check_scalar(name: str, x: float | Tensor) -> None:
    """A finite number, or a floating-point tensor of one element."""
    if not isinstance(x, Tensor):
        check_number(name, x)
    elif x.numel() != 1 or not x.is_floating_point():
        raise ValueError(
            f"{name}: got a {x.dtype} tensor of shape {tuple(x.shape)}, "
            "wanted a float or a floating-point tensor of one element"
        )
    else:
        check_dense(name, x)


def check_samples(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    kinds: Tensor | None,
    kind: Tensor | None,
    samples: tuple[Tensor | None, Tensor | None],
    gather_distributed: bool,
) -> tuple[Pairs, Tensor, tuple[Tensor, Tensor]]:
    """Anchors as pairs with themselves, candidates, and the samples of both: by default row i is sample i."""
    sample0, sample1 = samples
    if (sample0 is None) != (sample1 is None):
        missing, given = ("sample0", "sample1") if sample0 is None else ("sample1", "sample0")
        raise ValueError(f"{missing}: got None beside {given}, wanted both or neither")
    if sample0 is None or sample1 is None:
        check_views(z0, z1)
        sample0 = sample1 = torch.arange(len(z0), device=z0.device)
    else:
        _check_candidates(z0, z1)
        check_index("sample0", sample0, len(z0), z0.device)
        check_index("sample1", sample1, len(z1), z1.device)
        if gather_distributed:
            raise ValueError(
                "gather_distributed: got True beside sample0 and sample1, wanted False: "
                "positives are not sought on other ranks"
            )
    anchors, candidates = alike(z0, z1)
    return Pairs.of(anchors, anchors, masks, kinds=kinds, kind=kind), candidates, (sample0, sample1)


def problem_of(pairs: Pairs, inverse_temperature: Tensor, sample: Tensor) -> Contrast:
    """The first views against one another: the caller puts other candidates in."""
    return Contrast(pairs.z0, None, pairs.rows(), inverse_temperature, sample, None, pairs.kind)


def as_scalar(x: float | Tensor, z: Tensor, name: str = "temperature") -> Tensor:
    """Of no axes, in the dtype that sums over ``z`` run in, on its device."""
    dtype = wide(z.dtype)
    if not isinstance(x, Tensor):
        return torch.full((), x, dtype=dtype, device=z.device)
    if not z.is_meta:
        check_values(name, x)
    if x.device.type != "cpu" or z.device.type == "cpu":
        return x.reshape(()).to(z.device, dtype)
    # As an operand: for a copy of it to another device the CPU would wait.
    return (torch.ones(1, dtype=dtype, device=z.device) * x.reshape(())).reshape(())


def _contrast(problem: Contrast, run: Run, reduction: Reduction) -> Tensor:
    with no_autocast(problem.z0):
        if reduction == "mean" and not run.distributed:
            return ops.contrast_mean(problem, run.backend)
        problem = problem._replace(masks=run.tied(problem.masks, problem.z0, problem.z1, problem.inverse_temperature))
        rows, other = ops.contrast(problem, run.distributed, run.backend)
        losses = (rows + other) / 2 if problem.both_ways else rows
        run.told(losses)
        return losses if reduction == "none" else run.mean(losses.mean(), len(problem.z0))


def _inverse(temperature: float | Tensor, z: Tensor) -> Tensor:
    if isinstance(temperature, Tensor):
        exact = temperature.dtype == torch.float64
        return as_scalar(temperature.reciprocal(), z) if exact else as_scalar(temperature, z).reciprocal()
    return as_scalar(1 / temperature, z)


def _check_candidates(z0: Tensor, z1: Tensor) -> None:
    """Embeddings that may differ in their number of rows alone."""
    check_embedding("z0", z0)
    check_embedding("z1", z1)
    wanted = (z1.shape[0], z0.shape[1])
    if tuple(z1.shape) != wanted:
        raise ValueError(f"z1: got shape {tuple(z1.shape)}, wanted (C, {z0.shape[1]}), the D of z0")
    check_views(z0[:1], z1[:1])
