"""Draws made anew, until the two views of a pair differ."""

import random
from typing import Any

import torch
from torch import Tensor

from mast_ops._draws import Augmentation, alike, copied, draw
from mast_ops._images import check_rows

REDRAWS = 32  # what acts in a tenth of its calls then gives two equal views once in 600 times
_AT_ONCE = 8  # of each sample of a batch: calls are few, where one costs as much for ten samples as for two


def redraw_rows(
    name: str,
    call: Augmentation,
    before: tuple[Tensor, Tensor],
    views: tuple[Tensor, Tensor],
    rows: Tensor,
    *,
    seeds: random.Random,
) -> bool:
    """Draws those of these rows anew whose views are equal, in place; `before` is what the rows were drawn of.

    Whether all differ then.
    """
    for _ in range(REDRAWS // _AT_ONCE):
        equal = ~_rows_differ(*(view[rows] for view in views)) if len(rows) > 0 else rows.bool()
        if not equal.any():
            return True
        rows, before = rows[equal], (before[0][equal], before[1][equal])
        drawn = []
        for start in before:
            many = draw(name, call, start.repeat_interleave(_AT_ONCE, 0), seeds.getrandbits(32))
            check_rows(name, many, _AT_ONCE * len(rows), like=views[0])
            drawn.append(many)
        found = _rows_differ(*drawn).view(len(rows), _AT_ONCE).long().argmax(1)  # the first that differs
        found += _AT_ONCE * torch.arange(len(rows), device=rows.device)
        for view, many in zip(views, drawn, strict=True):
            view[rows] = many[found]
    return bool(_rows_differ(*(view[rows] for view in views)).all())


def redrawn(
    name: str, call: Augmentation, before: tuple[Any, Any], seeds: random.Random
) -> tuple[tuple[Any, Any], bool]:
    """Both views of one image drawn anew until they differ, and whether they do."""
    for _ in range(REDRAWS):
        view0, view1 = (draw(name, call, copied(start), seeds.getrandbits(32)) for start in before)
        if not alike(view0, view1):
            return (view0, view1), True
    return (view0, view1), False


def more_seeds(shared: int, new: int) -> random.Random:
    """Of the two that a call has drawn: redraws take nothing from its generator."""
    return random.Random(shared << 32 | new)


def _rows_differ(view0: Tensor, view1: Tensor) -> Tensor:
    return (view0 != view1).flatten(1).any(1)
