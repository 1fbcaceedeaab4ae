"""All pairs: contrastive losses of every anchor, or their mean with its gradients made on the way."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mast_ops._precision import wide
from mast_ops.kernels.eager import contrast as eager
from mast_ops.ops import ring
from mast_ops.ops._library import Operator, differentiate, differentiate_once, register, without_none
from mast_ops.ops.backend import Backend, kernels, plain, resolve, resolve_kernels

_INPUTS = (
    "Tensor z0, Tensor? z1, Tensor masks, Tensor inverse_temperature, Tensor sample0, Tensor? sample1, "
    "Tensor? subspace, bool columns, str backend"
)


def contrast(
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None = None,
    subspace: Tensor | None = None,
    columns: bool = False,
    distributed: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Contrastive loss of every anchor, see :func:`mast_ops.kernels.eager.contrast.contrast`.

    ``masks`` and ``inverse_temperature`` are in the dtype that sums over ``z0`` run in. The scores are computed
    again in the backward pass. ``distributed``: against the candidates of all ranks, see
    :mod:`mast_ops.ops.ring`; the positives are then those of the own rank.
    """
    held = _num_scores(z0, z1, masks, subspace)
    backend = (resolve_kernels if distributed else resolve)(backend, "contrast", z0, held)
    inputs = (z0, z1, masks, inverse_temperature, sample0, sample1, subspace, columns)
    if backend in ("eager", "compile"):
        return cast(tuple[Tensor, Tensor], plain(backend, eager.contrast)(*inputs))
    rows, other, _, _ = (_over_ranks if distributed else _contrast)(*inputs, backend)
    return rows, other


