"""Real digits under augmentations whose draws are known, and small networks for them: what all examples share."""

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

SIZE, BATCH, DIM = 16, 256, 128


class Augmentation:
    """A random change of a batch, with its draw kept apart so that the probes know the truth.

    ``draw`` gives numbers in [-1, 1], whose size is the strength of the change.
    """

    num_draws = 1

    def draw(self, n: int) -> Tensor:
        return torch.rand(n, self.num_draws) * 2 - 1

    def apply(self, x: Tensor, draw: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x, self.draw(len(x)))


class Affine(Augmentation):
    def matrix(self, draw: Tensor) -> Tensor:
        raise NotImplementedError

    def apply(self, x: Tensor, draw: Tensor) -> Tensor:
        grid = F.affine_grid(self.matrix(draw), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class Scale(Affine):
    def matrix(self, draw: Tensor) -> Tensor:
        return torch.eye(2, 3) * (1.35 * torch.exp(0.4 * draw)).unsqueeze(2)


class Rotate(Affine):
    def matrix(self, draw: Tensor) -> Tensor:
        angle = draw[:, 0] * math.pi / 2
        zero = torch.zeros_like(angle)
        rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero]
        return torch.stack(rows, dim=1).view(-1, 2, 3)


class Shift(Affine):
    num_draws = 2

    def matrix(self, draw: Tensor) -> Tensor:
        return torch.cat([torch.eye(2).expand(len(draw), 2, 2), 0.45 * draw.unsqueeze(2)], dim=2)


class Color(Augmentation):
    def apply(self, x: Tensor, draw: Tensor) -> Tensor:
        phase = math.pi * draw + torch.tensor([0.0, 2.0, 4.0]) * math.pi / 3
        return x * (0.55 + 0.45 * phase.cos())[:, :, None, None]


class Blur(Augmentation):
    """By the mean of 7 x 7 pixels, as products with a band: pooling takes far longer on a CPU."""

    def apply(self, x: Tensor, draw: Tensor) -> Tensor:
        band = torch.ones(SIZE, SIZE).tril(3).triu(-3) / 7
        return x.lerp(band @ x @ band, draw.abs()[:, :, None, None])


AUGMENTATIONS = {"scale": Scale(), "rotate": Rotate(), "shift": Shift(), "color": Color(), "blur": Blur()}


def load_images(*, colored: bool = False) -> tuple[Tensor, Tensor]:
    """Digits (N, 3, SIZE, SIZE), white on black, or coloured on coloured paper, and their classes."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=SIZE, mode="bilinear", align_corners=False)
    if colored:
        generator = torch.Generator().manual_seed(0)
        paper = torch.rand(len(images), 3, 1, 1, generator=generator)
        ink, paper = ((color / color.amax(dim=1, keepdim=True)) for color in (1 - paper, paper))
        images = paper.lerp(ink, images)
    return images.expand(-1, 3, -1, -1).contiguous(), torch.tensor(digits.target)


class Digits(torch.utils.data.Dataset):
    """As torchvision's data sets: what the transform makes of a PIL image, and its class."""

    def __init__(self, transform: Callable[[Image.Image], object], count: int | None = None) -> None:
        images, labels = load_images(colored=True)
        self.images = (255 * images[:count]).byte().permute(0, 2, 3, 1).numpy()
        self.labels = labels[:count].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[object, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


class TwoViews:
    """How plain scripts make a pair: one transform, drawn twice."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        return self.transform(image), self.transform(image)


class Crops:
    """Multi-crop: two global views by one transform, and so many local ones by another."""

    def __init__(self, transform: Callable, local: Callable, num_local: int) -> None:
        self.transforms = [transform] * 2 + [local] * num_local

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [transform(image) for transform in self.transforms]


def arguments(description: str | None, *, checkpoint: bool = False) -> argparse.Namespace:
    """What the scripts take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, help="use the first so many; all by default")
    parser.add_argument("--workers", type=int, default=2, help="processes that load data")
    parser.add_argument("--seed", type=int, default=0)
    if checkpoint:
        parser.add_argument("--checkpoint", type=Path, help="is written; if it is there, training goes on")
    return parser.parse_args()


def render(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Images under all augmentations, and each augmentation's draw."""
    draws = {}
    for name, augmentation in AUGMENTATIONS.items():
        draws[name] = augmentation.draw(len(images))
        images = augmentation.apply(images, draws[name])
    return images, draws


def binned(draw: Tensor, bins: int) -> Tensor:
    return ((draw + 1) / 2 * bins).long().clamp(max=bins - 1)


def tasks(labels: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    column, row = binned(draws["shift"], 3).unbind(1)
    return {
        "class": labels,
        "color": binned(draws["color"][:, 0], 8),
        "orientation": binned(draws["rotate"][:, 0], 6),
        "position": 3 * row + column,
        "scale": binned(draws["scale"][:, 0], 4),
    }


def make_backbone() -> nn.Module:
    widths = (3, 32, 64, 128)
    blocks = [
        nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in itertools.pairwise(widths)
    ]
    pool = nn.AdaptiveAvgPool2d(2)  # leaves an image of SIZE as it is, and takes smaller ones
    return nn.Sequential(*blocks, pool, nn.Flatten(), nn.Linear(4 * widths[-1], DIM), nn.BatchNorm1d(DIM), nn.ReLU())


def make_projector() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.ReLU(), nn.Linear(DIM, DIM))


@torch.no_grad()
def probe_accuracy(backbone: nn.Module, train_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor]) -> float:
    """Accuracy in percent of a linear probe on the backbone's features."""
    features = backbone.eval()(torch.cat([train_set[0], test_set[0]])).numpy()
    num_train = len(train_set[0])
    scaler = StandardScaler().fit(features[:num_train])
    classifier = LogisticRegression(C=0.03, max_iter=500)
    classifier.fit(scaler.transform(features[:num_train]), train_set[1].numpy())
    return 100 * float(classifier.score(scaler.transform(features[num_train:]), test_set[1].numpy()))
