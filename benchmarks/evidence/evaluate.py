"""What features are worth: linear probes and nearest neighbours on other objects, photographs and renderings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.evidence.factors import (
    AUGMENTATIONS,
    NUM_DRAWS,
    RELATED,
    TASKS,
    Scenes,
    draw,
    render,
    spoil,
    truth,
)
from benchmarks.evidence.train import Trained
from mast_ops.analysis import mask_overlap, spearman

NEIGHBOURS = 20
_LEVELS = 11
_SEED = 1_000_003  # of the renderings that probes learn and are judged on


class Renderings:
    """Images and their truth, the same for every method that has the same augmentations."""

    def __init__(self, train: Scenes, test: Scenes, augmentations: tuple[str, ...] = AUGMENTATIONS) -> None:
        self.train, self.train_truth = _rendered(train, 2, _SEED, augmentations)
        self.test, self.test_truth = _rendered(test, 3, _SEED + 1, augmentations)


def _rendered(scenes: Scenes, copies: int, seed: int, names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    index = torch.arange(len(scenes.labels)).repeat(copies)
    draws = draw(len(index), torch.Generator().manual_seed(seed), names)
    return render(scenes, index, draws), truth(scenes.labels[index], draws)


@torch.no_grad()
def apply(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([function(part) for part in x.split(2048)])


def evaluate(trained: Trained, data: Renderings) -> dict[str, Any]:
    train, test = (apply(trained.backbone, x) for x in (data.train, data.test))
    return {
        "linear": {task: _linear(train, y, test, data.test_truth[task]) for task, y in data.train_truth.items()},
        "knn": _neighbours(train, data.train_truth, test, data.test_truth),
    }


def _linear(train: Tensor, y: Tensor, test: Tensor, y_test: Tensor) -> float:
    """Accuracy in percent."""
    scaler = StandardScaler().fit(train.numpy())
    classifier = LogisticRegression(C=0.03, max_iter=200, tol=1e-3)
    classifier.fit(scaler.transform(train.numpy()), y.numpy())
    return 100 * float(classifier.score(scaler.transform(test.numpy()), y_test.numpy()))


def _neighbours(
    train: Tensor, truth: dict[str, Tensor], test: Tensor, truth_test: dict[str, Tensor]
) -> dict[str, float]:
    """Accuracy in percent of a vote of the nearest by cosine; one search for all tasks."""
    near = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine").fit(train.numpy())
    found = torch.from_numpy(near.kneighbors(test.numpy(), return_distance=False).astype(np.int64))
    return {
        task: 100 * float((y[found].mode(dim=1).values == truth_test[task]).double().mean())
        for task, y in truth.items()
    }


# ---- What masks and uncertainty say -----------------------------------------------------------------------------


def subspaces(trained: Trained, data: Renderings) -> dict[str, Any]:
    """Probes of each factor on the dimensions inside its mask and on the rest, and how masks overlap."""
    head = trained.head
    assert head is not None
    with torch.no_grad():
        masks = head.masks()
    names = head.subspaces
    embed = _embedding(trained)
    train, test = (apply(embed, x) for x in (data.train, data.test))
    inside, outside = {}, {}
    for task, name in TASKS.items():
        if name is None or name not in names:
            continue
        open_ = masks[names.index(name)] > 0.5
        for where, chosen in ((inside, open_), (outside, ~open_)):
            if chosen.any():
                where[task] = _linear(train[:, chosen], data.train_truth[task], test[:, chosen], data.test_truth[task])
    return {
        "inside": inside,
        "outside": outside,
        "free": (1 - masks).mean(1).tolist(),
        "overlap": mask_overlap(1 - masks).tolist(),
        "names": list(names),
        "open in all": float((masks.prod(0) > 0.5).double().mean()),
    }


def _embedding(trained: Trained) -> Callable[[Tensor], Tensor]:
    head, backbone, projector = trained.head, trained.backbone, trained.projector
    assert head is not None
    if head.projector is projector:
        return lambda x: projector(backbone(x))
    return lambda x: head.projector(projector(backbone(x)))


def uncertainty(trained: Trained, scenes: Scenes) -> dict[str, Any]:
    """How predicted log-variances go with strength, and whether they tell ruined views from whole ones.

    The variance of a pair that differs in all augmentations is the sum of theirs.
    """
    head, backbone = trained.head, trained.backbone
    assert head is not None
    before: Callable[[Tensor], Tensor] = nn.Identity() if head.projector is trained.projector else trained.projector

    def predicted(x: Tensor) -> Tensor:
        return apply(lambda part: head(before(backbone(part))).log_variance, x)

    generator = torch.Generator().manual_seed(_SEED + 2)
    index = torch.arange(len(scenes.labels))
    levels = torch.linspace(0, 1, _LEVELS)
    curves: dict[str, list[float]] = {name: [] for name in TASKS.values() if name}
    together: list[float] = []
    for level in levels:
        full = draw(len(index), generator)
        strong = {name: _at_strength(name, level, len(index), generator) for name in curves}
        for name, curve in curves.items():
            column = head.subspaces.index(name)
            seen = predicted(render(scenes, index, full | {name: strong[name]}))
            curve.append(float(seen[:, min(column, seen.shape[1] - 1)].mean()))
        together.append(float(predicted(render(scenes, index, full | strong)).logsumexp(1).mean()))
    curves["all"] = together
    whole = render(scenes, index, draw(len(index), generator))
    doubt, doubt_of_spoiled = (predicted(x).logsumexp(1) for x in (whole, spoil(whole, generator)))
    return {
        "levels": levels.tolist(),
        "curves": curves,
        "spearman": {name: float(spearman(levels, torch.tensor(curve))) for name, curve in curves.items()},
        "auroc": float((doubt_of_spoiled[:, None] > doubt[None]).double().mean()),
    }


def _at_strength(name: str, level: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Draws at one distance from the neutral one: upright, centred, sharp."""
    if name == "blur":
        return level.expand(num_samples, 1)
    sign = torch.randint(2, (num_samples, NUM_DRAWS[name]), generator=generator) * 2 - 1
    return 0.5 + 0.5 * level * sign


def rank_of_related(summary: dict[str, Any]) -> int:
    """The rank of colour and tint among all pairs of augmentations, by overlap of what their masks leave out.

    Ties count against it.
    """
    names, overlap = summary["names"], torch.tensor(summary["overlap"])
    pair = overlap[names.index("color"), names.index(RELATED)]
    apart = torch.ones_like(overlap).triu(1).bool()
    return int((overlap[apart] >= pair).sum())
