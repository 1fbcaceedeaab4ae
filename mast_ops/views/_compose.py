"""Named augmentations out of a composition that people have: its steps, and which of them are random."""

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import torch

from mast_ops._checks import check_names, warn_user
from mast_ops.views._draws import (
    Augmentation,
    alike,
    applied,
    copied,
    is_image,
    outer_states_kept,
    seed_generators,
    states_of,
)

_CHAINS = {"Compose", "Sequential", "ImageSequential", "AugmentationSequential"}
_SEEDS = 8
_SIDES = (509, 499)  # no crop is of just these


class Steps:
    """Callables in turn."""

    def __init__(self, steps: Sequence[Augmentation]) -> None:
        self.steps = tuple(steps)

    def __call__(self, x: Any) -> Any:
        for step in self.steps:
            x = applied(step, x)
        return x


class SeededSteps(Steps):
    """Some of them have generators of their own."""

    def set_random_seed(self, seed: int) -> None:
        for step in self.steps:
            if hasattr(step, "set_random_seed"):
                step.set_random_seed(seed)


def in_turn(steps: Sequence[Augmentation]) -> Augmentation:
    if len(steps) == 1:
        return steps[0]
    return (SeededSteps if any(hasattr(step, "set_random_seed") for step in steps) else Steps)(steps)


def take_apart(
    compose: Any, groups: Mapping[str, str | Sequence[str]] | None, image: Any, batched: bool
) -> tuple[dict[str, Augmentation], Augmentation | None]:
    """The random steps by name, and what follows the last of them; see `FactorizedViews.from_compose`."""
    steps = [step for step in _flat(compose) if _probability(step) != 0]
    is_random = _tell_random(steps, [image] if image is not None else _examples(steps, batched))
    found: dict[str, list[Augmentation]] = {}
    waiting: list[Augmentation] = []  # what is fixed goes with the random step that follows
    for step, random in zip(steps, is_random, strict=True):
        waiting.append(step)
        if random:
            found[_unlike(_name(step), found)] = waiting
            waiting = []
    if not found:
        names = ", ".join(_name(step) for step in steps) or "no step"
        raise ValueError(f"compose: got no random step ({names}), wanted at least one")
    if len(found) == 1:
        warn_user(
            f"compose: got one random step, {next(iter(found))!r}, wanted several: all that it draws has one mask, so "
            "that features ignore it together. What calls several in turn is taken apart as a Compose of them"
        )
    if groups is not None:
        found = _grouped(found, groups)
    return {name: in_turn(parts) for name, parts in found.items()}, in_turn(waiting) if waiting else None


def _flat(part: Any) -> list[Augmentation]:
    names = {base.__name__ for base in type(part).__mro__}
    inside = getattr(part, "transforms", None)
    if "MultiViewTransform" in names and inside:
        return _flat(_for_both_views(part, inside))
    if _is_chain(part):
        return [step for child in (part if inside is None else inside) for step in _flat(child)]
    if _is_chain(wrapped := getattr(part, "transform", None)):
        beside = [one for one in getattr(part, "__dict__", {}).values() if _is_chain(one)]
        return _flat(_for_both_views(part, [wrapped, *beside]))
    if not callable(part):
        raise TypeError(
            f"compose: got {type(part).__name__}, wanted a composition of callables, such as a Compose; "
            "FactorizedViews itself takes names and callables"
        )
    return [part]


def _for_both_views(part: Any, transforms: Sequence[Any]) -> Any:
    if any(one is not transforms[0] for one in transforms):
        raise ValueError(
            f"compose: got {type(part).__name__}, whose transforms differ from view to view, wanted one for both: "
            "pass one of them, or take mast_ops.recipes.make_views(name)"
        )
    return transforms[0]


def _is_chain(part: Any) -> bool:
    """Each of its steps in turn, always: one that is applied with a probability is a step as a whole."""
    names = {base.__name__ for base in type(part).__mro__}
    always = _probability(part) in (None, 1) and not getattr(part, "random_apply", False)
    return bool(names & _CHAINS) and always and "MultiViewTransform" not in names


