"""Real digits under augmentations whose draws are known, and small networks for them: what all examples share."""

import itertools
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
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
    def apply(self, x: Tensor, draw: Tensor) -> Tensor:
        return x.lerp(F.avg_pool2d(x, 7, stride=1, padding=3), draw.abs()[:, :, None, None])


AUGMENTATIONS = {"scale": Scale(), "rotate": Rotate(), "shift": Shift(), "color": Color(), "blur": Blur()}


def load_images() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=SIZE, mode="bilinear", align_corners=False)
    return images.expand(-1, 3, -1, -1).contiguous(), torch.tensor(digits.target)


class Pairs(torch.utils.data.Dataset):
    """Digits as a data loader wants them: what the transform makes of an image, and its class."""

    def __init__(self, transform: Callable[[Tensor], object]) -> None:
        self.images, self.labels = load_images()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[object, int]:
        return self.transform(self.images[i]), int(self.labels[i])


def loader(transform: Callable[[Tensor], object], steps: int) -> torch.utils.data.DataLoader:
    """So many batches of random images."""
    dataset = Pairs(transform)
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=steps * BATCH)
    return torch.utils.data.DataLoader(dataset, BATCH, sampler=sampler)


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


def compose(augmentations: Mapping[str, Augmentation]) -> Callable[[Tensor], Tensor]:
    """All augmentations in turn, drawn anew at every call: how plain scripts make a view."""

    def augment(x: Tensor) -> Tensor:
        for augmentation in augmentations.values():
            x = augmentation(x)
        return x

    return augment


def make_backbone() -> nn.Module:
    widths = (3, 32, 64, 128)
    blocks = [
        nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in itertools.pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * widths[-1], DIM), nn.BatchNorm1d(DIM), nn.ReLU())


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
