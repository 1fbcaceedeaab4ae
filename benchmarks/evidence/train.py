"""One method on one seed, with what all of them share: backbone, projector's width, steps, optimizer, batch."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.evidence.factors import NUM_DRAWS, Draws, Scenes, draw, layers, num_answers, render, spoil, truth
from benchmarks.evidence.methods import Method, make_views
from mast_ops import (
    BinaryMasks,
    FactorizedViews,
    MaskedSubspaceHead,
    NormalizedMasks,
    SigmoidMasks,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceOutput,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
)
from mast_ops.analysis import mask_density, mask_overlap
from mast_ops.masks import MaskParameterization

WIDTHS, FEATURES, HIDDEN = (24, 48, 96), 128, 512
LR, TEMPERATURE = 2e-3, 0.2
_HISTORY = 20  # points over a run


Probe = Literal["logistic", "ridge"]
PROBES: tuple[Probe, ...] = get_args(Probe)


class Settings(NamedTuple):
    steps: int = 600
    batch: int = 128
    device: str = "cpu"
    probe: Probe = "logistic"


class Trained(NamedTuple):
    backbone: nn.Module
    head: MaskedSubspaceHead | None
    projector: nn.Module
    history: list[dict[str, Any]]


def train(
    method: Method,
    scenes: Scenes,
    seed: int,
    settings: Settings,
    progress: Callable[[float], object] = lambda loss: None,
) -> Trained:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)  # of images and draws: the same for every method
    backbone, projector = make_backbone(), make_projector(method)
    views = make_views(method, scenes, generator)
    head = make_head(method, projector, views)
    model = nn.ModuleDict({"backbone": backbone, "projector": head or projector}).to(settings.device)
    if method.base == "random":
        return Trained(backbone.eval(), None, projector, [])
    if method.base == "supervised":
        step = _supervised(model, num_answers(scenes.num_classes, scenes.attributes))
    else:
        step = _STEPS[method.base](method, model, head)
    if method.augself:
        told = DrawsDifference(method.augmentations).to(settings.device)
        model["told"] = told
    optimizer = torch.optim.Adam(_groups(model, head, method))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=settings.steps
    )
    history = []
    for i in range(settings.steps):
        index = torch.randint(len(scenes.labels), (settings.batch,), generator=generator)
        labels: dict[str, Tensor] = {}
        draws0: Draws = {}
        draws1: Draws = {}
        if method.base == "supervised" or method.augself:  # what they learn are draws: they must know them
            draws0, draws1 = (draw(settings.batch, generator, method.augmentations) for _ in range(2))
            view0, view1 = (render(scenes, index, draws) for draws in (draws0, draws1))
            kind, labels = torch.zeros_like(index), truth(scenes, index, draws0)
        elif isinstance(projector, Spaces):
            kind = torch.zeros_like(index)
            view0, view1 = spaces_views(method, scenes, index, generator)
        else:
            view0, view1, kind = views(layers(scenes, index))
        if method.spoiled:
            which = torch.rand(settings.batch, generator=generator) < method.spoiled
            view1[which] = spoil(view1[which], generator)
        x, kind = torch.cat([view0, view1]).to(settings.device), kind.to(settings.device)
        with convolutions(settings.device):
            h = backbone(x)
        loss = step(x, h.float(), kind, labels)
        if method.augself:
            loss = loss + method.augself * told(h.float(), draws0, draws1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(loss.item())
        if head is not None and (i % max(1, settings.steps // _HISTORY) == 0 or i + 1 == settings.steps):
            history.append(_state_of_masks(head, i))
    last = model["projector"]  # BYOL has put its own there
    projector = projector if last is head else last
    return Trained(backbone.eval().cpu(), head and head.eval().cpu(), projector.eval().cpu(), history)


def precision(device: str) -> torch.dtype:
    """Of convolutions: bfloat16, but not on a CPU without instructions for it, where it takes 4 times as long."""
    fast = torch.cpu.get_capabilities() if device == "cpu" else {"avx512_bf16": True}
    return torch.bfloat16 if fast.get("avx512_bf16") or fast.get("amx_bf16") else torch.float32


def convolutions(device: str) -> torch.autocast:
    dtype = precision(device)
    return torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)


def make_backbone() -> nn.Module:
    blocks = [
        nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in itertools.pairwise((3, *WIDTHS))
    ]
    return nn.Sequential(
        *blocks, nn.Flatten(), nn.Linear(9 * WIDTHS[-1], FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU()
    )


def mlp(inside: int, hidden: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inside, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outside))


class Spaces(nn.ModuleList):
    """LooC's heads (Xiao et al. 2021): a whole projector for each space, which every image trains.

    Space k sees an image's view beside one with the same draw of augmentation k; the last, beside one that shares none.
    """


class DrawsDifference(nn.Module):
    """AugSelf (Lee et al. 2021): from the features of two views, how far apart the draws of each augmentation are.

    A regression for each augmentation, their mean-squared errors summed; 1 each for a guess of the mean.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: mlp(2 * FEATURES, HIDDEN, NUM_DRAWS.get(name, 1)) for name in names})

    def forward(self, h: Tensor, draws0: Draws, draws1: Draws) -> Tensor:
        both = torch.cat(h.chunk(2), dim=1)
        # The difference of two uniform draws has variance 1/6.
        wanted = {name: math.sqrt(6) * (draws0[name] - draws1[name]).to(h.device) for name in self.heads}
        return torch.stack([F.mse_loss(head(both), wanted[name]) for name, head in self.heads.items()]).sum()


