"""The views of one image: before they differ they are alike, and drawn once for all."""

from collections.abc import Sequence
from typing import Any

from mast_ops.views._draws import alike, copied, draw
from mast_ops.views._images import check_item
from mast_ops.views._redraws import redrawn
from mast_ops.views._steps import Step, of_local_views
from mast_ops.views._trials import Trials


def views_of_item(x: Any, steps: Sequence[Step[bool]], trials: Trials) -> list[Any]:
    """As many as a step asks for; x is left as it was."""
    num_global = steps[0].num_global
    num_local = steps[0].num_views - num_global
    views, local_views = [copied(x)], list[Any]()  # local ones are there from their first difference on
    for step in steps:
        shared, _, *own = step.seeds
        if not local_views and (step.differs or step.local_call is not None):
            local_views = _copies(views[0], num_local)
        if step.differs and len(views) == 1:
            views += _copies(views[0], num_global - 1)
        before = [copied(view) for view in views] if step.is_last else []
        trials.use(step.name, step.call, views[0])
        seeds = [shared, *own[: num_global - 1]] if step.differs else [shared] * num_global
        views = [draw(step.name, step.call, view, seed) for view, seed in zip(views, seeds, strict=False)]
        check_item(step.name, views[0])
        if step.is_last:
            differ = not all(alike(views[0], view) for view in views[1:])
            if not differ:
                views, differ = redrawn(step, before)
            trials.count(step.name, 1, int(not differ))
        if local_views:
            local_views = _drawn_locally(of_local_views(step), local_views, trials)
    if len(views) < num_global:
        views += _copies(views[0], num_global - 1)
    return views + local_views


def _drawn_locally(step: Step[bool], views: Sequence[Any], trials: Trials) -> list[Any]:
    if step.local_call is not None:
        trials.use(step.name, step.call, views[0])
    alone = step.differs or step.local_call is not None
    seeds = step.seeds[1 + step.num_global :] if alone else step.seeds[:1] * len(views)
    made = [draw(step.name, step.call, view, seed) for view, seed in zip(views, seeds, strict=True)]
    check_item(step.name, made[0])
    return made


def _copies(view: Any, num: int) -> list[Any]:
    return [copied(view) for _ in range(num)]
