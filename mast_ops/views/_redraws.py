"""Draws made anew, until the views of an image differ."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mast_ops.views._draws import alike, copied, draw
from mast_ops.views._images import check_rows
from mast_ops.views._steps import Step, Which

REDRAWS = 32  # what acts in a tenth of its calls then gives two equal views once in 600 times
_SHARE = 8  # a round may redraw this part of a batch,
_NUMBERS = 2**17  # or so many pixels: a call's own cost should be met by several draws of few samples, or of small ones
_MOST = 8  # of a sample in a round: what makes one draw for a whole batch needs several rounds
_REST = 0.05  # of the rows should need another round
_STRIDE = 8  # of the pixels that are compared first: views that differ mostly do so there


def redraw_rows(
    step: Step[Tensor], start: Callable[[int, Tensor], Tensor], views: Sequence[Tensor], rows: Tensor, num_alike: int
) -> int:
    """Draws those of these rows anew whose views are all equal, in place; how many of them stay so.

    `start(view, rows)` gives what the rows of a view were drawn of; of `num_alike` rows that was alike for all views.
    """
    rows = rows[_all_equal(views, rows)]
    if len(rows) == 0:
        return 0
    seeds = _more_seeds(step)
    done, num = 0, _enough(min(len(rows) + 1, num_alike + 1) / (num_alike + 2))  # of each row
    at_once = max(len(views[0]) // _SHARE, _NUMBERS // max(1, views[0][0].numel()))
    while len(rows) > 0 and done < REDRAWS:
        room = at_once // len(rows) if done == 0 else _MOST
        num = max(1, min(num, room, _MOST, REDRAWS - done))
        # One call for all views, as each of its samples has a draw of its own.
        many = torch.cat([start(view, rows).repeat_interleave(num, 0) for view in range(len(views))])
        drawn = draw(step.name, step.call, many, seeds.getrandbits(32))
        check_rows(step.name, drawn, len(many), like=views[0])
        redrawn = drawn.chunk(len(views))
        equal = _all_equal(redrawn, torch.arange(num * len(rows), device="cpu")).view(len(rows), num)
        found = (~equal).long().argmax(1) + num * torch.arange(len(rows), device="cpu")  # the first that differs
        for view, one in zip(views, redrawn, strict=True):
            view[rows.to(view.device)] = one[found.to(view.device)]
        rows = rows[equal.all(1)]
        done, num = done + num, 2 * num
    return len(rows)


def _enough(share: float) -> int:
    """Draws of which hardly a row has none that differs, where this share of them does not."""
    return math.ceil(math.log(_REST) / math.log(share))


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
            parts = (view[..., pixels, pixels] if view.dim() == 4 else view for view in views)
            first, *others = (part.index_select(0, some) for part in parts)
            equal[places] = torch.stack([(first == other).flatten(1).all(1) for other in others]).all(0).cpu()
    return equal
