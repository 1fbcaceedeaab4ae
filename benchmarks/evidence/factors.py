"""What is drawn at random for every view, how it shows in the image, and the task that asks for it.

Augmentations and tasks are the same factors: one that is augmented away is lost to its task. Every draw is uniform in
[0, 1], so that the truth of each task is a bin of it.

A scene goes through the augmentations as layers, the channels of an (N, C, SIZE, SIZE) tensor, so that an object is
resampled once however often it is moved. First: colours of the object (3), its opacity (1), for every pixel of the
canvas the point of the object that it shows (2), and turns of the hue (1). "background" adds a photograph (3), "color"
puts one over the other, which leaves red, green and blue, and "blur" blurs those.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 20
NUM_DRAWS = {"scale": 1, "rotate": 1, "shift": 2, "color": 1, "blur": 1, "background": 3}
AUGMENTATIONS = tuple(NUM_DRAWS)
TASKS = {  # name: the augmentation that changes it
    "class": None,
    "color": "color",
    "orientation": "rotate",
    "position": "shift",
    "scale": "scale",
    "sharpness": "blur",
}
BINS = {"color": 8, "orientation": 6, "position": 9, "scale": 4, "sharpness": 4}
QUARTERS = 4  # of an attribute of the objects themselves: no augmentation draws it and no method is told it
RELATED = "tint"  # a seventh augmentation, for one experiment: it moves the hue as "color" does

# Views apply them so: the canvas is shifted before it is turned, and a tint is there before the colour.
_ORDER = ("shift", "rotate", "scale", RELATED, "background", "color", "blur")

Draws = dict[str, Tensor]


class Scenes(NamedTuple):
    """Objects to be placed on backgrounds: a train or a test part."""

    colors: Tensor
    """(M, 3, h, w), in [0, 1]."""
    opacity: Tensor
    """(M, 1, h, w), in [0, 1]."""
    labels: Tensor
    """(M,) int64."""
    photographs: Tensor
    """(P, 3, H, W): backgrounds are crops of them."""
    num_classes: int = 10
    """Of train and test part together."""
    attributes: Mapping[str, Tensor] = MappingProxyType({})
    """(M,) int64 each: the quarter of all objects in which each lies."""


def draw(num_samples: int, generator: torch.Generator, names: tuple[str, ...] = AUGMENTATIONS) -> Draws:
    widths = [_width(name) for name in names]
    numbers = torch.rand(num_samples, sum(widths), generator=generator)
    return dict(zip(names, numbers.split(widths, dim=1), strict=True))


def layers(scenes: Scenes, index: Tensor) -> Tensor:
    """Objects ``index`` before any augmentation, (N, 7, SIZE, SIZE): what augmentations take."""
    objects = torch.cat([scenes.colors[index], scenes.opacity[index]], dim=1)
    ticks = (2 * torch.arange(SIZE) + 1) / SIZE - 1
    points = torch.stack([ticks.expand(SIZE, SIZE), ticks[:, None].expand(SIZE, SIZE)])
    turns = torch.zeros(1, SIZE, SIZE)
    return torch.cat([_framed(objects), torch.cat([points, turns]).expand(len(index), -1, -1, -1)], dim=1)


def augmentations(scenes: Scenes, names: tuple[str, ...] = AUGMENTATIONS) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name and in order: each takes and returns layers, and draws for every sample from torch's global generator."""
    steps = _steps(scenes)
    return {name: partial(_at_random, steps[name], _width(name)) for name in _ORDER if name in names}


def render(scenes: Scenes, index: Tensor, draws: Draws) -> Tensor:
    """Objects ``index`` as the draws say: (N, 3, SIZE, SIZE)."""
    x = layers(scenes, index)
    for name, step in _steps(scenes).items():
        if name in draws:
            x = step(x, draws[name])
    return x


def num_answers(num_classes: int, attributes: Iterable[str] = ()) -> dict[str, int]:
    """Of each task: chance is one in so many."""
    return {"class": num_classes, **BINS, **dict.fromkeys(attributes, QUARTERS)}


