"""What forward and backward of all pairs share: sorted rows, intervals of positives, and rows packed for a launch."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mast_ops._precision import is_half
from mast_ops.kernels.contract import Contrast
from mast_ops.kernels.triton import _launch, packing_kernels
from mast_ops.kernels.triton import contrast_kernels as kernels
from mast_ops.kernels.triton._launch import TILE, WIDE, Launch, depth, launch, readable


@dataclass
class Side:
    """Anchors or candidates: rows of z in sorted order, those of mask r at ``bounds[r]``, and room to pack them."""

    z: Tensor
    order: Tensor
    sample: Tensor
    bounds: Tensor
    packed: Tensor  # (masks of a launch, rows, width)
    inverse_norm: Tensor

    @property
    def padded(self) -> int:
        return self.packed.shape[1]


class Plan:
    """Sorted rows, intervals of positives, kept dimensions of every mask."""

    def __init__(self, problem: Contrast, bias: Tensor | None = None) -> None:
        self.problem, self.bias = problem, bias
        self.masks, self.device = problem.masks.contiguous(), problem.z0.device
        self.r, self.d = self.masks.shape
        keeps = self.masks != 0
        self.kept = (~keeps).int().argsort(dim=1, stable=True).int()
        self.count = keeps.sum(1, dtype=torch.int32)
        self.slot = (keeps.cumsum(1, dtype=torch.int32) - 1).clamp_min(0)  # where a kept dimension is packed
        (z0,) = readable(problem.z0)
        self.dtype = z0.dtype
        self.depth = depth(self.dtype, self.d)
        self.is_wide = problem.row is None and self.d > WIDE
        self.fixed = problem.inverse_temperature.abs() <= kernels.RANGE.value
        # Packed rows have one length: float16 holds them with three bits more than bfloat16.
        self.unit_dtype = torch.float16 if is_half(problem.z0.dtype) else torch.float32
        self.group = self._masks_of_a_launch()
        self.packed: slice | None = None  # those whose rows are packed now

        self.anchors = self._side(z0, problem.sample0, problem.row)
        if problem.symmetric:
            self.candidates = self.anchors
        elif problem.z1 is None or problem.sample1 is None:
            self.candidates = self._side(z0, problem.sample0, None)
        else:
            (z1,) = readable(problem.z1)
            self.candidates = self._side(z1, problem.sample1, None)
        self.low, self.high = _interval(self.anchors.sample, self.candidates.sample)
        itself = problem.z1 is None
        self.itself = self.candidates.order.argsort()[self.anchors.order].int() if itself else None

    def _masks_of_a_launch(self) -> int:
        """All of them where they fit: a launch costs more time than the work of a small problem."""
        sides = [_padded(self.problem.z0), _padded(self.problem.candidates)]
        packed = (sides[0] if self.problem.symmetric else sum(sides)) * self.unit_dtype.itemsize
        each = self.depth.width * (packed + 4 * max(sides))
        return max(1, min(self.r, _launch.ROOM // each))

    def _side(self, z: Tensor, sample: Tensor, row: Tensor | None) -> Side:
        order = sample.argsort(stable=True)
        if row is None:
            # Made on the device: a copy from the host would wait for it.
            bounds = (torch.arange(2, device=self.device, dtype=torch.int32) * len(z)).repeat(self.r, 1)
        else:
            order = order[row[order].argsort(stable=True)]
            edges = torch.arange(self.r + 1, device=self.device)
            starts = torch.searchsorted(row[order], edges, out_int32=True)
            bounds = torch.stack([starts[:-1], starts[1:]], 1)
        packed = z.new_empty(self.group, _padded(z), self.depth.width, dtype=self.unit_dtype)
        return Side(z, order, sample[order], bounds, packed, self.empty(*packed.shape[:2]))

    def launch(self, kernel: str) -> Launch:
        return launch(kernel + ("_whole" if self.depth.is_whole else ""), self.dtype)

    def groups(self) -> list[slice]:
        """The masks of each launch, back from those that are packed already where these are the last."""
        groups = [slice(start, min(start + self.group, self.r)) for start in range(0, self.r, self.group)]
        return groups[::-1] if self.packed == groups[-1] else groups

    def row_tiles(self, side: Side, rows: int) -> int:
        """Of one launch, those that hold a row."""
        tiles: int = triton.cdiv(len(side.order), rows)
        own = self.problem.row is not None and side is self.anchors
        return tiles + self.group if own else tiles * self.group

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def positives(self, side: int) -> Tensor:
        """How many positives each anchor has, or each candidate, as they are sorted."""
        if side:
            low, high = _interval(self.candidates.sample, self.anchors.sample)
            return high - low
        return self.high - self.low - int(self.itself is not None)

    def pack(self, masks: slice) -> None:
        if masks == self.packed:
            return
        self.packed = masks
        tile = launch("pack", self.dtype)
        for side in [self.anchors] if self.problem.symmetric else [self.anchors, self.candidates]:
            packing_kernels.pack[triton.cdiv(side.padded, tile.rows), masks.stop - masks.start](
                side.z, side.order, side.bounds[masks], self.masks[masks], self.kept[masks], self.count[masks],
                side.packed, side.inverse_norm, *side.z.stride(), self.d, self.depth.width, side.padded,
                TILE, self.depth.step, tile.rows, min(tile.columns, self.depth.step),
                self.depth.is_whole or self.is_wide, **tile.options,
            )  # fmt: skip


def _padded(z: Tensor) -> int:
    return -(-len(z) // TILE) * TILE


def _interval(sample: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Where each sample id stands ``among`` sorted ones: from, to."""
    low = torch.searchsorted(among, sample, out_int32=True)
    return low, torch.searchsorted(among, sample, right=True, out_int32=True)