def contrast_mean(
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None = None,
    subspace: Tensor | None = None,
    columns: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Mean of those losses over anchors, subspaces and directions, a scalar.

    Where a gradient will be wanted it is made in the forward pass: what is saved are gradients of the inputs'
    sizes, and the scores need not be computed again.
    """
    resolved = resolve(backend, "contrast", z0, _num_scores(z0, z1, masks, subspace))
    inputs = (z0, z1, masks, inverse_temperature, sample0, sample1, subspace, columns)
    learned = any(x is not None and x.requires_grad for x in inputs[:4] if not isinstance(x, bool))
    if resolved in ("eager", "compile") or not (learned and torch.is_grad_enabled()):
        rows, other = contrast(*inputs, backend=resolved)
        return (rows.mean() + other.mean()) / 2 if columns else rows.mean()
    return cast(Tensor, _contrast_mean(*inputs, resolved)[0])


def _num_scores(z0: Tensor, z1: Tensor | None, masks: Tensor, subspace: Tensor | None) -> int:
    return len(z0) * len(z0 if z1 is None else z1) * (len(masks) if subspace is None else 1)


def _outputs(z0: Tensor, z1: Tensor | None, masks: Tensor, subspace: Tensor | None, columns: bool) -> list[Tensor]:
    per_subspace = () if subspace is not None else (len(masks),)
    candidates = 0 if z1 is None or not columns else len(z1)
    return [z0.new_empty((size, *per_subspace), dtype=wide(z0.dtype)) for size in (len(z0), candidates)]


def _gradients(z0: Tensor, z1: Tensor | None, masks: Tensor, inverse_temperature: Tensor) -> tuple[Tensor, ...]:
    dtype = wide(z0.dtype)
    g_z1 = z0.new_empty(0, dtype=dtype) if z1 is None else z1.new_empty(z1.shape, dtype=dtype)
    like = torch.contiguous_format
    return (
        z0.new_empty(z0.shape, dtype=dtype),
        g_z1,
        torch.empty_like(masks, memory_format=like),
        torch.empty_like(inverse_temperature, memory_format=like),
    )


def _run(*args: Any) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], kernels(args[-1], "contrast").forward(*args[:-1]))


def _run_backward(*args: Any) -> tuple[Tensor, ...]:
    return without_none(kernels(args[-1], "contrast").backward(*args[:-1]), args[0])


def _run_over_ranks(*args: Any) -> tuple[Tensor, ...]:
    return ring.forward(kernels(args[-1], "contrast"), *args[:-1])


def _run_over_ranks_backward(*args: Any) -> tuple[Tensor, ...]:
    return without_none(ring.backward(kernels(args[-1], "contrast"), *args[:-1]), args[0])


def _run_mean(*args: Any) -> tuple[Tensor, ...]:
    *inputs, backend = args
    z0, z1, masks, _, _, _, subspace, columns = inputs
    directions = 2 if columns else 1
    row_weight, column_weight = (1 / max(x.numel() * directions, 1) for x in _outputs(z0, z1, masks, subspace, columns))
    rows, other, *grads = kernels(backend, "contrast").fused(row_weight, column_weight, *inputs)
    return rows.sum() * row_weight + other.sum() * column_weight, *without_none(grads, rows)


def _run_mean_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    learned, grads = args[:4], args[4:]
    return tuple((g * grad).to(g.dtype if x is None else x.dtype) for x, g in zip(learned, grads, strict=True))


def _with_gradient(name: str, forward: Operator, backward: Operator) -> Operator:
    """Losses and logsumexps as an operator whose gradient is one too."""
    operator = register(
        f"{name}({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
        forward,
        lambda z0, z1, masks, inverse_temperature, sample0, sample1, subspace, columns, backend: (
            *_outputs(z0, z1, masks, subspace, columns),
            *_outputs(z0, z1, masks, subspace, columns),
        ),
    )
    gradient = register(
        f"{name}_backward(Tensor g_rows, Tensor g_columns, Tensor row_lse, Tensor column_lse, "
        f"{_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
        backward,
        lambda g_rows, g_columns, row_lse, column_lse, z0, z1, masks, inverse_temperature, *_: _gradients(
            z0, z1, masks, inverse_temperature
        ),
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.columns, ctx.backend = inputs
        ctx.save_for_backward(*output[2:], *tensors)
        ctx.mark_non_differentiable(*output[2:])

    def pull_back(ctx: Any, g_rows: Tensor, g_columns: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        row_lse, column_lse, *tensors = ctx.saved_tensors
        grads = gradient(g_rows, g_columns, row_lse, column_lse, *tensors, ctx.columns, ctx.backend)
        return _as_inputs(grads, tensors)

    differentiate(operator, save, pull_back)
    differentiate_once(gradient)
    return operator


_contrast = _with_gradient("contrast", _run, _run_backward)
_over_ranks = _with_gradient("contrast_over_ranks", _run_over_ranks, _run_over_ranks_backward)
_contrast_mean = register(
    f"contrast_mean({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_mean,
    lambda z0, z1, masks, inverse_temperature, *_: (
        z0.new_empty((), dtype=wide(z0.dtype)),
        *_gradients(z0, z1, masks, inverse_temperature),
    ),
)


# The learned inputs are there so that a gradient of this gradient is refused, not lost.
_contrast_mean_backward = register(
    "contrast_mean_backward(Tensor grad, Tensor z0, Tensor? z1, Tensor masks, Tensor inverse_temperature, "
    "Tensor g_z0, Tensor g_z1, Tensor g_masks, Tensor g_inverse_temperature) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_mean_backward,
    _run_mean_backward,
)


def _save_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward_mean(ctx: Any, grad: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    return _as_inputs(_contrast_mean_backward(grad, *saved), saved)


def _as_inputs(grads: tuple[Tensor, ...], tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    cast_back = [None if x is None else grad.to(x.dtype) for grad, x in zip(grads, tensors[:4], strict=True)]
    return *cast_back, None, None, None, None, None


differentiate(_contrast_mean, _save_mean, _backward_mean)
differentiate_once(_contrast_mean_backward)
