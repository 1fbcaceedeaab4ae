"""Twelve augmentations in six related pairs: whether statistics find the pairs, and what allocating masks pays.

Each of the suite's six factors is moved by two augmentations, the second half as far as the first. What a view shows is
their sum, so that images and tasks are those of the main suite.

python -m benchmarks.evidence.relations           # every width and method on three seeds
python -m benchmarks.evidence.relations --quick   # one width, one seed, short runs
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.evidence import data, side_by_side
from benchmarks.evidence.evaluate import Renderings, apply, linear, with_earlier_layers
from benchmarks.evidence.factors import AUGMENTATIONS, NUM_DRAWS, TASKS, Scenes, render
from benchmarks.evidence.report import cell, of, scores
from benchmarks.evidence.side_by_side import Descent
from benchmarks.evidence.train import FEATURES, HIDDEN, Settings, convolutions, make_backbone, mlp
from benchmarks.tables import table
from mast_ops import AllocatedMasks, BinaryMasks, FactorizedViews, MaskedSubspaceHead, SubspaceVICRegLoss
from mast_ops.analysis import mask_overlap, relations
from mast_ops.functional import explained_variance
from mast_ops.masks import MaskParameterization

DIMS = (16, 24, 64, 256)
METHODS = {
    "none": "no masks, the same pairs",
    "fixed": "fixed masks",
    "learned": "masks learned by gradient",
    "allocated": "allocated masks",
    "shared": "fixed masks, shared as planted",
}
TWINS = tuple(f"{name} again" for name in AUGMENTATIONS)  # the second augmentation of each factor
HALF = 0.5  # how far it moves the factor


def closed(dim: int) -> int:
    """Dimensions that each augmentation closes."""
    return max(2, dim // 32)


# ---- Views: a sample is its index and the sum of its draws, and is rendered once ------------------------------------

_COLUMNS = dict(zip(AUGMENTATIONS, torch.arange(sum(NUM_DRAWS.values())).split([*NUM_DRAWS.values()]), strict=True))


def augmentations() -> dict[str, Callable[[Tensor], Tensor]]:
    """By name: each adds its draw to its factor, around a circle, so that every sum is uniform as a single draw is."""
    far = {name: partial(_moved, columns, 1.0) for name, columns in _COLUMNS.items()}
    near = {twin: partial(_moved, columns, HALF) for twin, columns in zip(TWINS, _COLUMNS.values(), strict=True)}
    return far | near


def _moved(columns: Tensor, far: float, x: Tensor) -> Tensor:
    return x.index_add(1, 1 + columns, far * torch.rand(len(x), len(columns), 1, 1))


def start(index: Tensor) -> Tensor:
    """As an image of one pixel: views take images."""
    return torch.cat([index[:, None].float(), torch.zeros(len(index), sum(NUM_DRAWS.values()))], dim=1)[..., None, None]


def show(scenes: Scenes, x: Tensor) -> Tensor:
    x = x[..., 0, 0]
    index, total = x[:, 0].long(), x[:, 1:] % 1
    return render(scenes, index, {name: total[:, columns] for name, columns in _COLUMNS.items()})


# ---- One run ---------------------------------------------------------------------------------------------------------


def make_masks(method: str, num_augmentations: int, dim: int) -> MaskParameterization:
    coverage = 1 - closed(dim) / dim
    if method == "allocated":
        return AllocatedMasks(num_augmentations, dim, coverage=coverage)
    masks = BinaryMasks(num_augmentations, dim, coverage=coverage)
    if method == "shared":
        with torch.no_grad():
            masks.weight.zero_()
            for k in range(num_augmentations):
                first = closed(dim) * (k % len(AUGMENTATIONS))
                masks.weight[k, first : first + closed(dim)] = -1
    return masks.requires_grad_(method == "learned")


class Model:
    """One method at one width: what it trains, and what each augmentation explains in its embedding."""

    def __init__(self, method: str, dim: int, views: FactorizedViews, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.method, num = method, len(views.augmentations)
        self.backbone = make_backbone()
        projector, masks = mlp(FEATURES, HIDDEN, dim), make_masks(method, num, dim)
        self.head = MaskedSubspaceHead(projector, views.augmentations, masks=masks, kinds=views.kinds)
        self.seen = AllocatedMasks(num, dim)  # for its statistics, whatever the masks are
        self.criterion, self.ones = SubspaceVICRegLoss(), torch.ones(num, dim)
        self.descent = Descent((self.backbone, self.head), steps)

    def step(self, x: Tensor, kind: Tensor) -> None:
        with convolutions("cpu"):
            h = self.backbone(x)
        out0, out1 = self.head(h.float()).chunk(2)
        z0, z1, kinds = out0.embedding, out1.embedding, self.head.kinds
        if self.method == "none":
            loss = self.criterion(z0, z1, masks=self.ones, kinds=kinds, kind=kind)
        else:
            loss = self.criterion(out0, out1, kind=kind)
        self.descent.step(loss)
        self.seen.observe(explained_variance(z0.detach(), z1.detach(), kind=kind, kinds=kinds))


def train(scenes: Scenes, wanted: list[tuple[str, int]], seed: int, settings: Settings) -> list[Model]:
    """All of them side by side: they see the same views, which are rendered once."""
    generator = torch.Generator().manual_seed(seed)
    views = FactorizedViews(augmentations(), pairs="mixed", batched=True, generator=generator)
    models = [Model(method, dim, views, seed, settings.steps) for method, dim in wanted]
    for _ in tqdm(range(settings.steps), desc=f"seed {seed}", leave=False):
        index = torch.randint(len(scenes.labels), (settings.batch,), generator=generator)
        view0, view1, kind = views(start(index))
        x = torch.cat([show(scenes, view0), show(scenes, view1)])
        for model in models:
            model.step(x, kind)
    return models


@torch.no_grad()
def judged(model: Model, renderings: Renderings) -> dict[str, Any]:
    masks = model.head.masks()
    return {
        **probed(model.backbone.eval(), renderings),
        "relations": relations(model.seen.explained).tolist(),
        "overlap": mask_overlap(1 - masks).tolist() if model.method != "none" else None,
        "free": float((masks == 0).any(0).double().mean()),
        "names": list(model.head.subspaces),
        "explained": model.seen.explained.tolist(),
        "masks": masks.tolist(),
    }


def probed(backbone: nn.Module, renderings: Renderings) -> dict[str, dict[str, float]]:
    """Ridge probes of the last features, and of earlier layers beside them."""
    found = {}
    sources: dict[str, Callable[[Tensor], Tensor]] = {
        "linear": backbone,
        "layers": partial(with_earlier_layers, backbone),
    }
    for name, source in sources.items():
        train, test = (apply(source, x) for x in (renderings.train, renderings.test))
        found[name] = {
            task: linear(train, renderings.train_truth[task], test, renderings.test_truth[task], "ridge")
            for task in TASKS
        }
    return found


def ranks_of_related(names: list[str], table: list[list[float]]) -> list[int]:
    """The ranks of the six planted pairs among all, best first; ties with others count against them."""
    values = torch.tensor(table)
    planted = torch.zeros_like(values).bool()
    for name, twin in zip(AUGMENTATIONS, TWINS, strict=True):
        places = sorted((names.index(name), names.index(twin)))
        planted[places[0], places[1]] = True
    others = values[torch.ones_like(planted).triu(1) & ~planted]
    best = values[planted].sort(descending=True).values
    return [1 + i + int((others >= value).sum()) for i, value in enumerate(best)]


# ---- What the runs say -----------------------------------------------------------------------------------------------

Runs = dict[str, dict[str, dict[str, Any]]]
"""By width, method and seed."""


def text(document: dict[str, Any]) -> str:
    return "\n\n".join([accuracy(document["results"]), leads(document["results"]), found(document["results"])])


def accuracy(results: dict[str, Runs]) -> str:
    lines = []
    for dim, methods in results.items():
        for method, runs in methods.items():
            last = scores(runs)
            free = 100 * np.mean([one["free"] for one in runs.values()]) if method != "none" else 0
            cells = [
                cell(last["class"]),
                cell(last["mean"]),
                cell(scores(runs, "layers")["mean"]),
            ]
            lines.append([METHODS[method], str(dim), f"{free:.0f}", *cells])
    columns = ["class", "mean of six tasks", "mean, with earlier layers"]
    return table(["ridge probe, %", "D", "closed in some mask, %", *columns], lines)


LEADS = [*(("allocated", other) for other in ("fixed", "learned", "shared", "none")), ("shared", "fixed")]


def leads(results: dict[str, Runs]) -> str:
    """Seed by seed."""
    lines = []
    for dim, methods in results.items():
        for one, other in LEADS:
            if one not in methods or other not in methods:
                continue
            seeds = methods[one].keys() & methods[other].keys()
            ours, theirs = (scores(of(seeds, methods[method])) for method in (one, other))
            of_class, mean = ([a - b for a, b in zip(ours[x], theirs[x], strict=True)] for x in ("class", "mean"))
            lines.append([METHODS[one], METHODS[other], str(dim), cell(of_class), cell(mean)])
    return table(["lead of", "over", "D", "class", "mean of six tasks"], lines, left=2)


def found(results: dict[str, Runs]) -> str:
    """How many runs rank the six planted pairs 1 to 6."""
    lines = []
    first = list(range(1, len(AUGMENTATIONS) + 1))
    for dim, methods in results.items():
        for method, runs in methods.items():
            by = {
                key: [ranks_of_related(one["names"], one[key]) == first for one in runs.values() if one[key]]
                for key in ("relations", "overlap")
            }
            cells = [f"{sum(right)} of {len(right)}" if right else "" for right in by.values()]
            lines.append([METHODS[method], str(dim), *cells])
    head = ["the six related pairs rank 1 to 6 of 66, runs", "D", "by explained variance", "by overlap of masks"]
    return table(head, lines)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = side_by_side.parser("relations", __doc__, quick="D=24, seed 10, 100 steps")
    add = parser.add_argument
    add("--dims", type=int, nargs="+", default=list(DIMS), help="widths D of the embedding, >= 16")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args(argv)
    if args.quick:
        args.dims, args.seeds, args.steps = [24], [10], 100
    if min(args.dims) < 16 or args.steps < 1 or args.batch < 2:
        parser.error(f"--dims, --steps, --batch: got {args.dims}, {args.steps}, {args.batch}, wanted >= 16, >= 1, >= 2")
    settings = side_by_side.settings_of(args)
    train_scenes, test_scenes = data.load(None)
    renderings = Renderings(train_scenes, test_scenes)
    results: dict[str, Runs] = {}
    for seed in args.seeds:
        wanted = [(method, dim) for dim in args.dims for method in args.methods]
        paths = {one: args.out / f"{one[0]}_{one[1]}_{seed}_{settings.steps}_{settings.batch}.json" for one in wanted}

        def make(missing: list[tuple[str, int]], seed: int = seed) -> Iterator[dict[str, Any]]:
            return (judged(model, renderings) for model in train(train_scenes, missing, seed, settings))

        for (method, dim), result in side_by_side.kept(paths, make):
            results.setdefault(str(dim), {}).setdefault(method, {})[str(seed)] = result
    results = {
        dim: {method: results[dim][method] for method in METHODS if method in results[dim]}
        for dim in sorted(results, key=int)
    }
    document = side_by_side.document("relations", argv, args, results)
    print(text(document))
    for methods in document["results"].values():  # what no table shows stays with the runs
        for runs in methods.values():
            for one in runs.values():
                for key in ("explained", "masks"):
                    one.pop(key, None)
    side_by_side.write(document, args)


if __name__ == "__main__":
    main()
