"""Draws made anew, until the views of an image differ."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mast_ops._draws import alike, copied, draw
from mast_ops._images import check_rows
from mast_ops._steps import Step, Which

REDRAWS = 32  # what acts in a tenth of its calls then gives two equal views once in 600 times
_SHARE = 8  # a round may redraw this part of a batch,
_NUMBERS = 2**16  # or so many pixels: a call's own cost should be met by several draws of few samples, or of small ones
_MOST = 8  # of a sample in a round: what makes one draw for a whole batch needs several rounds
_STRIDE = 8  # of the pixels that are compared first: views that differ mostly do so there


def redraw_rows(
    step: Step[Tensor], start: Callable[[int, Tensor], Tensor], views: Sequence[Tensor], rows: Tensor
) -> int:
    """Draws those of these rows anew whose views are all equal, in place; how many of them stay so.

    `start(view, rows)` gives what the rows of a view were drawn of.
    """
    rows = rows[_all_equal(views, rows)]
    seeds = _more_seeds(step)
    done, num = 0, 1  # of each row
    at_once = max(len(views[0]) // _SHARE, _NUMBERS // max(1, views[0][0].numel()))
    while len(rows) > 0 and done < REDRAWS:
        num = min(_MOST, REDRAWS - done, max(2 * num, at_once // len(rows)))
        redrawn = []
        for v in range(len(views)):
            many = start(v, rows).repeat_interleave(num, 0)
            redrawn.append(draw(step.name, step.call, many, seeds.getrandbits(32)))
            check_rows(step.name, redrawn[v], num * len(rows), like=views[0])
        equal = _all_equal(redrawn, torch.arange(num * len(rows), device="cpu")).view(len(rows), num)
        found = (~equal).long().argmax(1) + num * torch.arange(len(rows), device="cpu")  # the first that differs
        for view, many in zip(views, redrawn, strict=True):
            view[rows.to(view.device)] = many[found.to(view.device)]
        rows = rows[equal.all(1)]
        done += num
    return len(rows)


def redrawn(step: Step[bool], before: Sequence[Any]) -> tuple[list[Any], bool]:
    """All views of one image drawn anew until some of them differ, and whether they do."""
    seeds = _more_seeds(step)
    for _ in range(REDRAWS):
        views = [draw(step.name, step.call, copied(start), seeds.getrandbits(32)) for start in before]
        if not all(alike(views[0], view) for view in views[1:]):
            return views, True
    return views, False


def _more_seeds(step: Step[Which]) -> random.Random:
    """Of those that a call has drawn: redraws take nothing from its generator."""
    return random.Random(int.from_bytes(b"".join(seed.to_bytes(4, "big") for seed in step.seeds), "big"))


def _all_equal(views: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Which of these rows, on the CPU: a device is waited for."""
    equal = torch.ones(len(rows), dtype=torch.bool, device="cpu")
    for pixels in (slice(None, None, _STRIDE), slice(None)):
        places = equal.nonzero()[:, 0]
        if len(places) > 0:
            some = rows[places].to(views[0].device)
            first, *others = (view[some, ..., pixels, pixels] if view.dim() == 4 else view[some] for view in views)
            equal[places] = torch.stack([(first == other).flatten(1).all(1) for other in others]).all(0).cpu()
    return equal
