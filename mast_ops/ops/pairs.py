"""Positive pairs: masked squared distances, their sums over samples, and masked products."""

from typing import Any, cast

import torch
from torch import Tensor

from mast_ops._precision import wide
from mast_ops.kernels.eager import pairs as eager
from mast_ops.ops._library import differentiate, differentiate_once, register, without_none
from mast_ops.ops.backend import Backend, kernels, plain, resolve

_SCALED = "Tensor? log_variance, Tensor? scale, Tensor? subspace, str backend"


def distance(
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Masked squared distance of every pair, see :func:`mast_ops.kernels.eager.pairs.distance`.

    ``squared`` is in the dtype that sums over ``z0`` run in; ``scale`` is a constant.
    """
    backend = resolve(backend, "pairs", z0, z0.numel())
    if backend in ("eager", "compile"):
        formula = plain(backend, eager.distance)
        return cast(Tensor, formula(z0, z1, squared, log_variance, scale, subspace))
    return cast(Tensor, _distance(z0, z1, squared, log_variance, scale, subspace, backend))


def gap_sums(
    z0: Tensor,
    z1: Tensor,
    num_subspaces: int,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Sums over samples of squared differences, see :func:`mast_ops.kernels.eager.pairs.gap_sums`."""
    backend = resolve(backend, "pairs", z0, z0.numel())
    if backend in ("eager", "compile"):
        formula = plain(backend, eager.gap_sums)
        return cast(Tensor, formula(z0, z1, num_subspaces, log_variance, scale, subspace))
    return cast(Tensor, _gap_sums(z0, z1, num_subspaces, log_variance, scale, subspace, backend))


def products(
    z0: Tensor, z1: Tensor, squared: Tensor, subspace: Tensor | None = None, backend: Backend = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Masked dot products and squared norms, see :func:`mast_ops.kernels.eager.pairs.products`."""
    backend = resolve(backend, "pairs", z0, z0.numel())
    if backend in ("eager", "compile"):
        return cast(tuple[Tensor, Tensor, Tensor], plain(backend, eager.products)(z0, z1, squared, subspace))
    return cast(tuple[Tensor, Tensor, Tensor], _products(z0, z1, squared, subspace, backend))


def _pooled(z: Tensor, squared: Tensor, subspace: Tensor | None) -> Tensor:
    return squared.new_empty((len(z), len(squared)) if subspace is None else (len(z),))


def _contiguous(z: Tensor) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _run_distance(*args: Any) -> Tensor:
    return cast(Tensor, kernels(args[-1], "pairs").distance(*args[:-1]))


def _run_distance_backward(*args: Any) -> tuple[Tensor, ...]:
    return without_none(kernels(args[-1], "pairs").distance_backward(*args[:-1]), args[1])


_distance = register(
    f"distance(Tensor z0, Tensor z1, Tensor squared, {_SCALED}) -> Tensor",
    _run_distance,
    lambda z0, z1, squared, log_variance, scale, subspace, backend: _pooled(z0, squared, subspace),
)
_distance_backward = register(
    f"distance_backward(Tensor grad, Tensor z0, Tensor z1, Tensor squared, {_SCALED})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _run_distance_backward,
    lambda grad, z0, z1, squared, log_variance, scale, subspace, backend: (
        _contiguous(z0),
        _contiguous(z1),
        _contiguous(squared),
        z0.new_empty(0) if log_variance is None else _contiguous(log_variance),
    ),
)


def _save_distance(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.backend = inputs[-1]


def _backward_distance(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    g_z0, g_z1, g_squared, g_log_variance = _distance_backward(grad, *saved, ctx.backend)
    return g_z0, g_z1, g_squared, None if saved[3] is None else g_log_variance, None, None, None


differentiate(_distance, _save_distance, _backward_distance)
differentiate_once(_distance_backward)


def _run_gap_sums(*args: Any) -> Tensor:
    return cast(Tensor, kernels(args[-1], "pairs").gap_sums(*args[:-1]))


def _run_gap_sums_backward(*args: Any) -> tuple[Tensor, ...]:
    return without_none(kernels(args[-1], "pairs").gap_sums_backward(*args[:-1]), args[1])


_gap_sums = register(
    f"gap_sums(Tensor z0, Tensor z1, int num_subspaces, {_SCALED}) -> Tensor",
    _run_gap_sums,
    lambda z0, z1, num_subspaces, log_variance, scale, subspace, backend: z0.new_empty(
        1 if subspace is None else num_subspaces, z0.shape[1], dtype=wide(z0.dtype)
    ),
)
_gap_sums_backward = register(
    f"gap_sums_backward(Tensor grad, Tensor z0, Tensor z1, {_SCALED}) -> (Tensor, Tensor, Tensor)",
    _run_gap_sums_backward,
    lambda grad, z0, z1, log_variance, scale, subspace, backend: (
        _contiguous(z0),
        _contiguous(z1),
        z0.new_empty(0) if log_variance is None else _contiguous(log_variance),
    ),
)


def _save_gap_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z0, z1, _, log_variance, scale, subspace, ctx.backend = inputs
    ctx.save_for_backward(z0, z1, log_variance, scale, subspace)


def _backward_gap_sums(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    g_z0, g_z1, g_log_variance = _gap_sums_backward(grad, *saved, ctx.backend)
    return g_z0, g_z1, None, None if saved[2] is None else g_log_variance, None, None, None


differentiate(_gap_sums, _save_gap_sums, _backward_gap_sums)
differentiate_once(_gap_sums_backward)


def _run_products(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor, Tensor], kernels(args[-1], "pairs").products(*args[:-1]))


def _run_products_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor, Tensor], kernels(args[-1], "pairs").products_backward(*args[:-1]))


_products = register(
    "products(Tensor z0, Tensor z1, Tensor squared, Tensor? subspace, str backend) -> (Tensor, Tensor, Tensor)",
    _run_products,
    lambda z0, z1, squared, subspace, backend: tuple(_pooled(z0, squared, subspace) for _ in range(3)),
)
_products_backward = register(
    "products_backward(Tensor g_dot, Tensor g_norm0, Tensor g_norm1, Tensor z0, Tensor z1, Tensor squared, "
    "Tensor? subspace, str backend) -> (Tensor, Tensor, Tensor)",
    _run_products_backward,
    lambda g_dot, g_norm0, g_norm1, z0, z1, squared, subspace, backend: (
        _contiguous(z0),
        _contiguous(z1),
        _contiguous(squared),
    ),
)


def _backward_products(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return *_products_backward(*grads, *ctx.saved_tensors, ctx.backend), None, None


differentiate(_products, _save_distance, _backward_products)
differentiate_once(_products_backward)
