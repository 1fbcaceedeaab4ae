"""Positive pairs: one skinny product, or one row of the masks a sample, a tile of the embedding at a time."""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops._precision import largest_exponent, wide
from mast_ops.kernels.contract import Gap, Table

# Elements in a tile: on CPU two or three of them fit a small third-level cache in float32.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 24}


class _Tile(NamedTuple):
    """Some samples and dimensions of the embedding."""

    samples: slice
    dims: slice


def distance(gap: Gap, table: Table) -> Tensor:
    masks = _Masks(table)
    out = masks.new_pooled(gap.z0)
    for tile in _tiles(gap.z0):
        masks.pool(out, _values(gap, tile), tile)
    return masks.finish(out)


def distance_backward(grad: Tensor, gap: Gap, table: Table) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    masks, grads = _Masks(table), _GapGradients.empty(gap)
    g_squared, grad = masks.new_gradient(), masks.as_pooled(grad)
    for tile in _tiles(gap.z0):
        grads.write(masks.slope(grad, tile), gap, tile)
        masks.pull(g_squared, grad, _values(gap, tile), tile)
    return grads.z0, grads.z1, masks.gradient(g_squared), grads.log_variance


def gap_sums(gap: Gap, num_rows: int, row: Tensor | None) -> Tensor:
    z0 = gap.z0
    out = torch.zeros(1 if row is None else num_rows, z0.shape[1], dtype=wide(z0.dtype), device=z0.device)
    for tile in _tiles(z0):
        values = _values(gap, tile)
        if row is None:
            out[:, tile.dims] += values.sum(0)
        else:
            _add_by_row(out, values, row, tile)
    return out