def make_projector(method: Method) -> nn.Module:
    if method.pairs == "all but one":
        return Spaces(mlp(FEATURES, HIDDEN, method.dim) for _ in range(len(method.augmentations) + 1))
    return mlp(FEATURES, HIDDEN, method.dim)


def spaces_views(method: Method, scenes: Scenes, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A view of each image, (N, ...), and one more for each space, (spaces N, ...)."""
    names = method.augmentations
    first = draw(len(index), generator, names)
    others = [draw(len(index), generator, names) | {name: first[name]} for name in names]
    others.append(draw(len(index), generator, names))
    return render(scenes, index, first), torch.cat([render(scenes, index, draws) for draws in others])


def make_head(method: Method, projector: nn.Module, views: FactorizedViews) -> MaskedSubspaceHead | None:
    """On the projector; BYOL's training puts a predictor in its place."""
    if method.masks is None:
        return None
    return MaskedSubspaceHead(
        mlp(method.dim, HIDDEN, method.dim) if method.base == "byol" else projector,
        views.augmentations,
        masks=make_masks(method),
        uncertainty=method.uncertainty,
        kinds=views.kinds,
    )


def make_masks(method: Method) -> MaskParameterization:
    shape = (len(method.augmentations), method.dim)
    if method.masks == "normalized":
        masks: MaskParameterization = NormalizedMasks(*shape, coverage=method.coverage)
    elif method.masks == "sigmoid":
        masks = SigmoidMasks(*shape, mean=3.0, std=1.0)
    else:
        masks = BinaryMasks(*shape, coverage=method.coverage)
    return masks.requires_grad_(method.learned)


def _groups(model: nn.Module, head: MaskedSubspaceHead | None, method: Method) -> list[dict[str, Any]]:
    masks = set() if head is None else set(head.masks.parameters())
    rest = [p for p in model.parameters() if p not in masks]
    lr = LR * method.lr
    groups: list[dict[str, Any]] = [{"params": rest, "lr": lr}]
    learned = [p for p in masks if p.requires_grad]
    return [*groups, {"params": learned, "lr": lr * method.mask_lr}] if learned else groups


def _state_of_masks(head: MaskedSubspaceHead, step: int) -> dict[str, Any]:
    """Density, and the mean overlap of what two augmentations' masks leave out."""
    with torch.no_grad():
        masks = head.masks()
    overlap = mask_overlap(1 - masks)
    apart = ~torch.eye(len(masks), dtype=torch.bool)
    return {"step": step, "density": mask_density(masks).tolist(), "overlap": float(overlap[apart].mean())}


# ---- One step of each base: images, features, kinds of pairs and labels to a loss ---------------------------


Step = Callable[[Tensor, Tensor, Tensor, dict[str, Tensor]], Tensor]


def _criterion(method: Method, plain: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    if method.sensitivity is not None:
        options["sensitivity_param"] = method.sensitivity
    return plain(**options | dict(method.options))


def _two_views(method: Method, model: nn.ModuleDict, criterion: Any) -> Step:
    """VICReg and SimCLR: both views through the projector or head."""
    projector = model["projector"]
    ones = torch.ones(1, method.dim)

    def step(x: Tensor, h: Tensor, kind: Tensor, labels: dict[str, Tensor]) -> Tensor:
        if isinstance(projector, Spaces):
            first, *others = h.chunk(len(projector) + 1)
            pairs = [(space(first), space(other)) for space, other in zip(projector, others, strict=True)]
            return torch.stack([criterion(z0, z1, masks=ones.to(x.device)) for z0, z1 in pairs]).mean()
        h0, h1 = h.chunk(2)
        out0, out1 = projector(h0), projector(h1)
        if isinstance(out0, SubspaceOutput):
            return criterion(out0, out1, kind=kind)
        return criterion(out0, out1, masks=ones.to(x.device))

    return step


def _vicreg(method: Method, model: nn.ModuleDict, head: MaskedSubspaceHead | None) -> Step:
    return _two_views(method, model, _criterion(method, SubspaceVICRegLoss, scope=method.scope))


def _simclr(method: Method, model: nn.ModuleDict, head: MaskedSubspaceHead | None) -> Step:
    return _two_views(method, model, _criterion(method, SubspaceNTXentLoss, temperature=TEMPERATURE))


def _byol(method: Method, model: nn.ModuleDict, head: MaskedSubspaceHead | None) -> Step:
    """The predictor is wrapped; backbone and projector have a momentum copy as target."""
    backbone, projector = model["backbone"], make_projector(method)
    predictor: nn.Module = head if head is not None else mlp(method.dim, HIDDEN, method.dim)
    if isinstance(projector, Spaces):
        predictor = nn.ModuleList(mlp(method.dim, HIDDEN, method.dim) for _ in projector)
    model["projector"], model["predictor"] = projector, predictor
    online = nn.ModuleList([backbone, projector]).to(next(backbone.parameters()).device)
    predictor.to(next(backbone.parameters()).device)
    target = copy.deepcopy(online).requires_grad_(False)
    criterion = _criterion(method, SubspaceCosineLoss)
    if method.uncertainty:
        criterion = UncertaintyInvarianceLoss(distance="cosine", normalize=True)

    def step(x: Tensor, h: Tensor, kind: Tensor, labels: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            for old, new in zip(target.parameters(), online.parameters(), strict=True):
                old.lerp_(new, 1 - method.momentum)
            with convolutions(x.device.type):
                h_target = target[0](x).float()
            if not isinstance(projector, Spaces):
                t0, t1 = target[1](h_target).chunk(2)
        options: dict[str, Any] = {"masks": torch.ones(1, method.dim, device=x.device)}
        if isinstance(projector, Spaces):
            first, *others = h.chunk(len(projector) + 1)
            first_target, *other_targets = h_target.chunk(len(projector) + 1)
            losses = []
            for i, (other, other_target) in enumerate(zip(others, other_targets, strict=True)):
                for part, aim in ((first, other_target), (other, first_target)):
                    with torch.no_grad():
                        aim = target[1][i](aim)
                    losses.append(criterion(predictor[i](projector[i](part)), aim, **options))
            return torch.stack(losses).mean()
        p0, p1 = (predictor(projector(part)) for part in h.chunk(2))
        if isinstance(p0, SubspaceOutput):
            options = {"kind": kind}
        return (criterion(p0, t1, **options) + criterion(p1, t0, **options)) / 2

    return step


def _supervised(model: nn.ModuleDict, sizes: dict[str, int]) -> Step:
    """Every task's classifier on the one backbone: what these features could hold."""
    model["projector"] = classifiers = nn.ModuleDict({task: nn.Linear(FEATURES, n) for task, n in sizes.items()})
    classifiers.to(next(model.parameters()).device)

    def step(x: Tensor, h: Tensor, kind: Tensor, labels: dict[str, Tensor]) -> Tensor:
        first = h[: len(h) // 2]
        losses = [F.cross_entropy(classifiers[task](first), y.to(x.device)) for task, y in labels.items()]
        return torch.stack(losses).sum()

    return step


_STEPS: dict[str, Callable[[Method, nn.ModuleDict, MaskedSubspaceHead | None], Step]] = {
    "vicreg": _vicreg,
    "simclr": _simclr,
    "byol": _byol,
}
