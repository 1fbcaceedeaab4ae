"""All pairs: contrastive losses of every anchor, or their mean with its gradients made on the way."""

from typing import Any, cast

import torch
from torch import Tensor

from mast_ops._precision import kept, wide
from mast_ops.kernels.contract import Both, Contrast, Contrasted, ContrastFormulas
from mast_ops.kernels.eager import contrast as eager
from mast_ops.ops import ring
from mast_ops.ops._library import with_gradient
from mast_ops.ops.backend import Backend, all_pairs, contrast_kernels, plain, resolve, resolve_kernels

_formulas: ContrastFormulas = eager
_INPUTS = (
    "Tensor z0, Tensor? z1, Tensor masks, Tensor inverse_temperature, Tensor sample0, Tensor? sample1, "
    "Tensor? row, bool both_ways, str backend"
)
_LEARNED = ("z0", "z1", "masks", "inverse_temperature")


def contrast(problem: Contrast, distributed: bool = False, backend: Backend = "auto") -> Both:
    """Contrastive loss of every anchor, see :class:`mast_ops.kernels.contract.Contrasted`.

    The scores are computed again in the backward pass. ``distributed``: against the candidates of all ranks, see
    :mod:`mast_ops.ops.ring`; the positives are then those of the own rank.
    """
    choose = resolve_kernels if distributed else resolve
    resolved = choose(backend, all_pairs(problem), problem.z0, _num_scores(problem))
    if resolved in ("eager", "compile"):
        return plain(resolved, _formulas.losses)(problem)
    rows, other, _, _ = (_over_ranks if distributed else _contrast)(*problem, resolved)
    return rows, other


def contrast_mean(problem: Contrast, backend: Backend = "auto") -> Tensor:
    """Mean of those losses over anchors, rows of the masks and directions, a scalar.

    Where a gradient will be wanted it is made in the forward pass: what is saved are gradients of the inputs'
    sizes, and the scores need not be computed again. Triton keeps those of bfloat16 embeddings in bfloat16.
    """
    resolved = resolve(backend, all_pairs(problem), problem.z0, _num_scores(problem))
    leaves = problem.z0, problem.z1, problem.masks, problem.inverse_temperature
    learned = any(x is not None and x.requires_grad for x in leaves)
    if resolved in ("eager", "compile") or not (learned and torch.is_grad_enabled()):
        rows, other = contrast(problem, backend=resolved)
        return (rows.mean() + other.mean()) / 2 if problem.both_ways else rows.mean()
    return cast(Tensor, _contrast_mean(*problem, resolved)[0])


def _num_scores(problem: Contrast) -> int:
    return len(problem.z0) * len(problem.candidates) * problem.num_rows


def _outputs(problem: Contrast) -> Both:
    # len() would fix the sizes while torch.compile traces.
    each = () if problem.row is not None else (problem.masks.shape[0],)
    sizes = problem.z0.shape[0], problem.candidates.shape[0] if problem.both_ways else 0
    rows, other = (problem.z0.new_empty((size, *each), dtype=wide(problem.z0.dtype)) for size in sizes)
    return rows, other


def _flat(out: Contrasted) -> tuple[Tensor, ...]:
    return *out.losses, *out.lse


def _fake(*flat: Any) -> tuple[Tensor, ...]:
    problem = Contrast(*flat[:-1])
    return *_outputs(problem), *_outputs(problem)


def _run_mean(*flat: Any) -> tuple[Tensor, ...]:
    problem = Contrast(*flat[:-1])
    directions = 2 if problem.both_ways else 1
    of_rows, of_other = (1 / max(x.numel() * directions, 1) for x in _outputs(problem))
    (rows, other), grads = contrast_kernels(flat[-1]).fused(problem, (of_rows, of_other))
    return rows.sum() * of_rows + other.sum() * of_other, *(rows.new_empty(0) if g is None else g for g in grads)


def _fake_mean(*flat: Any) -> tuple[Tensor, ...]:
    dtype, z0, z1 = wide(flat[0].dtype), *flat[:2]
    of_z = kept(z0.dtype) if flat[-1] == "triton" else dtype
    grads = (z0.new_empty(x.shape, dtype=dtype) for x in flat[2 : len(_LEARNED)])
    g_z1 = z0.new_empty(0, dtype=dtype) if z1 is None else z0.new_empty(z1.shape, dtype=of_z)
    return z0.new_empty((), dtype=dtype), z0.new_empty(z0.shape, dtype=of_z), g_z1, *grads


def _run_mean_backward(grad: Tensor, *flat: Any) -> tuple[Tensor | None, ...]:
    grads, learned = flat[: len(_LEARNED)], flat[len(_LEARNED) :]
    return tuple(None if x is None else g * grad for x, g in zip(learned, grads, strict=True))


_contrast = with_gradient(
    "contrast",
    _INPUTS,
    lambda *flat: _flat(contrast_kernels(flat[-1]).forward(Contrast(*flat[:-1]))),
    _fake,
    lambda *flat: contrast_kernels(flat[-1]).backward(Contrast(*flat[4:-1]), flat[:2], flat[2:4]),
    learned=_LEARNED,
    outputs=2,
    saved=2,
)
_over_ranks = with_gradient(
    "contrast_over_ranks",
    _INPUTS,
    lambda *flat: _flat(ring.forward(contrast_kernels(flat[-1]), Contrast(*flat[:-1]))),
    _fake,
    lambda *flat: ring.backward(contrast_kernels(flat[-1]), Contrast(*flat[4:-1]), flat[:2], flat[2:4]),
    learned=_LEARNED,
    outputs=2,
    saved=2,
)
# The learned inputs are needed so that a gradient of this gradient is refused, not lost.
_contrast_mean = with_gradient(
    "contrast_mean",
    _INPUTS,
    _run_mean,
    _fake_mean,
    _run_mean_backward,
    learned=_LEARNED,
    saved=len(_LEARNED),
    needed=_LEARNED,
)
