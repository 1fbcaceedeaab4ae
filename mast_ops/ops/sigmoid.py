"""All pairs, each by itself: the pairwise sigmoid loss of every anchor, or its mean."""

from typing import Any, cast

import torch
from torch import Tensor

from mast_ops._precision import kept, wide
from mast_ops.kernels.contract import Contrast, SigmoidFormulas
from mast_ops.kernels.eager import sigmoid as eager
from mast_ops.ops import ring
from mast_ops.ops._library import with_gradient
from mast_ops.ops.backend import Backend, all_pairs, plain, resolve, resolve_kernels, sigmoid_kernels

_formulas: SigmoidFormulas = eager
_INPUTS = (
    "Tensor z0, Tensor z1, Tensor masks, Tensor inverse_temperature, Tensor bias, Tensor sample0, Tensor sample1, "
    "Tensor? row, str backend"
)
_LEARNED = ("z0", "z1", "masks", "inverse_temperature", "bias")


def sigmoid(problem: Contrast, bias: Tensor, distributed: bool = False, backend: Backend = "auto") -> Tensor:
    """Loss of every anchor, see :class:`mast_ops.kernels.contract.SigmoidFormulas`.

    ``distributed``: against the candidates of all ranks, with their sample ids.
    """
    held = len(problem.z0) * len(problem.candidates) * problem.num_rows
    resolved = (resolve_kernels if distributed else resolve)(backend, all_pairs(problem), problem.z0, held)
    if resolved in ("eager", "compile"):
        return plain(resolved, _formulas.losses)(problem, bias)
    return cast(Tensor, (_over_ranks if distributed else _sigmoid)(*_flat(problem, bias), resolved)[0])


def sigmoid_mean(problem: Contrast, bias: Tensor, backend: Backend = "auto") -> Tensor:
    """Mean of those over anchors and rows of the masks; gradients that are wanted are made in the forward pass."""
    held = len(problem.z0) * len(problem.candidates) * problem.num_rows
    resolved = resolve(backend, all_pairs(problem), problem.z0, held)
    leaves = *problem[:4], bias
    learned = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in leaves)
    if resolved in ("eager", "compile") or not learned:
        return sigmoid(problem, bias, backend=resolved).mean()
    return cast(Tensor, _sigmoid_mean(*_flat(problem, bias), resolved)[0])


def _flat(problem: Contrast, bias: Tensor) -> tuple[Any, ...]:
    return *problem[:4], bias, problem.sample0, problem.sample1, problem.row


def _nested(flat: tuple[Any, ...]) -> tuple[Contrast, Tensor]:
    return Contrast(*flat[:4], *flat[5:8]), flat[4]


def _losses(*flat: Any) -> tuple[Tensor, Tensor]:
    z0, masks, row = flat[0], flat[2], flat[7]
    n = z0.shape[0]  # len() would fix it while torch.compile traces
    shape = (n, masks.shape[0]) if row is None else (n,)
    losses, slopes = (z0.new_empty(shape, dtype=wide(z0.dtype)) for _ in range(2))
    return losses, slopes


def _run_backward(grad: Tensor, slopes: Tensor, *flat: Any) -> tuple[Tensor | None, ...]:
    problem, bias = _nested(flat)
    return *sigmoid_kernels(flat[-1]).backward(problem, bias, grad), (grad * slopes).sum()


def _run_over_ranks_backward(grad: Tensor, slopes: Tensor, *flat: Any) -> tuple[Tensor | None, ...]:
    problem, bias = _nested(flat)
    return *ring.sigmoid_backward(sigmoid_kernels(flat[-1]), problem, bias, grad), (grad * slopes).sum()


def _run_mean(*flat: Any) -> tuple[Tensor, ...]:
    problem, bias = _nested(flat)
    weight = 1 / _losses(*flat)[0].numel()
    losses, slopes, grads = sigmoid_kernels(flat[-1]).fused(problem, bias, weight)
    return losses.sum() * weight, *(cast(Tensor, g) for g in grads), slopes.sum() * weight


def _fake_mean(*flat: Any) -> tuple[Tensor, ...]:
    dtype, z0, z1 = wide(flat[0].dtype), *flat[:2]
    of_z = kept(z0.dtype) if flat[-1] == "triton" else dtype
    rest = (z0.new_empty(x.shape, dtype=dtype) for x in flat[2:5])
    return z0.new_empty((), dtype=dtype), *(z0.new_empty(z.shape, dtype=of_z) for z in (z0, z1)), *rest


def _run_mean_backward(grad: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    return tuple(g * grad for g in flat[: len(_LEARNED)])


_sigmoid = with_gradient(
    "sigmoid",
    _INPUTS,
    lambda *flat: sigmoid_kernels(flat[-1]).forward(*_nested(flat)),
    _losses,
    _run_backward,
    learned=_LEARNED,
    saved=1,
)
_over_ranks = with_gradient(
    "sigmoid_over_ranks",
    _INPUTS,
    lambda *flat: ring.sigmoid(sigmoid_kernels(flat[-1]), *_nested(flat)),
    _losses,
    _run_over_ranks_backward,
    learned=_LEARNED,
    saved=1,
)
# The learned inputs are needed so that a gradient of this gradient is refused, not lost.
_sigmoid_mean = with_gradient(
    "sigmoid_mean",
    _INPUTS,
    _run_mean,
    _fake_mean,
    _run_mean_backward,
    learned=_LEARNED,
    saved=len(_LEARNED),
    needed=_LEARNED,
)
