"""All pairs over ranks: candidates go round a ring, and each rank meets them a block at a time.

A rank holds its own samples, the block that visits and the one that arrives: memory does not grow with the number
of ranks. Any backend's kernels do the work, since a block of strangers is a batch without positives: its logsumexps
add up to the whole row's, and the gradient kernels take the whole row's.

With the anchors themselves as candidates (NT-Xent) scores are symmetric. A pair of ranks then meets once, on one of
the two, and the other is told; only with an even number of ranks those who sit opposite each do their own half.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mast_ops.ops.collectives import batch_sizes

_STRANGER = -1  # a sample id that no anchor has


class _Step(NamedTuple):
    distance: int  # the block that visits is that of the rank so many places further
    columns: bool  # whether the candidates' own losses count in it


def forward(
    kernels: ModuleType,
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None,
    subspace: Tensor | None,
    columns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of this rank's anchors against all ranks' candidates (and of its candidates), and their logsumexps."""
    own = kernels.forward(z0, z1, masks, inverse_temperature, sample0, sample1, subspace, columns)
    rows, other, row_lse, column_lse = own
    ring = _Ring(z0 if z1 is None else z1, masks)
    mirrored = z1 is None and subspace is None
    abroad: Tensor | None = None  # the logsumexps that a block has gathered away from home
    distance = 0
    for step, block in ring.blocks(mirrored, columns):
        strangers = sample0.new_full((len(block),), _STRANGER)
        _, _, lse, met = kernels.forward(
            z0, block, masks, inverse_temperature, sample0, strangers, subspace, step.columns
        )
        row_lse = torch.logaddexp(row_lse, lse)
        if step.columns:
            abroad = met if abroad is None else torch.logaddexp(ring.shift(abroad, distance, step.distance), met)
            distance = step.distance
    if abroad is not None:
        abroad = ring.shift(abroad, distance, 0)
        if mirrored:
            row_lse = torch.logaddexp(row_lse, abroad)
        else:
            column_lse = torch.logaddexp(column_lse, abroad)
    # The positives are at home: what strangers add to the logsumexp they add to the loss.
    return rows + (row_lse - own[2]), other + (column_lse - own[3]), row_lse, column_lse


def backward(
    kernels: ModuleType,
    g_rows: Tensor,
    g_columns: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    z0: Tensor,
    z1: Tensor | None,
    masks: Tensor,
    inverse_temperature: Tensor,
    sample0: Tensor,
    sample1: Tensor | None,
    subspace: Tensor | None,
    columns: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of the sum over all ranks' losses, by this rank's z0 and z1, and by its copy of the masks and of the
    inverse temperature."""
    fixed = masks, inverse_temperature, sample0
    g_z0, g_z1, g_masks, g_inverse = kernels.backward(
        g_rows, g_columns, row_lse, column_lse, z0, z1, *fixed, sample1, subspace, columns
    )
    ring = _Ring(z0 if z1 is None else z1, masks)
    mirrored = z1 is None and subspace is None
    home = (g_rows, row_lse) if mirrored else (g_columns, column_lse)
    none = g_columns.new_empty(0, *g_columns.shape[1:])
    abroad: Tensor | None = None  # the gradient that a block has gathered away from home
    distance = 0
    for step, block in ring.blocks(mirrored, columns):
        g_others, others_lse = (ring.shift(x, 0, step.distance) for x in home) if step.columns else (none, none)
        strangers = sample0.new_full((len(block),), _STRANGER)
        g_anchors, met, *g_shared = kernels.backward(
            g_rows, g_others, row_lse, others_lse, z0, block, *fixed, strangers, subspace, step.columns
        )
        g_z0, g_masks, g_inverse = g_z0 + g_anchors, g_masks + g_shared[0], g_inverse + g_shared[1]
        abroad = met if abroad is None else ring.shift(abroad, distance, step.distance).add_(met)
        distance = step.distance
    if abroad is None:
        return g_z0, g_z1, g_masks, g_inverse
    abroad = ring.shift(abroad, distance, 0)
    if g_z1 is None:
        return g_z0 + abroad, None, g_masks, g_inverse
    return g_z0, g_z1 + abroad, g_masks, g_inverse


class _Ring:
    """The ranks in a circle, and this rank's candidates on it."""

    def __init__(self, candidates: Tensor, masks: Tensor) -> None:
        self.candidates = candidates.detach()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.rows = batch_sizes(candidates, masks)

    def blocks(self, mirrored: bool, columns: bool) -> Iterator[tuple[_Step, Tensor]]:
        """Every step and the candidates that visit in it; the next ones are under way meanwhile."""
        steps = self._steps(mirrored, columns)
        block, distance = self.candidates, 0
        arriving = self._send(block, distance, steps[0].distance) if steps else None
        for i, step in enumerate(steps):
            assert arriving is not None
            block, distance = arriving.wait(), step.distance
            if i + 1 < len(steps):
                arriving = self._send(block, distance, steps[i + 1].distance)
            yield step, block

    def shift(self, x: Tensor, here: int, there: int) -> Tensor:
        """Rows of the rank ``there`` places further, in exchange for ``x``: those of the one ``here`` places."""
        return self._send(x, here, there).wait()

    def _steps(self, mirrored: bool, columns: bool) -> list[_Step]:
        if not mirrored:
            return [_Step(distance, columns) for distance in range(1, self.size)]
        once = [_Step(distance, True) for distance in range(1, (self.size + 1) // 2)]
        return once if self.size % 2 else [*once, _Step(self.size // 2, False)]

    def _send(self, x: Tensor, here: int, there: int) -> "_Arrival":
        towards = (self.rank + here - there) % self.size
        origin = (self.rank + there) % self.size
        source = (self.rank + there - here) % self.size
        out, room = x.contiguous(), x.new_empty(self.rows[origin], *x.shape[1:])
        exchange = [dist.P2POp(dist.isend, out, towards), dist.P2POp(dist.irecv, room, source)]
        return _Arrival(dist.batch_isend_irecv(exchange), out, room)


class _Arrival(NamedTuple):
    works: "list[dist.Work]"  # quoted: some builds of PyTorch have no torch.distributed
    sent: Tensor  # alive until it is on its way
    room: Tensor

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.room
