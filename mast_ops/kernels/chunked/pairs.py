"""Positive pairs: one skinny product, a tile of the embedding at a time while it is in the cache."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops._precision import wide

# Elements in a tile: on CPU two or three of them fit a third-level cache in float32.
_TILE = {"cpu": 1 << 21, "cuda": 1 << 24}


class _Tile(NamedTuple):
    """Some rows and columns of the embedding, and the masks that look at those rows."""

    rows: slice | Tensor
    cols: slice
    masks: slice


def distance(
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> Tensor:
    """See :func:`mast_ops.kernels.eager.pairs.distance`."""
    (out,), padded = _new_pooled(1, z0, squared, subspace)
    for tile in _tiles(z0, subspace):
        _pool(out, _gap(z0, z1, log_variance, scale, tile), padded, tile)
    return _finish(out, squared, subspace)


def distance_backward(
    grad: Tensor,
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of z0, z1, squared and log_variance; ``scale`` is a constant."""
    grads = _empty(z0), _empty(z1), None if log_variance is None else _empty(log_variance)
    padded = _pad(squared, subspace)
    g_squared, grad = torch.zeros_like(padded), _as_pooled(grad, padded, subspace)
    for tile in _tiles(z0, subspace):
        _gap_backward(grad[tile.rows] @ padded[tile.masks, tile.cols], z0, z1, log_variance, scale, tile, grads)
        gap = _gap(z0, z1, log_variance, scale, tile)
        g_squared[tile.masks, tile.cols].addmm_(grad[tile.rows].T, gap)
    return grads[0], grads[1], g_squared[: len(squared)], grads[2]


