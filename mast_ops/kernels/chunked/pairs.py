"""Positive pairs: one skinny product, or one row of the masks a sample, a tile of the embedding at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops._precision import wide

# Elements in a tile: on CPU two or three of them fit a small third-level cache in float32.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 24}


class _Tile(NamedTuple):
    """Some rows and columns of the embedding."""

    rows: slice
    cols: slice


def distance(
    z0: Tensor,
    z1: Tensor,
    squared: Tensor,
    log_variance: Tensor | None = None,
    scale: Tensor | None = None,
    subspace: Tensor | None = None,
) -> Tensor:
    """See :func:`mast_ops.kernels.eager.pairs.distance`."""
    masks = _Masks(squared, subspace)
    out = masks.new_pooled(z0)
    for tile in _tiles(z0):
        masks.pool(out, _gap(z0, z1, log_variance, scale, tile), tile)
    return masks.finish(out)


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
    masks = _Masks(squared, subspace)
    grads = _empty(z0), _empty(z1), None if log_variance is None else _empty(log_variance)
    g_squared, grad = masks.new_gradient(), masks.as_pooled(grad)
    for tile in _tiles(z0):
        _gap_backward(masks.slope(grad, tile), z0, z1, log_variance, scale, tile, grads)
        masks.pull(g_squared, grad, _gap(z0, z1, log_variance, scale, tile), tile)
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
    for tile in _tiles(z0):
        gap = _gap(z0, z1, log_variance, scale, tile)
        if subspace is None:
            out[:, tile.cols] += gap.sum(0)
        else:
            _add_by_subspace(out, gap, subspace, tile)
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
    for tile in _tiles(z0):
        slope = grad[:, tile.cols]
        if subspace is not None:
            slope = slope.index_select(0, subspace[tile.rows])
        _gap_backward(slope, z0, z1, log_variance, scale, tile, grads)
    return grads


def products(z0: Tensor, z1: Tensor, squared: Tensor, subspace: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mast_ops.kernels.eager.pairs.products`."""
    masks = _Masks(squared, subspace)
    outs = [masks.new_pooled(z0) for _ in range(3)]
    for tile in _tiles(z0):
        x0, x1 = _take(z0, tile), _take(z1, tile)
        for out, (x, y) in zip(outs, ((x0, x1), (x0, x0), (x1, x1)), strict=True):
            masks.pool(out, x * y, tile)
    dot, norm0, norm1 = (masks.finish(out) for out in outs)
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
    masks = _Masks(squared, subspace)
    g_z0, g_z1, g_squared = _empty(z0), _empty(z1), masks.new_gradient()
    g_dot, g_norm0, g_norm1 = (masks.as_pooled(g) for g in (g_dot, g_norm0, g_norm1))
    for tile in _tiles(z0):
        x0, x1 = _take(z0, tile), _take(z1, tile)
        slope = masks.slope(g_dot, tile)
        for g_z, g_norm, x, other in ((g_z0, g_norm0, x0, x1), (g_z1, g_norm1, x1, x0)):
            through_norm = masks.slope(g_norm, tile).mul_(x).mul_(2)
            _store(g_z, torch.addcmul(through_norm, slope, other, out=_room(g_z, tile, x.dtype)), tile)
        for grad, (x, y) in ((g_dot, (x0, x1)), (g_norm0, (x0, x0)), (g_norm1, (x1, x1))):
            masks.pull(g_squared, grad, x * y, tile)
    return g_z0, g_z1, g_squared[: len(squared)]


class _Masks:
    """The squared masks as a tile meets them: all K in one product, or for each sample the row of its own subspace.

    Pooled quantities are held as (N, K), or (N, 1) with one subspace a sample. Products with nine or more columns
    want a multiple of eight of them: a third of the time of the same product with fifteen.
    """

    def __init__(self, squared: Tensor, subspace: Tensor | None) -> None:
        self.count, self.subspace = len(squared), subspace
        missing = -len(squared) % 8 if len(squared) > 8 and subspace is None else 0
        self.squared = F.pad(squared, (0, 0, 0, missing)) if missing else squared

    def new_pooled(self, z: Tensor) -> Tensor:
        return self.squared.new_zeros(len(z), len(self.squared) if self.subspace is None else 1)

    def new_gradient(self) -> Tensor:
        return torch.zeros_like(self.squared)

    def as_pooled(self, grad: Tensor) -> Tensor:
        return F.pad(grad, (0, len(self.squared) - self.count)) if self.subspace is None else grad[:, None]

    def finish(self, pooled: Tensor) -> Tensor:
        return pooled[:, : self.count].contiguous() if self.subspace is None else pooled[:, 0]

    def pool(self, out: Tensor, x: Tensor, tile: _Tile) -> None:
        """Add what the masks let through of a tile."""
        if self.subspace is None:
            out[tile.rows].addmm_(x, self.squared[:, tile.cols].T)
        else:
            out[tile.rows] += self._own(tile).mul_(x).sum(1, keepdim=True)

    def slope(self, grad: Tensor, tile: _Tile) -> Tensor:
        """``sum_k grad_ik squared_kd``: what a unit of ``x_id`` costs."""
        if self.subspace is None:
            return grad[tile.rows] @ self.squared[:, tile.cols]
        return self._own(tile).mul_(grad[tile.rows])

    def pull(self, g_squared: Tensor, grad: Tensor, x: Tensor, tile: _Tile) -> None:
        """Add a tile's part of the masks' gradient. May overwrite ``x``."""
        if self.subspace is None:
            g_squared[:, tile.cols].addmm_(grad[tile.rows].T, x)
        else:
            _add_by_subspace(g_squared, x.mul_(grad[tile.rows]), self.subspace, tile)

    def _own(self, tile: _Tile) -> Tensor:
        assert self.subspace is not None
        return self.squared[:, tile.cols].index_select(0, self.subspace[tile.rows])


def _add_by_subspace(out: Tensor, x: Tensor, subspace: Tensor, tile: _Tile) -> None:
    out[:, tile.cols].index_add_(0, subspace[tile.rows], x)


def _tiles(z: Tensor) -> Iterator[_Tile]:
    num_samples, dim = z.shape
    elements = _TILE.get(z.device.type, _TILE["cuda"])
    width = min(dim, elements)
    height = elements // width
    for row in range(0, num_samples, height):
        for col in range(0, dim, width):
            yield _Tile(slice(row, min(row + height, num_samples)), slice(col, min(col + width, dim)))


def _take(z: Tensor, tile: _Tile) -> Tensor:
    """A tile of z, in the dtype that sums run in."""
    return z[tile.rows, tile.cols].to(wide(z.dtype))


def _room(out: Tensor, tile: _Tile, dtype: torch.dtype) -> Tensor:
    """Where to compute a tile of ``out``: right there if it is of this dtype, else apart."""
    block = out[tile.rows, tile.cols]
    return block if out.dtype == dtype else torch.empty_like(block, dtype=dtype)


def _store(out: Tensor, value: Tensor, tile: _Tile) -> None:
    """Bring a tile home that had no room there."""
    if value.dtype != out.dtype:
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
    g0, g1 = _room(grads[0], tile, x0.dtype), _room(grads[1], tile, x0.dtype)
    torch.ops.aten.mse_loss_backward(slope.expand_as(x0), x0, x1, 0, grad_input=g0)
    _store(grads[0], g0, tile)
    _store(grads[1], torch.neg(g0, out=g1), tile)


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)
