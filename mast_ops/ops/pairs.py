"""Positive pairs: masked squared distances, their sums over samples, and masked products."""

from typing import Any, cast

from torch import Tensor

from mast_ops._precision import wide
from mast_ops.kernels.contract import Gap, PairsFormulas, Table
from mast_ops.kernels.eager import pairs as eager
from mast_ops.ops._library import with_gradient
from mast_ops.ops.backend import Backend, pairs_kernels, plain, resolve

_formulas: PairsFormulas = eager
_GAP = "Tensor z0, Tensor z1, Tensor? log_variance, Tensor? scale"
_TABLE = "Tensor masks, Tensor? row"


def distance(gap: Gap, table: Table, backend: Backend = "auto") -> Tensor:
    """Masked squared distance of every pair, see :meth:`mast_ops.kernels.contract.PairsFormulas.distance`."""
    resolved = resolve(backend, "pairs", gap.z0, gap.z0.numel())
    if resolved in ("eager", "compile"):
        return plain(resolved, _formulas.distance)(gap, table)
    return cast(Tensor, _distance(*gap, *table, resolved))


def gap_sums(gap: Gap, num_rows: int, row: Tensor | None = None, backend: Backend = "auto") -> Tensor:
    """Sums of gaps over samples, see :meth:`mast_ops.kernels.contract.PairsFormulas.gap_sums`."""
    resolved = resolve(backend, "pairs", gap.z0, gap.z0.numel())
    if resolved in ("eager", "compile"):
        return plain(resolved, _formulas.gap_sums)(gap, num_rows, row)
    return cast(Tensor, _gap_sums(*gap, row, num_rows, resolved))


def products(z0: Tensor, z1: Tensor, table: Table, backend: Backend = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """Masked dot products and squared norms, see :meth:`mast_ops.kernels.contract.PairsFormulas.products`."""
    resolved = resolve(backend, "pairs", z0, z0.numel())
    if resolved in ("eager", "compile"):
        return plain(resolved, _formulas.products)(z0, z1, table)
    return cast(tuple[Tensor, Tensor, Tensor], _products(z0, z1, *table, resolved))


def _pooled(z: Tensor, table: Table) -> Tensor:
    n, num_rows = z.shape[0], table.masks.shape[0]  # len() would fix them while torch.compile traces
    return table.masks.new_empty((n, num_rows) if table.row is None else (n,))


def _fake_gap_sums(*flat: Any) -> Tensor:
    z0, row, num_rows = flat[0], flat[4], flat[5]
    return cast(Tensor, z0.new_empty(1 if row is None else num_rows, z0.shape[1], dtype=wide(z0.dtype)))


_distance = with_gradient(
    "distance",
    f"{_GAP}, {_TABLE}, str backend",
    lambda *flat: pairs_kernels(flat[6]).distance(Gap(*flat[:4]), Table(*flat[4:6])),
    lambda *flat: _pooled(flat[0], Table(*flat[4:6])),
    lambda grad, *flat: pairs_kernels(flat[6]).distance_backward(grad, Gap(*flat[:4]), Table(*flat[4:6])),
    learned=("z0", "z1", "masks", "log_variance"),
)
_gap_sums = with_gradient(
    "gap_sums",
    f"{_GAP}, Tensor? row, int num_rows, str backend",
    lambda *flat: pairs_kernels(flat[6]).gap_sums(Gap(*flat[:4]), flat[5], flat[4]),
    _fake_gap_sums,
    lambda grad, *flat: pairs_kernels(flat[6]).gap_sums_backward(grad, Gap(*flat[:4]), flat[4]),
    learned=("z0", "z1", "log_variance"),
)
_products = with_gradient(
    "products",
    f"Tensor z0, Tensor z1, {_TABLE}, str backend",
    lambda *flat: pairs_kernels(flat[4]).products(flat[0], flat[1], Table(*flat[2:4])),
    lambda *flat: tuple(_pooled(flat[0], Table(*flat[2:4])) for _ in range(3)),
    lambda *flat: pairs_kernels(flat[7]).products_backward(flat[:3], flat[3], flat[4], Table(*flat[5:7])),
    learned=("z0", "z1", "masks"),
    outputs=3,
)