def gap_sums(
    z0: Tensor,
    z1: Tensor,
    num_subspaces: int,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> Tensor:
    """See :func:`mast_ops.kernels.eager.pairs.gap_sums`."""
    groups = 1 if subspace is None else num_subspaces
    out = torch.zeros(groups, z0.shape[1], dtype=wide(z0.dtype), device=z0.device)
    for tile in _tiles(z0, subspace):
        out[tile.masks, tile.cols] += _gap(z0, z1, log_variance, scale, tile).sum(0)
    return out


def gap_sums_backward(
    grad: Tensor,
    z0: Tensor,
    z1: Tensor,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of z0, z1 and log_variance."""
    grads = _empty(z0), _empty(z1), None if log_variance is None else _empty(log_variance)
    for tile in _tiles(z0, subspace):
        _gap_backward(grad[tile.masks, tile.cols], z0, z1, log_variance, scale, tile, grads)
    return grads


def products(z0: Tensor, z1: Tensor, squared: Tensor, subspace: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mast_ops.kernels.eager.pairs.products`."""
    outs, padded = _new_pooled(3, z0, squared, subspace)
    for tile in _tiles(z0, subspace):
        x0, x1 = _take(z0, tile), _take(z1, tile)
        for out, (x, y) in zip(outs, ((x0, x1), (x0, x0), (x1, x1)), strict=True):
            _pool(out, x * y, padded, tile)
    dot, norm0, norm1 = (_finish(out, squared, subspace) for out in outs)
    return dot, norm0, norm1


def products_backward(
    g_dot: Tensor,
    g_norm0: Tensor,
    g_norm1: Tensor,
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    subspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z0, z1 and squared."""
    padded = _pad(squared, subspace)
    g_z0, g_z1, g_squared = _empty(z0), _empty(z1), torch.zeros_like(padded)
    g_dot, g_norm0, g_norm1 = (_as_pooled(g, padded, subspace) for g in (g_dot, g_norm0, g_norm1))
    for tile in _tiles(z0, subspace):
        x0, x1 = _take(z0, tile), _take(z1, tile)
        own = padded[tile.masks, tile.cols]
        slope = g_dot[tile.rows] @ own
        for g_z, g_norm, x, other in ((g_z0, g_norm0, x0, x1), (g_z1, g_norm1, x1, x0)):
            through_norm = (g_norm[tile.rows] @ own).mul_(x).mul_(2)
            _store(g_z, torch.addcmul(through_norm, slope, other, out=_room(g_z, tile, x.dtype)), tile)
        for grad, (x, y) in ((g_dot, (x0, x1)), (g_norm0, (x0, x0)), (g_norm1, (x1, x1))):
            g_squared[tile.masks, tile.cols].addmm_(grad[tile.rows].T, x * y)
    return g_z0, g_z1, g_squared[: len(squared)]


def _tiles(z: Tensor, subspace: Tensor | None) -> Iterator[_Tile]:
    """Tiles that cover the embedding. With one subspace a sample, those of each subspace's own rows."""
    num_samples, dim = z.shape
    width = min(dim, _TILE.get(z.device.type, _TILE["cuda"]))
    height = max(_TILE.get(z.device.type, _TILE["cuda"]) // width, 1)
    cols = [slice(col, col + width) for col in range(0, dim, width)]
    if subspace is None:
        parts: Iterator[tuple[slice | Tensor, slice]] = (
            (slice(row, row + height), slice(None)) for row in range(0, num_samples, height)
        )
    else:
        own: tuple[Tensor, ...] = torch.split(subspace.argsort(stable=True), subspace.bincount().tolist())
        parts = (
            (part, slice(k, k + 1)) for k, rows in enumerate(own) for part in torch.split(rows, height) if len(part)
        )
    for rows, masks in parts:
        yield from (_Tile(rows, col, masks) for col in cols)


def _take(z: Tensor, tile: _Tile) -> Tensor:
    """A tile of z, in the dtype that sums run in."""
    cols = z[:, tile.cols]
    return (cols[tile.rows] if isinstance(tile.rows, slice) else cols.index_select(0, tile.rows)).to(wide(z.dtype))


def _room(out: Tensor, tile: _Tile, dtype: torch.dtype) -> Tensor:
    """Where to compute a tile of ``out``: right there if it is a block of this dtype, else in a tile apart."""
    if isinstance(tile.rows, slice):
        block = out[tile.rows, tile.cols]
        return block if out.dtype == dtype else torch.empty_like(block, dtype=dtype)
    return torch.empty(len(tile.rows), out[:1, tile.cols].shape[1], dtype=dtype, device=out.device)


def _store(out: Tensor, value: Tensor, tile: _Tile) -> None:
    """Bring a tile home that had no room there."""
    if not isinstance(tile.rows, slice):
        out[:, tile.cols].index_copy_(0, tile.rows, value.to(out.dtype))
    elif value.dtype != out.dtype:
        out[tile.rows, tile.cols] = value


def _gap(z0: Tensor, z1: Tensor, log_variance: Tensor | None, scale: Tensor | None, tile: _Tile) -> Tensor:
    """``(z0 - z1)^2``, or its likelihood ``scale ((z0 - z1)^2 / v + log v)``, of a tile."""
    gap = F.mse_loss(_take(z0, tile), _take(z1, tile), reduction="none")  # one pass over memory, not two
    if log_variance is None or scale is None:
        return gap
    price = _take(log_variance, tile)
    return gap.mul_(price.neg().exp_()).add_(price).mul_(scale[:, tile.cols])


def _gap_backward(
    slope: Tensor,
    z0: Tensor,
    z1: Tensor,
    log_variance: Tensor | None,
    scale: Tensor | None,
    tile: _Tile,
    grads: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    """Write the gradients of a tile, given that of its gap: for each sample, or a row for all."""
    x0, x1 = _take(z0, tile), _take(z1, tile)
    if log_variance is not None and scale is not None and grads[2] is not None:
        weight = _take(log_variance, tile).neg().exp_()
        slope = slope * scale[:, tile.cols]
        certain = 1 - F.mse_loss(x0, x1, reduction="none").mul_(weight)
        _store(grads[2], torch.mul(slope, certain, out=_room(grads[2], tile, certain.dtype)), tile)
        slope = weight.mul_(slope)
    g0, g1 = (_room(grad, tile, x0.dtype) for grad in grads[:2] if grad is not None)
    torch.ops.aten.mse_loss_backward(slope.expand_as(x0), x0, x1, 0, grad_input=g0)
    _store(grads[0], g0, tile)
    _store(grads[1], torch.neg(g0, out=g1), tile)


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


# Pooled quantities are held as (N, K), or (N, 1) with one subspace a sample. Products with nine or more columns want
# a multiple of eight of them: a third of the time of the same product with fifteen.


def _pad(squared: Tensor, subspace: Tensor | None) -> Tensor:
    missing = -len(squared) % 8 if len(squared) > 8 and subspace is None else 0
    return F.pad(squared, (0, 0, 0, missing)) if missing else squared


def _as_pooled(grad: Tensor, padded: Tensor, subspace: Tensor | None) -> Tensor:
    return F.pad(grad, (0, len(padded) - grad.shape[1])) if subspace is None else grad[:, None]


def _new_pooled(count: int, z: Tensor, squared: Tensor, subspace: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Zeros to add to, and the masks that fit them."""
    padded = _pad(squared, subspace)
    width = len(padded) if subspace is None else 1
    return [padded.new_zeros(len(z), width) for _ in range(count)], padded


def _finish(pooled: Tensor, squared: Tensor, subspace: Tensor | None) -> Tensor:
    return pooled[:, : len(squared)].contiguous() if subspace is None else pooled[:, 0]


def _pool(out: Tensor, x: Tensor, padded: Tensor, tile: _Tile) -> None:
    pooled = x @ padded[tile.masks, tile.cols].T
    if isinstance(tile.rows, slice):
        out[tile.rows] += pooled
    else:
        out.index_add_(0, tile.rows, pooled)