def _probability(step: Any) -> float | None:
    for name in ("p", "prob", "probability"):
        value = getattr(step, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _examples(steps: Sequence[Augmentation], batched: bool) -> list[Any]:
    """What the first step may take, the likeliest first."""
    roots = {base.__module__.partition(".")[0] for step in steps for base in type(step).__mro__}
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        if batched:
            return [torch.rand(2, 3, *_SIDES, generator=generator)]
        image = torch.randint(256, (*_SIDES, 3), dtype=torch.uint8, generator=generator)
        if "albumentations" in roots:
            return [image.numpy()]
        whole = image.permute(2, 0, 1)
        if "kornia" not in roots and (pil := sys.modules.get("PIL.Image")) is not None:
            return [pil.fromarray(image.numpy()), whole / 255, whole]
        return [whole / 255]


def _tell_random(steps: Sequence[Augmentation], images: Sequence[Any]) -> list[bool]:
    """By the first of the images that all steps take; where none is, what the first one met is said."""
    try:
        return _random_on(steps, images[0])
    except ValueError:
        for image in images[1:]:
            with contextlib.suppress(ValueError):
                return _random_on(steps, image)
        raise


def _random_on(steps: Sequence[Augmentation], image: Any) -> list[bool]:
    """A step that draws nothing, and gives one result under all seeds, is not."""
    told = []
    with outer_states_kept(image):
        for step in steps:
            results, drew = [], False
            for seed in range(_SEEDS):
                seed_generators(seed, image)
                if hasattr(step, "set_random_seed"):
                    step.set_random_seed(seed)
                before = states_of(image)
                try:
                    results.append(applied(step, copied(image)))
                except Exception as error:
                    raise ValueError(
                        f"compose: step {_name(step)!r} fails on a trial image ({type(error).__name__}: {error}), "
                        "wanted steps that take what comes before them: pass image=, as the first step takes it"
                    ) from error
                if not is_image(results[-1]):
                    raise ValueError(
                        f"compose: step {_name(step)!r} gives {type(results[-1]).__name__}, wanted an image: "
                        "pass the transform of one view, without what calls it for each view"
                    )
                drew = drew or states_of(image) != before
            one = all(alike(result, results[0]) for result in results)
            probability = _probability(step)
            told.append(not one or (drew and probability != 1) or (probability is not None and probability < 1))
            image = results[0]
    return told


def _name(step: Any) -> str:
    """ "resized_crop" of RandomResizedCrop, and what is inside of RandomApply."""
    inside = getattr(step, "transforms", None) or getattr(getattr(step, "transform", None), "transforms", None)
    if inside and (len(inside) == 1 or not all(isinstance(child, FunctionType) for child in inside)):  # or its parts
        return "_".join(_name(child) for child in inside)
    if isinstance(step, Steps):
        return "_".join(_name(child) for child in step.steps)
    word = getattr(step, "__name__", type(step).__name__).strip("<>")
    word = re.sub(r"^Random(?=[A-Z])", "", word)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).lower()


def _unlike(name: str, taken: Mapping[str, object]) -> str:
    number = 1
    while (one := name if number == 1 else f"{name}_{number}") in taken:
        number += 1
    return one


def _grouped(
    found: dict[str, list[Augmentation]], groups: Mapping[str, str | Sequence[str]]
) -> dict[str, list[Augmentation]]:
    if not isinstance(groups, Mapping):
        raise TypeError(f"groups: got {type(groups).__name__}, wanted new name -> one or several of {list(found)}")
    check_names("groups", groups)
    order = list(found)
    new_name: dict[str, str] = {}
    for group, members in groups.items():
        names = (members,) if isinstance(members, str) else check_names(f"groups[{group!r}]", members)
        for name in names:
            if name not in found or name in new_name:
                twice = "once" if name in new_name else f"one of {', '.join(map(repr, order))}"
                raise ValueError(f"groups: got {name!r}, wanted {twice}")
            new_name[name] = group
        places = sorted(order.index(name) for name in names)
        if places != list(range(places[0], places[0] + len(places))):
            raise ValueError(f"groups: got {group!r} of {', '.join(names)}, wanted steps that follow one another")
    result: dict[str, list[Augmentation]] = {}
    for name, steps in found.items():
        result.setdefault(new_name.get(name, name), []).extend(steps)
    if clash := [group for group in groups if group in found and new_name.get(group) != group]:
        raise ValueError(f"groups: got {clash[0]!r}, wanted a name that is not another step's")
    return result
