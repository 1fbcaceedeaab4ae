"""The views of one image: before they differ they are alike, and drawn once for all."""

from collections.abc import Sequence
from typing import Any

from mast_ops._draws import alike, copied, draw
from mast_ops._images import check_item
from mast_ops._redraws import REDRAWS, redrawn
from mast_ops._steps import Step
from mast_ops._trials import Trials


def views_of_item(x: Any, steps: Sequence[Step[bool]], trials: Trials) -> list[Any]:
    """As many as a step asks for; x is left as it was."""
    num_views = steps[0].num_views
    views = [copied(x)]
    for step in steps:
        if step.differs and len(views) == 1:
            views += [copied(views[0]) for _ in range(num_views - 1)]
        before = [copied(view) for view in views] if step.is_last else []
        trials.use(step.name, step.call, views[0])
        shared, _, *own = step.seeds
        seeds = [shared, *own] if step.differs else [shared] * num_views
        views = [draw(step.name, step.call, view, seed) for view, seed in zip(views, seeds, strict=False)]
        check_item(step.name, views[0])
        if step.is_last and all(alike(views[0], view) for view in views[1:]):
            views, differ = redrawn(step, before)
            if not differ:
                trials.warn_of_equal_views(step.name, REDRAWS)
    return views if len(views) == num_views else [views[0], *(copied(views[0]) for _ in range(num_views - 1))]