def truth(scenes: Scenes, index: Tensor, draws: Draws) -> dict[str, Tensor]:
    """The answers of every task for objects ``index``."""
    column, row = _bins(draws["shift"], 3).unbind(1)
    return {
        "class": scenes.labels[index],
        "color": _bins(draws["color"][:, 0], BINS["color"]),
        "orientation": _bins(draws["rotate"][:, 0], BINS["orientation"]),
        "position": 3 * row + column,
        "scale": _bins(draws["scale"][:, 0], BINS["scale"]),
        "sharpness": _bins(draws["blur"][:, 0], BINS["sharpness"]),
        **{name: quarter[index] for name, quarter in scenes.attributes.items()},
    }


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images with nothing left but a corner of 9 x 9 in noise: pairs with them are ambiguous for sure."""
    centre = torch.randint(SIZE, (len(images), 2), generator=generator)
    far = (torch.arange(SIZE) - centre[:, :, None]).abs() > 4
    outside = far[:, 1, :, None] | far[:, 0, None, :]
    return torch.where(outside[:, None], torch.rand(images.shape, generator=generator), images)


# ---- One augmentation each: layers and its draws to layers --------------------------------------------------------

_Step = Callable[[Tensor, Tensor], Tensor]


def _steps(scenes: Scenes) -> dict[str, _Step]:
    size = scenes.colors.shape[-1]
    steps: dict[str, _Step] = {
        "shift": _shift,
        "rotate": _rotate,
        "scale": _scale,
        RELATED: _tint,
        "background": partial(_background, scenes.photographs),
        "color": partial(_color, size),
        "blur": _blur,
    }
    return {name: steps[name] for name in _ORDER}


def _width(name: str) -> int:
    return NUM_DRAWS.get(name, 1)


def _at_random(step: _Step, num_draws: int, x: Tensor) -> Tensor:
    return step(x, torch.rand(len(x), num_draws))


def _shift(x: Tensor, draw: Tensor) -> Tensor:
    return _moved(x, x[:, 4:6] - (0.4 * (2 * draw - 1))[:, :, None, None])


def _rotate(x: Tensor, draw: Tensor) -> Tensor:
    angle = (2 * draw[:, 0] - 1) * math.pi / 2
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    return _moved(x, torch.einsum("nij,njhw->nihw", turn, x[:, 4:6]))


def _scale(x: Tensor, draw: Tensor) -> Tensor:
    return _moved(x, 1.15 * torch.exp(0.4 * (2 * draw - 1))[:, :, None, None] * x[:, 4:6])


def _moved(x: Tensor, points: Tensor) -> Tensor:
    return torch.cat([x[:, :4], points, x[:, 6:]], dim=1)


def _tint(x: Tensor, draw: Tensor) -> Tensor:
    return torch.cat([x[:, :6], x[:, 6:7] + 0.5 * draw[:, :, None, None], x[:, 7:]], dim=1)


def _background(photographs: Tensor, x: Tensor, draw: Tensor) -> Tensor:
    """Every second pixel of a random crop."""
    which = (draw[:, 0] * len(photographs)).long().clamp(max=len(photographs) - 1)
    room = photographs.shape[2] - 2 * SIZE
    rows, columns = ((draw[:, i, None] * room).long() + 2 * torch.arange(SIZE) for i in (1, 2))
    crops = photographs.permute(0, 2, 3, 1)[which[:, None, None], rows[:, :, None], columns[:, None, :]]
    return torch.cat([x, crops.permute(0, 3, 1, 2)], dim=1)


def _color(size: int, x: Tensor, draw: Tensor) -> Tensor:
    """Objects in their hue, over the photograph; ``size`` is theirs in pixels."""
    objects, grid = _unframed(x[:, :4], size), x[:, 4:6].permute(0, 2, 3, 1)
    phase = 2 * math.pi * (draw[:, :, None, None] + x[:, 6:7] + torch.tensor([0.0, 1 / 3, 2 / 3])[:, None, None])
    color = F.grid_sample(objects[:, :3], grid, align_corners=False, padding_mode="border")
    opacity = (1.3 * F.grid_sample(objects[:, 3:], grid, align_corners=False)).clamp(max=1)
    return torch.lerp(0.45 * x[:, 7:], color * (0.55 + 0.45 * phase.cos()), opacity)


def _blur(x: Tensor, draw: Tensor) -> Tensor:
    """By the mean of 5 x 5 pixels, as sums of slices: torch's pooling takes ten times as long on a CPU."""
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    rows = torch.stack([padded[:, :, i : i + SIZE] for i in range(5)]).sum(0)
    blurred = torch.stack([rows[..., i : i + SIZE] for i in range(5)]).sum(0) / 25
    return x.lerp(blurred, 0.9 * draw[:, :, None, None])


def _framed(objects: Tensor) -> Tensor:
    """In the corner of a canvas: layers have one size."""
    room = SIZE - objects.shape[-1]
    return F.pad(objects, (0, room, 0, room))


def _unframed(x: Tensor, size: int) -> Tensor:
    return x[:, :, :size, :size]


def _bins(numbers: Tensor, count: int) -> Tensor:
    return (numbers * count).long().clamp(max=count - 1)
