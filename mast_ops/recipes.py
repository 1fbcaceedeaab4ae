"""The augmentations of SimCLR, BYOL and VICReg by name and image size, on torchvision."""

from typing import Any

from mast_ops._checks import check_choice, check_count
from mast_ops.views import FactorizedViews

# Brightness, contrast, saturation and hue of the jitter; probabilities of blur and of solarisation.
_RECIPES: dict[str, tuple[tuple[float, float, float, float], float, float]] = {
    "simclr": ((0.8, 0.8, 0.8, 0.2), 0.5, 0.0),
    "byol": ((0.4, 0.4, 0.2, 0.1), 0.55, 0.1),
    "vicreg": ((0.4, 0.4, 0.2, 0.1), 0.55, 0.1),
}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_views(name: str, size: int = 224, **options: Any) -> FactorizedViews:
    """Views of one RGB image by a method's own augmentations, normalised by ImageNet's mean and deviation.

    Needs torchvision: `pip install "mast-ops[torchvision]"`.

    Args:
        name: "simclr", "byol" or "vicreg".
        size: of the views, in pixels; 224. Up to 32 pixels SimCLR has no blur and half the jitter, as for CIFAR-10.
        options: pairs, weights, generator and those of more views, as in :class:`mast_ops.FactorizedViews`.

    Returns:
        Views with the augmentations "crop", "flip", "color", "gray", "blur" and, but for SimCLR, "solarize". They take
        a PIL image or a uint8 tensor (3, H, W), and give float32 tensors (3, size, size).

    Raises:
        ValueError, TypeError: another name, or a size that is no whole number >= 1.
        ImportError: torchvision is not installed.

    Source: Chen et al. 2020 (arXiv 2002.05709), Grill et al. 2020 (arXiv 2006.07733), Bardes et al. 2022 (arXiv
    2105.04906). BYOL, and VICReg's code, blur one view always and the other in a tenth of the cases, and solarise the
    other alone, in a fifth. Both views of a pair share draws here, so that both have the mean of these probabilities.
    """
    check_choice("name", name, tuple(_RECIPES))
    check_count("size", size)
    if made := {"augmentations", "finalize"} & options.keys():
        raise TypeError(f"{min(made)}: got one beside a recipe, which has its own; wanted FactorizedViews itself")
    try:
        import torch
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError('mast_ops.recipes needs torchvision: pip install "mast-ops[torchvision]"') from error
    jitter, blur, solarize = _RECIPES[name]
    small = name == "simclr" and size <= 32
    kernel = max(3, size // 10 // 2 * 2 + 1)
    augmentations: dict[str, Any] = {
        "crop": v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
        "flip": v2.RandomHorizontalFlip(0.5),
        "color": v2.RandomApply([v2.ColorJitter(*(part / 2 if small else part for part in jitter))], p=0.8),
        "gray": v2.RandomGrayscale(0.2),
    }
    if not small:
        augmentations["blur"] = v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=blur)
    if solarize > 0:
        augmentations["solarize"] = v2.RandomSolarize(128, p=solarize)
    finalize = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)])
    return FactorizedViews(augmentations, finalize=finalize, **options)
