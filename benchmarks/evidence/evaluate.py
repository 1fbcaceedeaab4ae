"""What features are worth: linear probes and nearest neighbours on other objects, photographs and renderings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
from benchmarks.evidence.train import Probe, Trained
from mast_ops.analysis import mask_overlap, spearman

NEIGHBOURS = 20
_RIDGE = 0.003  # of the number of samples
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
    return render(scenes, index, draws), truth(scenes, index, draws)


@torch.no_grad()
def apply(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([function(part) for part in x.split(2048)])


def evaluate(trained: Trained, data: Renderings, probe: Probe = "logistic") -> dict[str, Any]:
    """Accuracies in percent; "layers": of last features and earlier layers together."""
    train, test = (apply(trained.backbone, x) for x in (data.train, data.test))
    more, more_test = (
        apply(lambda part: with_earlier_layers(trained.backbone, part), x) for x in (data.train, data.test)
    )
    tasks = data.train_truth
    return {
        "linear": {task: linear(train, y, test, data.test_truth[task], probe) for task, y in tasks.items()},
        "layers": {task: linear(more, y, more_test, data.test_truth[task], probe) for task, y in tasks.items()},
        "knn": _neighbours(train, tasks, test, data.test_truth),
    }


def with_earlier_layers(backbone: nn.Module, x: Tensor) -> Tensor:
    """Last features beside the outputs of the first two blocks, each pooled to 2 x 2.

    What a method throws away at the end may still be there: a method that keeps it gains what it has beyond this.
    """
    assert isinstance(backbone, nn.Sequential)
    first = backbone[0](x)
    second = backbone[1](first)
    pooled = [F.adaptive_avg_pool2d(block, 2).flatten(1) for block in (first, second)]
    return torch.cat([backbone[2:](second), *pooled], dim=1)


def linear(train: Tensor, y: Tensor, test: Tensor, y_test: Tensor, probe: Probe = "logistic") -> float:
    """Accuracy in percent of a logistic regression, or of a ridge regression on one-hot labels in closed form."""
    if probe == "ridge":
        return _ridge(train, y, test, y_test)
    scaler = StandardScaler().fit(train.numpy())
    classifier = LogisticRegression(C=0.03, max_iter=200, tol=1e-3)
    classifier.fit(scaler.transform(train.numpy()), y.numpy())
    return 100 * float(classifier.score(scaler.transform(test.numpy()), y_test.numpy()))


def _ridge(train: Tensor, y: Tensor, test: Tensor, y_test: Tensor) -> float:
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    x, x_test = ((part.double() - mean) / torch.where(std > 0, std, 1) for part in (train, test))
    target = F.one_hot(y).double()
    share = target.mean(0)  # the intercept
    penalty = _RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ (target - share))
    return 100 * float(((x_test @ weight + share).argmax(1) == y_test).double().mean())


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


def subspaces(trained: Trained, data: Renderings, probe: Probe = "logistic") -> dict[str, Any]:
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
                y, y_test = data.train_truth[task], data.test_truth[task]
                where[task] = linear(train[:, chosen], y, test[:, chosen], y_test, probe)
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
        strong = {name: at_strength(name, level, len(index), generator) for name in curves}
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


def at_strength(name: str, level: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Draws at a distance from the neutral one, upright, centred, sharp; ``level`` is one number, or (N, 1)."""
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
