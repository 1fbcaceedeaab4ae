"""Other people's losses, where they are installed, once per subspace. A missing one is named with its reason."""

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Contender, Loss

Found = tuple[list[Contender], dict[str, str]]


def nt_xent(device: str, temperature: float) -> Found:
    def lightly(module: ModuleType) -> Loss:
        criterion = module.NTXentLoss(temperature)
        return _each(lambda a, b: criterion(a, b))

    def metric_learning(module: ModuleType) -> Loss:
        criterion = module.NTXentLoss(temperature)
        return _each(lambda a, b: criterion(torch.cat([a, b]), torch.arange(len(a), device=a.device).repeat(2)))

    return _find(
        ("lightly NTXentLoss, loop over K", "lightly.loss", lightly),
        ("pytorch-metric-learning NTXentLoss, loop over K", "pytorch_metric_learning.losses", metric_learning),
    )


def info_nce(device: str, temperature: float) -> Found:
    """Fused linear cross entropies: the candidates are the classifier's weights. They run on CUDA alone."""

    def cut(module: ModuleType) -> Loss:
        return _each(_directions(lambda a, b, target: module.linear_cross_entropy(a, b, target), temperature))

    def liger(module: ModuleType) -> Loss:
        criterion = module.LigerFusedLinearCrossEntropyLoss()
        return _each(_directions(lambda a, b, target: criterion(b, a, target), temperature))

    names = ("cut-cross-entropy, loop over K", "Liger fused linear cross entropy, loop over K")
    if device != "cuda":
        return [], dict.fromkeys(names, "runs on CUDA alone")
    return _find((names[0], "cut_cross_entropy", cut), (names[1], "liger_kernel.transformers", liger))


def vicreg_moments(variance: float) -> Found:
    def lightly(module: ModuleType) -> Loss:
        def loss(z: Tensor, masks: Tensor) -> Tensor:
            terms = [variance * module.variance_loss(z * m) + module.covariance_loss(z * m) for m in masks]
            return torch.stack(terms).mean()

        return loss

    return _find(("lightly VICReg terms, loop over K", "lightly.loss.vicreg_loss", lightly))


def _find(*wanted: tuple[str, str, Callable[[ModuleType], Loss]]) -> Found:
    found, missing = [], {}
    _declare_torchvision_operators()
    for name, module, make in wanted:
        try:
            found.append(Contender(name, make(importlib.import_module(module))))
        except ModuleNotFoundError as error:
            missing[name] = f"not installed: {error.name}"
        except Exception as error:  # a package of the wrong build fails in its own ways; the rest can run
            missing[name] = f"does not import: {str(error).splitlines()[0]}"
    return found, missing


@cache
def _declare_torchvision_operators() -> None:
    """lightly imports torchvision, whose wheels look up two operators that only a CUDA torch lets them load."""
    if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)  # an operator lives as long as its library


_kept: list[torch.library.Library] = []


def _each(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda z0, z1, masks: torch.stack([loss(z0 * mask, z1 * mask) for mask in masks]).mean()


def _directions(
    cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor], temperature: float
) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(a: Tensor, b: Tensor) -> Tensor:
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        target = torch.arange(len(a), device=a.device)
        return (cross_entropy(a / temperature, b, target) + cross_entropy(b / temperature, a, target)) / 2

    return loss
