"""The views of a batch: an augmentation handles each sample of each view once, redraws apart.

An augmentation draws for all the rows that it is given, so that a draw is made again for the same rows alone. It is
therefore called on two groups of them: on those whose views differ already and share this draw, once for each view
under one seed; and on all the others, where the first view stands for the rest until they differ.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mast_ops.views._draws import drawn
from mast_ops.views._images import check_rows
from mast_ops.views._redraws import redraw_rows
from mast_ops.views._steps import Step, of_local_views
from mast_ops.views._trials import Trials


def views_of_batch(x: Tensor, steps: Sequence[Step[Tensor]], trials: Trials) -> list[Tensor]:
    """As many as a step asks for; x is left as it was."""
    num_global = steps[0].num_global
    views = _Views([x] * steps[0].num_views, torch.zeros(len(x), dtype=torch.bool, device="cpu"))
    for step in steps:
        trials.use(step.name, step.call, views.tensors[0])
        before, views = views, _stepped(step, views)
        rows = step.is_last.nonzero()[:, 0]
        num_alike = int((~before.apart[rows]).sum())
        trials.count(step.name, len(rows), redraw_rows(step, before.rows, views.tensors[:num_global], rows, num_alike))
        if step.local_call is not None and len(views.tensors) > num_global:
            views = _drawn_locally(of_local_views(step), before, views, trials)
    return views.tensors


class _Views(NamedTuple):
    tensors: list[Tensor]
    """Each of shape (N, ...), global ones first. Only redraws write to them, before anything else reads them."""
    apart: Tensor
    """(N,) bool, the rows whose views differ; of the others only the first view is there. On the CPU, as all rows here:
    choosing some never waits for a device."""

    def rows(self, view: int, rows: Tensor) -> Tensor:
        """A copy of these rows of one view."""
        apart = self.apart[rows]
        first, tensor = self.tensors[0], self.tensors[view if apart.any() else 0]
        part = tensor.clone() if len(rows) == len(tensor) else _taken(tensor, rows)
        if tensor is not first and not apart.all():
            places = (~apart).nonzero()[:, 0]
            part[places.to(part.device)] = _taken(first, rows[places])
        return part


def _stepped(step: Step[Tensor], views: _Views) -> _Views:
    shared, once, *own = step.seeds
    again = views.apart & ~step.differs
    num = len(views.tensors) if step.local_call is None else step.num_global
    made: list[Tensor | None] = [None] * num

    def make(view: int, which: Tensor, seed: int) -> None:
        if which.any():
            rows = which.nonzero()[:, 0]
            part = drawn(step.name, step.call, views.rows(view, rows), seed)
            like = made[0] if view < step.num_global else made[view]  # local views may be of another size
            check_rows(step.name, part, len(rows), like=like)
            made[view] = _put(part, rows, made[view], len(which))

    for view in range(num):
        make(view, again, shared)
    make(0, ~again, once)
    for view in range(1, num):
        make(view, step.differs, own[view - 1])
    first, *others = made
    assert first is not None
    tensors = [first, *(first if view is None else view for view in others)]
    return _Views(tensors + views.tensors[num:], views.apart | step.differs)


def _drawn_locally(step: Step[Tensor], before: _Views, views: _Views, trials: Trials) -> _Views:
    """With the local views, which differ from all others after it, drawn of what was before."""
    rows = torch.arange(len(views.apart), device="cpu")
    tensors = views.tensors[: step.num_global]
    trials.use(step.name, step.call, before.tensors[0])
    for view in range(step.num_global, step.num_views):
        part = drawn(step.name, step.call, before.rows(view, rows), step.seeds[1 + view])
        check_rows(step.name, part, len(rows))
        tensors.append(part.clone())
    for view in range(1, step.num_global):  # where global views are alike yet, only the first is there
        tensors[view] = views.rows(view, rows)
    return _Views(tensors, torch.ones_like(views.apart))


def _taken(tensor: Tensor, rows: Tensor) -> Tensor:
    """These rows, in the tensor's layout."""
    rows = rows.to(tensor.device)
    return tensor.index_select(0, rows) if tensor.is_contiguous() else tensor[rows]  # the first takes half the time


def _put(part: Tensor, rows: Tensor, whole: Tensor | None, num_rows: int) -> Tensor:
    """Into the whole, which is made where there is none. Always a copy: a callable may hand out one buffer twice."""
    if len(rows) == num_rows:
        return part.clone()
    if whole is None:
        channels_last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last and not part.is_contiguous() else torch.contiguous_format
        whole = torch.empty((num_rows, *part.shape[1:]), dtype=part.dtype, device=part.device, memory_format=layout)
    whole[rows.to(part.device)] = part
    return whole
