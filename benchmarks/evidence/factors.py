"""What is drawn at random for every view, how it shows in the image, and the task that asks for it.

Augmentations and tasks are the same factors: one that is augmented away is lost to its task. Every draw is uniform in
[0, 1], so that the truth of each task is a bin of it.
"""

import math
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
CHANCE = {
    "class": 10.0,
    "color": 100 / 8,
    "orientation": 100 / 6,
    "position": 100 / 9,
    "scale": 25.0,
    "sharpness": 25.0,
}
RELATED = "tint"  # a seventh augmentation, for one experiment: it moves the hue as "color" does

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


def draw(num_samples: int, generator: torch.Generator, names: tuple[str, ...] = AUGMENTATIONS) -> Draws:
    widths = {name: NUM_DRAWS.get(name, 1) for name in names}
    numbers = torch.rand(num_samples, sum(widths.values()), generator=generator)
    return dict(zip(names, numbers.split(list(widths.values()), dim=1), strict=True))


def render(scenes: Scenes, index: Tensor, draws: Draws) -> Tensor:
    """Objects ``index`` as the draws say: (N, 3, SIZE, SIZE)."""
    grid = F.affine_grid(_placement(draws), [len(index), 1, SIZE, SIZE], align_corners=False)
    color = F.grid_sample(scenes.colors[index], grid, align_corners=False, padding_mode="border")
    opacity = (1.3 * F.grid_sample(scenes.opacity[index], grid, align_corners=False)).clamp(max=1)
    image = torch.lerp(0.45 * _background(scenes.photographs, draws["background"]), color * _hue(draws), opacity)
    blurred = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return image.lerp(blurred, 0.9 * draws["blur"][:, :, None, None])


def truth(labels: Tensor, draws: Draws) -> dict[str, Tensor]:
    """The classes of every task."""
    column, row = _bins(draws["shift"], 3).unbind(1)
    return {
        "class": labels,
        "color": _bins(draws["color"][:, 0], 8),
        "orientation": _bins(draws["rotate"][:, 0], 6),
        "position": 3 * row + column,
        "scale": _bins(draws["scale"][:, 0], 4),
        "sharpness": _bins(draws["blur"][:, 0], 4),
    }


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images with nothing left but a corner of 9 x 9 in noise: pairs with them are ambiguous for sure."""
    centre = torch.randint(SIZE, (len(images), 2), generator=generator)
    far = (torch.arange(SIZE) - centre[:, :, None]).abs() > 4
    outside = far[:, 1, :, None] | far[:, 0, None, :]
    return torch.where(outside[:, None], torch.rand(images.shape, generator=generator), images)


def _placement(draws: Draws) -> Tensor:
    """From the canvas to the object, (N, 2, 3)."""
    zoom = 1.15 * torch.exp(0.4 * (2 * draws["scale"][:, 0] - 1))
    angle = (2 * draws["rotate"][:, 0] - 1) * math.pi / 2
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    linear = zoom[:, None, None] * turned
    return torch.cat([linear, -linear @ (0.4 * (2 * draws["shift"] - 1))[:, :, None]], dim=2)


def _hue(draws: Draws) -> Tensor:
    turns = draws["color"] + (0.5 * draws[RELATED] if RELATED in draws else 0)
    phase = 2 * math.pi * (turns + torch.tensor([0.0, 1 / 3, 2 / 3]))
    return (0.55 + 0.45 * phase.cos())[:, :, None, None]


def _background(photographs: Tensor, draw: Tensor) -> Tensor:
    """Every second pixel of a random crop."""
    which = (draw[:, 0] * len(photographs)).long().clamp(max=len(photographs) - 1)
    room = photographs.shape[2] - 2 * SIZE
    rows, columns = ((draw[:, i, None] * room).long() + 2 * torch.arange(SIZE) for i in (1, 2))
    return photographs.permute(0, 2, 3, 1)[which[:, None, None], rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def _bins(numbers: Tensor, count: int) -> Tensor:
    return (numbers * count).long().clamp(max=count - 1)
