"""Anchors and candidates packed under one mask, so that cosines are plain products."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from mast_ops._precision import is_half
from mast_ops.kernels.contract import LENGTH, ContrastGradients, unit_of
from mast_ops.kernels.eager.contrast import EPS

_SPARSE = 0.75  # a mask with a smaller share of non-zero dimensions is packed without the others


class Side(NamedTuple):
    """Embeddings as one mask sees them: of unit length, (n, d), with what it takes to go back."""

    unit: Tensor
    inverse_norm: Tensor
    tiny: Tensor  # rows whose norm is below EPS: they are scaled, not normalised
    mask: Tensor
    dims: Tensor | None  # those kept; None: all D
    raw: Tensor  # the embeddings, (n, D)

    @classmethod
    def pack(cls, raw: Tensor, poison: Tensor, mask: Tensor) -> Self:
        kept = mask != 0
        dims = kept.nonzero()[:, 0] if kept.sum() < _SPARSE * len(mask) else None
        if dims is not None:
            dims = dims if len(dims) else dims.new_zeros(1)  # to carry a NaN
            mask = mask[dims]
        unit = cls._select(raw, dims) * mask
        norm = unit.square().sum(1).sqrt_().add_(poison)
        inverse_norm = norm.clamp_min(EPS).reciprocal()
        return cls(unit.mul_(inverse_norm[:, None]), inverse_norm, norm < EPS, mask, dims, raw)

    def only(self, samples: Tensor) -> Self:
        return self._replace(
            unit=self.unit[samples],
            inverse_norm=self.inverse_norm[samples],
            tiny=self.tiny[samples],
            raw=self.raw[samples],
        )

    def unpack(self, gradient: Tensor, scale: float, g_raw: Tensor, g_mask: Tensor) -> Tensor:
        """Add what ``scale`` times a gradient of ``unit`` means for the embeddings and the mask. Overwrites it.

        Returns the sum of ``unit`` times the gradient.
        """
        along = (self.unit * gradient).sum(1)
        total = along.sum()
        if self.dims is not None and not total.isfinite():
            g_raw += 0 * along[:, None]  # what no mask keeps must not look finite either
            g_mask += 0 * total
        along.masked_fill_(self.tiny, 0)
        gradient.addcmul_(self.unit, along[:, None], value=-1).mul_((self.inverse_norm * scale)[:, None])
        g_own_mask = (gradient * self._select(self.raw, self.dims)).sum(0)
        if self.dims is None:
            g_mask += g_own_mask
            g_raw.addcmul_(gradient, self.mask)
        else:
            g_mask.index_add_(0, self.dims, g_own_mask)
            g_raw.index_add_(1, self.dims, gradient.mul_(self.mask))
        return total

    @staticmethod
    def _select(raw: Tensor, dims: Tensor | None) -> Tensor:
        return raw if dims is None else raw.index_select(1, dims)


class Units:
    """Products of two packed sides; only the upper half of them where the sides are one."""

    kept = True

    def __init__(self, r: int, samples: Tensor | None, sides: tuple[Side, Side]) -> None:
        self.r, self.samples, self.sides = r, samples, sides
        self.symmetric = sides[0] is sides[1]
        self._grads: tuple[Tensor, Tensor] | None = None

    @property
    def like(self) -> Tensor:
        return self.sides[0].unit

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.sides[0].unit), len(self.sides[1].unit)

    def write(self, tile: Tensor, rows: slice, first: int, scale: float, offset: float = 0.0) -> None:
        anchors, candidates = (side.unit for side in self.sides)
        if offset:
            tile.fill_(offset)
        tile.addmm_(anchors[rows], candidates[first:].T, beta=1 if offset else 0, alpha=scale)

    def add(self, weight: Tensor, rows: slice, first: int) -> None:
        anchors, candidates = (side.unit for side in self.sides)
        if self._grads is None:
            g_candidates = torch.zeros_like(candidates)
            self._grads = g_candidates if self.symmetric else torch.empty_like(anchors), g_candidates
        g_anchors, g_candidates = self._grads
        g_anchors[rows].addmm_(weight, candidates[first:], beta=1 if self.symmetric else 0)
        past = rows.stop if self.symmetric else 0
        g_candidates[past:].addmm_(weight[:, past - first :].T, anchors[rows])

    def finish(self, scale: float, total: ContrastGradients) -> None:
        if self._grads is None:
            return
        (anchors, candidates), (g_anchors, g_candidates) = self.sides, self._grads
        self._grads = None  # nobody reads them again, and the next row of the masks is packed while this one is held
        g_raw, g_mask = total.z0 if total.z1 is None else total.z1, total.masks[self.r]
        along = candidates.unpack(g_candidates, scale, g_raw, g_mask)
        if self.symmetric:
            along = along / 2  # each pair stands there twice
        elif self.samples is None:
            anchors.unpack(g_anchors, scale, total.z0, g_mask)
        else:
            own = torch.zeros_like(anchors.raw)
            anchors.unpack(g_anchors, scale, own, g_mask)
            total.z0.index_add_(0, self.samples, own)
        total.inverse_temperature.add_(along)


class HalfUnits(Units):
    """Products in float16 with sums in float32, on tensor cores.

    Cosines are those of rows rounded to float16, and their weights are rounded likewise, as in the Triton kernels.
    """

    def __init__(self, r: int, samples: Tensor | None, sides: tuple[Side, Side]) -> None:
        super().__init__(r, samples, sides)
        candidates = _packed(sides[1])
        self.packed = candidates if self.symmetric else _packed(sides[0]), candidates

    def write(self, tile: Tensor, rows: slice, first: int, scale: float, offset: float = 0.0) -> None:
        anchors, candidates = self.packed
        multiply(anchors[rows], candidates[first:].T, tile).mul_(scale / LENGTH**2)
        if offset:
            tile.add_(offset)

    def add(self, weight: Tensor, rows: slice, first: int) -> None:
        anchors, candidates = self.packed
        if self._grads is None:
            new = torch.zeros_like(self.sides[1].unit)
            self._grads = new if self.symmetric else torch.zeros_like(self.sides[0].unit), new
        g_anchors, g_candidates = self._grads
        size = unit_of(torch.linalg.vector_norm(weight, float("inf")))
        half = weight.div_(size).half()
        past = rows.stop if self.symmetric else 0
        of_anchors = g_anchors[rows], half, candidates[first:]
        of_candidates = g_candidates[past:], half[:, past - first :].T, anchors[rows]
        for total, left, right in (of_anchors, of_candidates):
            total.addcmul_(multiply(left, right, torch.empty_like(total)), size / LENGTH)


def _packed(side: Side) -> Tensor:
    return (side.unit * LENGTH).half()


def multiply(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Of float16 in float32, which torch has on NVIDIA's GPUs alone."""
    return torch.mm(left, right, out_dtype=torch.float32, out=out)


def units_of(z: Tensor) -> type[Units]:
    """How embeddings like ``z`` are multiplied: as what they are on CUDA, where float32 takes ten times as long."""
    on_nvidia = z.is_cuda and torch.version.hip is None
    return HalfUnits if on_nvidia and is_half(z.dtype) else Units
