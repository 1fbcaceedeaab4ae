"""All pairs over ranks: candidates go round a ring, and each rank meets them a block at a time.

A rank holds its own samples, the block that visits and the one that arrives: memory does not grow with the number
of ranks. Any backend's kernels do the work, since a block of strangers is a batch without positives: its logsumexps
add up to the whole row's, and the gradient kernels take the whole row's.

With the anchors themselves as candidates (NT-Xent) scores are symmetric. A pair of ranks then meets once, on one of
the two, and the other is told; only with an even number of ranks those who sit opposite each do their own half.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mast_ops.kernels.contract import Both, Contrast, Contrasted, ContrastGradients, ContrastKernels, SigmoidKernels
from mast_ops.ops.collectives import batch_sizes

_STRANGER = -1  # a sample id that no anchor has


class _Step(NamedTuple):
    distance: int  # the block that visits is that of the rank so many places further
    both_ways: bool  # whether the candidates' own losses count in it


def forward(kernels: ContrastKernels, problem: Contrast) -> Contrasted:
    """Losses of this rank's anchors against all ranks' candidates (and of its candidates), and their logsumexps."""
    losses, own = kernels.forward(problem)
    lse0, lse1 = own
    ring = _Ring(problem)
    abroad: Tensor | None = None  # the logsumexps that a block has gathered away from home
    distance = 0
    for step, block in ring.blocks():
        lse, met = kernels.forward(_with_strangers(problem, block, step)).lse
        lse0 = torch.logaddexp(lse0, lse)
        if step.both_ways:
            abroad = met if abroad is None else torch.logaddexp(ring.shift(abroad, distance, step.distance), met)
            distance = step.distance
    if abroad is not None:
        abroad = ring.shift(abroad, distance, 0)
        if problem.symmetric:
            lse0 = torch.logaddexp(lse0, abroad)
        else:
            lse1 = torch.logaddexp(lse1, abroad)
    # The positives are at home: what strangers add to the logsumexp they add to the loss.
    return Contrasted((losses[0] + (lse0 - own[0]), losses[1] + (lse1 - own[1])), (lse0, lse1))


def backward(kernels: ContrastKernels, problem: Contrast, grads: Both, lse: Both) -> ContrastGradients:
    """Gradients of the sum over all ranks' losses, by this rank's z0 and z1, and by its copy of the masks and of the
    inverse temperature."""
    side = 0 if problem.symmetric else 1
    none = grads[1].new_empty(0, *grads[1].shape[1:])

    def of(block: Tensor, ring: "_Ring", step: _Step) -> ContrastGradients:
        home = grads[side], lse[side]
        g_others, others_lse = (ring.shift(x, 0, step.distance) for x in home) if step.both_ways else (none, none)
        strangers = _with_strangers(problem, block, step)
        return kernels.backward(strangers, (grads[0], g_others), (lse[0], others_lse))

    return _around(problem, kernels.backward(problem, grads, lse), of)


def sigmoid(kernels: SigmoidKernels, problem: Contrast, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of this rank's anchors against all ranks' candidates, and their slopes: they add up."""
    losses, slopes = kernels.forward(problem, bias)
    ring = _Ring(problem)
    for step, block in ring.blocks():
        more, steeper = kernels.forward(_with_visitors(problem, block, ring, step), bias)
        losses, slopes = losses + more, slopes + steeper
    return losses, slopes


def sigmoid_backward(kernels: SigmoidKernels, problem: Contrast, bias: Tensor, grad: Tensor) -> ContrastGradients:
    """Gradients of the sum over all ranks' losses, as above."""

    def of(block: Tensor, ring: "_Ring", step: _Step) -> ContrastGradients:
        return kernels.backward(_with_visitors(problem, block, ring, step), bias, grad)

    return _around(problem, kernels.backward(problem, bias, grad), of)


def _around(
    problem: Contrast, own: ContrastGradients, of: "Callable[[Tensor, _Ring, _Step], ContrastGradients]"
) -> ContrastGradients:
    """``own`` gradients and those ``of`` every block that visits; what a block gathers abroad goes home with it."""
    g_z0, g_z1, g_masks, g_inverse = own
    del own  # with it the first gradients would live beside their sums
    ring = _Ring(problem)
    abroad: Tensor | None = None
    distance = 0
    for step, block in ring.blocks():
        g_anchors, met, *g_shared = of(block, ring, step)
        assert met is not None
        g_z0, g_masks, g_inverse = g_z0 + g_anchors, g_masks + g_shared[0], g_inverse + g_shared[1]
        abroad = met if abroad is None else ring.shift(abroad, distance, step.distance).add_(met)
        distance = step.distance
    if abroad is None:
        return ContrastGradients(g_z0, g_z1, g_masks, g_inverse)
    abroad = ring.shift(abroad, distance, 0)
    if g_z1 is None:
        return ContrastGradients(g_z0 + abroad, None, g_masks, g_inverse)
    return ContrastGradients(g_z0, g_z1 + abroad, g_masks, g_inverse)


def _with_visitors(problem: Contrast, block: Tensor, ring: "_Ring", step: _Step) -> Contrast:
    """Candidates from another rank, with their sample ids."""
    assert problem.sample1 is not None
    return problem._replace(z1=block, sample1=ring.shift(problem.sample1, 0, step.distance))


def _with_strangers(problem: Contrast, block: Tensor, step: _Step) -> Contrast:
    strangers = problem.sample0.new_full((len(block),), _STRANGER)
    return problem._replace(z1=block, sample1=strangers, both_ways=step.both_ways)


class _Ring:
    """The ranks in a circle, and this rank's candidates on it."""

    def __init__(self, problem: Contrast) -> None:
        self.candidates = problem.candidates.detach()
        self.symmetric, self.both_ways = problem.symmetric, problem.both_ways
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.sizes = batch_sizes(self.candidates, problem.masks)

    def blocks(self) -> Iterator[tuple[_Step, Tensor]]:
        """Every step and the candidates that visit in it; the next ones are under way meanwhile."""
        steps = self._steps()
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

    def _steps(self) -> list[_Step]:
        if not self.symmetric:
            return [_Step(distance, self.both_ways) for distance in range(1, self.size)]
        once = [_Step(distance, True) for distance in range(1, (self.size + 1) // 2)]
        return once if self.size % 2 else [*once, _Step(self.size // 2, False)]

    def _send(self, x: Tensor, here: int, there: int) -> "_Arrival":
        towards = (self.rank + here - there) % self.size
        origin = (self.rank + there) % self.size
        source = (self.rank + there - here) % self.size
        out, room = x.contiguous(), x.new_empty(self.sizes[origin], *x.shape[1:])
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
