"""All pairs, each by itself: the pairwise sigmoid loss inside every subspace."""

from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_choice
from mast_ops._precision import no_autocast
from mast_ops.functional.contrastive import as_scalar, check_samples, check_scalar, problem_of
from mast_ops.functional.distance import REDUCTIONS, Reduction
from mast_ops.ops import Backend, Contrast
from mast_ops.pairs import Pairs
from mast_ops.run import Run


@ops.raised_by_all
def subspace_sigmoid(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    kinds: Tensor | None = None,
    kind: Tensor | None = None,
    reduction: Reduction = "mean",
    sample0: Tensor | None = None,
    sample1: Tensor | None = None,
    gather_distributed: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """SigLIP's loss inside every subspace: is this candidate of my sample, asked of every pair by itself.

    ``sum_j softplus(-l_ij (scale cos_ij + bias))``, where ``l_ij`` is 1 for candidates of the anchor's sample and -1
    for all others. No softmax ties the candidates of an anchor together. Memory is as in
    :func:`mast_ops.functional.subspace_info_nce`.

    Args:
        z0: Anchors, (N, D), floating point.
        z1: Candidates, (C, D), same D and device, float64 beside float64 alone; C = N unless samples are given.
        masks: One mask per subspace, (K, D). Columns where a mask is zero are skipped.
        scale: Multiplies the cosines: the inverse of a temperature. A float, or a tensor of one element to learn it.
        bias: Is added to them, likewise. Most pairs are negatives: it starts below 0.
        kinds: Of :func:`mast_ops.functional.masked_distance`.
        kind: Likewise. With it, anchor i is compared where the masks of all that differs in the pair are open.
        reduction: ``"mean"`` over anchors and subspaces, or ``"none"``. The mean is faster: its gradients are made in
            the forward pass.
        sample0: (N,) int64, the sample that each anchor shows, given together with ``sample1``.
        sample1: (C,) int64, likewise for the candidates.
        gather_distributed: Whether the candidates are those of all ranks, as in
            :func:`mast_ops.functional.subspace_info_nce`; positives are found on all of them, by sample.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        ``"mean"``: a scalar. ``"none"``: (N, K), or (N,) with ``kind``. float64 for float64 input, else
        float32.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer,
            ``kind`` is out of range, ``scale`` or ``bias`` is a tensor of several elements, one of ``sample0`` and
            ``sample1`` is missing, ranks disagree in D or K, or the asked backend cannot run.

    Source: SigLIP (Zhai et al. 2023, arXiv 2303.15343), algorithm 1; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import subspace_sigmoid
        >>> z = torch.eye(4)
        >>> subspace_sigmoid(z, z, torch.ones(2, 4), scale=10.0, bias=-5.0, reduction="none")[0].round(decimals=4)
        tensor([0.0269, 0.0269])
    """
    check_choice("reduction", reduction, REDUCTIONS)
    given = sample0
    check_scalar("scale", scale)
    check_scalar("bias", bias)
    pairs, z1, (sample0, sample1) = check_samples(
        z0, z1, masks, kinds=kinds, kind=kind, samples=(sample0, sample1), gather_distributed=False
    )
    run = Run(backend, gather_distributed).of(
        "subspace_sigmoid",
        pairs._replace(z1=z1),
        {"scale": scale, "bias": bias},
        reduction=reduction,
        samples=given is not None,
    )
    if given is None:
        sample0 = sample1 = run.own_samples(len(z0), z0.device)
    problem = problem_of(pairs, as_scalar(scale, z0, "scale"), sample0)._replace(z1=z1, sample1=sample1)
    return _sigmoid(problem, as_scalar(bias, z0, "bias"), run, reduction)


def sigmoid(
    pairs: Pairs, run: Run, *, scale: float | Tensor, bias: float | Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """The same, of checked pairs: every first view against every second one."""
    sample = run.own_samples(len(pairs.z0), pairs.z0.device) if pairs.sample is None else pairs.sample
    problem = problem_of(pairs, as_scalar(scale, pairs.z0, "scale"), sample)._replace(z1=pairs.z1, sample1=sample)
    return _sigmoid(problem, as_scalar(bias, pairs.z0, "bias"), run, reduction)


def _sigmoid(problem: Contrast, bias: Tensor, run: Run, reduction: Reduction) -> Tensor:
    with no_autocast(problem.z0):
        if reduction == "mean" and not run.distributed:
            return ops.sigmoid_mean(problem, bias, run.backend)
        problem = problem._replace(masks=run.tied(problem.masks, problem.z0, problem.z1, bias))
        losses = run.told(ops.sigmoid(problem, bias, run.distributed, run.backend))
        return losses if reduction == "none" else run.mean(losses.mean(), len(problem.z0))