def gap_sums_backward(grad: Tensor, gap: Gap, row: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    grads = _GapGradients.empty(gap)
    for tile in _tiles(gap.z0):
        slope = grad[:, tile.dims]
        if row is not None:
            slope = slope.index_select(0, row[tile.samples])
        grads.write(slope, gap, tile)
    return grads


def products(z0: Tensor, z1: Tensor, table: Table) -> tuple[Tensor, Tensor, Tensor]:
    masks = _Masks(table)
    outs = [masks.new_pooled(z0) for _ in range(3)]
    for tile in _tiles(z0):
        x0, x1 = _take(z0, tile), _take(z1, tile)
        for out, (x, y) in zip(outs, ((x0, x1), (x0, x0), (x1, x1)), strict=True):
            masks.pool(out, x * y, tile)
    dot, norm0, norm1 = (masks.finish(out) for out in outs)
    return dot, norm0, norm1


def products_backward(
    grads: tuple[Tensor, Tensor, Tensor], z0: Tensor, z1: Tensor, table: Table
) -> tuple[Tensor, Tensor, Tensor]:
    masks = _Masks(table)
    g_z0, g_z1, g_squared = _empty(z0), _empty(z1), masks.new_gradient()
    g_dot, g_norm0, g_norm1 = (masks.as_pooled(g) for g in grads)
    for tile in _tiles(z0):
        x0, x1 = _take(z0, tile), _take(z1, tile)
        slope = masks.slope(g_dot, tile)
        for g_z, g_norm, x, other in ((g_z0, g_norm0, x0, x1), (g_z1, g_norm1, x1, x0)):
            through_norm = masks.slope(g_norm, tile).mul_(x).mul_(2)
            _store(g_z, torch.addcmul(through_norm, slope, other, out=_room(g_z, tile, x.dtype)), tile)
        for grad, (x, y) in ((g_dot, (x0, x1)), (g_norm0, (x0, x0)), (g_norm1, (x1, x1))):
            masks.pull(g_squared, grad, x * y, tile)
    return g_z0, g_z1, masks.gradient(g_squared)


class _Masks:
    """The table as a tile meets it: all R rows in one product, or for each sample its own.

    Pooled quantities are held as (N, R), or (N, 1) with one row a sample. Products with nine or more columns
    want a multiple of eight of them: a third of the time of the same product with fifteen.
    """

    def __init__(self, table: Table) -> None:
        self.masks, self.row = table
        self.count, squared = len(table.masks), table.squared
        missing = -self.count % 8 if self.count > 8 and self.row is None else 0
        self.squared = F.pad(squared, (0, 0, 0, missing)) if missing else squared

    def new_pooled(self, z: Tensor) -> Tensor:
        return self.squared.new_zeros(len(z), len(self.squared) if self.row is None else 1)

    def new_gradient(self) -> Tensor:
        return self.squared.new_zeros(self.squared.shape)

    def as_pooled(self, grad: Tensor) -> Tensor:
        return F.pad(grad, (0, len(self.squared) - self.count)) if self.row is None else grad[:, None]

    def finish(self, pooled: Tensor) -> Tensor:
        return pooled[:, : self.count].contiguous() if self.row is None else pooled[:, 0]

    def pool(self, out: Tensor, x: Tensor, tile: _Tile) -> None:
        """Add what the masks let through of a tile."""
        if self.row is None:
            out[tile.samples].addmm_(x, self.squared[:, tile.dims].T)
        else:
            out[tile.samples] += self._own(tile).mul_(x).sum(1, keepdim=True)

    def slope(self, grad: Tensor, tile: _Tile) -> Tensor:
        """``sum_r grad_ir squared_rd``: what a unit of ``x_id`` costs."""
        if self.row is None:
            return grad[tile.samples] @ self.squared[:, tile.dims]
        return self._own(tile).mul_(grad[tile.samples])

    def pull(self, g_squared: Tensor, grad: Tensor, x: Tensor, tile: _Tile) -> None:
        """Add a tile's part of the squared masks' gradient. May overwrite ``x``."""
        if self.row is None:
            g_squared[:, tile.dims].addmm_(grad[tile.samples].T, x)
        else:
            _add_by_row(g_squared, x.mul_(grad[tile.samples]), self.row, tile)

    def gradient(self, g_squared: Tensor) -> Tensor:
        """Of the masks themselves."""
        return g_squared[: self.count].mul_(self.masks).mul_(2)

    def _own(self, tile: _Tile) -> Tensor:
        assert self.row is not None
        return self.squared[:, tile.dims].index_select(0, self.row[tile.samples])


def _add_by_row(out: Tensor, x: Tensor, row: Tensor, tile: _Tile) -> None:
    out[:, tile.dims].index_add_(0, row[tile.samples], x)


def _tiles(z: Tensor) -> Iterator[_Tile]:
    num_samples, dim = z.shape
    elements = _TILE.get(z.device.type, _TILE["cuda"])
    width = min(dim, elements)
    height = elements // width
    for top in range(0, num_samples, height):
        for left in range(0, dim, width):
            yield _Tile(slice(top, min(top + height, num_samples)), slice(left, min(left + width, dim)))


def _take(z: Tensor, tile: _Tile) -> Tensor:
    """A tile of z, in the dtype that sums run in."""
    return z[tile.samples, tile.dims].to(wide(z.dtype))


def _room(out: Tensor, tile: _Tile, dtype: torch.dtype) -> Tensor:
    """Where to compute a tile of ``out``: right there if it is of this dtype, else apart."""
    block = out[tile.samples, tile.dims]
    return block if out.dtype == dtype else torch.empty_like(block, dtype=dtype)


def _store(out: Tensor, value: Tensor, tile: _Tile) -> None:
    """Bring a tile home that had no room there."""
    if value.dtype != out.dtype:
        out[tile.samples, tile.dims] = value


def _values(gap: Gap, tile: _Tile) -> Tensor:
    """The gap in a tile."""
    square = F.mse_loss(_take(gap.z0, tile), _take(gap.z1, tile), reduction="none")  # one pass over memory, not two
    if gap.log_variance is None or gap.scale is None:
        return square
    certainty = _certainty(_take(gap.log_variance, tile))
    return square.mul_(certainty).mul_(certainty).mul_(gap.scale[:, tile.dims])


def _certainty(log_variance: Tensor) -> Tensor:
    """One over the deviation, to multiply by twice: nothing over a tiny variance stays nothing."""
    return log_variance.mul(-0.5).clamp_max_(largest_exponent(log_variance.dtype)).exp_()


class _GapGradients(NamedTuple):
    z0: Tensor
    z1: Tensor
    log_variance: Tensor | None

    @classmethod
    def empty(cls, gap: Gap) -> Self:
        return cls(_empty(gap.z0), _empty(gap.z1), None if gap.log_variance is None else _empty(gap.log_variance))

    def write(self, slope: Tensor, gap: Gap, tile: _Tile) -> None:
        """The gradients in a tile, given that of the gap there: for each sample, or one for all."""
        x0, x1 = _take(gap.z0, tile), _take(gap.z1, tile)
        certainty = None
        if gap.log_variance is not None and gap.scale is not None and self.log_variance is not None:
            certainty = _certainty(_take(gap.log_variance, tile))
            slope = slope * gap.scale[:, tile.dims]
            doubt = F.mse_loss(x0, x1, reduction="none").mul_(certainty).mul_(certainty).neg_()
            room = _room(self.log_variance, tile, doubt.dtype)
            _store(self.log_variance, torch.mul(slope, doubt, out=room), tile)
            slope = slope * certainty
        g0, g1 = _room(self.z0, tile, x0.dtype), _room(self.z1, tile, x0.dtype)
        torch.ops.aten.mse_loss_backward(slope.expand_as(x0), x0, x1, 0, grad_input=g0)
        if certainty is not None:
            g0.mul_(certainty)
        _store(self.z0, g0, tile)
        _store(self.z1, torch.neg(g0, out=g1), tile)


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)
