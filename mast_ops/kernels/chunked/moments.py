"""Second moments over the batch, a block of columns of the D x D matrix at a time; half of it where it is symmetric."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mast_ops.kernels.contract import Reduce

_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 24}  # entries of the matrix in a block
_WIDEST = 512  # of the columns in a block: with all of them there would be no lower half to leave out


def off_diagonal(x: Tensor, y: Tensor | None, squared: Tensor, reduce: Reduce | None) -> Tensor:
    value = squared.new_zeros(len(squared))
    for rows, cols, block in _blocks(x, y, reduce):
        energy, twice = block.square_(), cols.start if y is None else 0
        pooled = torch.addmm(
            squared[:, twice : rows.stop] @ energy[twice:], squared[:, :twice], energy[:twice], alpha=2
        )
        value += (pooled * squared[:, cols]).sum(1)
    return value


def off_diagonal_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, squared: Tensor, reduce: Reduce | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of x, y and squared. Over ranks, those of the sum of all ranks' values: each of them depends on the
    own x and y, and on a copy of squared that is the other rank's."""
    other = x if y is None else y
    g_x, g_squared = x.new_zeros(x.shape), squared.new_zeros(squared.shape)
    g_other = g_x if y is None else y.new_zeros(y.shape)
    weighted = squared * grad[:, None]
    everyone = weighted if reduce is None else squared * reduce(grad.clone())[:, None]
    for rows, cols, block in _blocks(x, y, reduce):
        mirrored = slice(0, cols.start if y is None else rows.stop)
        energy = block.square()
        g_squared[:, cols] += weighted[:, rows] @ energy
        g_squared[:, mirrored] += weighted[:, cols] @ energy[mirrored].T
        slope = (everyone[:, rows].T @ squared[:, cols]).mul_(block).mul_(2 if y is not None else 4)
        g_other[:, cols].addmm_(x[:, rows], slope)
        g_x[:, mirrored].addmm_(other[:, cols], slope[mirrored].T)
    return g_x, None if y is None else g_other, g_squared.mul_(2) if y is None else g_squared


def _blocks(x: Tensor, y: Tensor | None, reduce: Reduce | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, cols, ``x^T y`` there without its diagonal): all rows, or those down to the diagonal's block.

    Where y is x, the rows above the diagonal's block stand for their mirror image too.
    """
    dim = x.shape[1]
    width = min(max(_BLOCK.get(x.device.type, _BLOCK["cuda"]) // dim, 64), _WIDEST)
    for start in range(0, dim, width):
        cols = slice(start, min(start + width, dim))
        rows = slice(0, cols.stop if y is None else dim)
        block = x[:, rows].T @ (x if y is None else y)[:, cols]
        if reduce is not None:
            block = reduce(block)
        block.diagonal(-start).mul_(0)  # not overwritten: a NaN must stay one
        yield rows, cols, block
