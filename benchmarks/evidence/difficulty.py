"""Whether predicted uncertainty means difficulty: strength, spoiled views, and what it saves where pairs are spoiled.

python -m benchmarks.evidence.difficulty           # every model on three seeds
python -m benchmarks.evidence.difficulty --quick   # one seed, short runs
"""

import re
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.evidence import data, side_by_side
from benchmarks.evidence.evaluate import Renderings, apply, at_strength, linear
from benchmarks.evidence.factors import AUGMENTATIONS, TASKS, Draws, Scenes, draw, layers, render, spoil
from benchmarks.evidence.methods import METHODS, make_views
from benchmarks.evidence.report import cell, of, scores
from benchmarks.evidence.side_by_side import Descent
from benchmarks.evidence.train import (
    FEATURES,
    HIDDEN,
    TEMPERATURE,
    Settings,
    convolutions,
    make_backbone,
    mlp,
)
from benchmarks.tables import table
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceNTXentLoss, SubspaceVICRegLoss
from mast_ops.analysis import spearman

DIM = 128
LITTLE = 0.15  # strength of what augmentations do to a reference; its background is any


class Kind(NamedTuple):
    base: str
    prediction: str
    """"none", "likelihood" or "difficulty"."""
    spoiled: float
    """Share of pairs in which one view is ruined."""

    @property
    def title(self) -> str:
        words = {"none": "no prediction", "likelihood": "likelihood", "difficulty": "difficulty"}[self.prediction]
        return f"{self.base}: {words}, {100 * self.spoiled:.0f} % spoiled"


MODELS = {
    kind.title: kind
    for kind in (
        Kind("VICReg", "none", 0.0),
        Kind("VICReg", "likelihood", 0.0),
        Kind("VICReg", "difficulty", 0.0),
        Kind("VICReg", "difficulty", 0.07),
        Kind("VICReg", "none", 0.2),
        Kind("VICReg", "likelihood", 0.2),
        Kind("VICReg", "difficulty", 0.2),
        Kind("NT-Xent", "none", 0.0),
        Kind("NT-Xent", "difficulty", 0.0),
        Kind("NT-Xent", "none", 0.2),
        Kind("NT-Xent", "difficulty", 0.2),
    )
}


class Model:
    """Masked as MAST is in the main suite, with or without a prediction; that of difficulty is told of references."""

    def __init__(self, kind: Kind, views: FactorizedViews, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.kind = kind
        self.backbone = make_backbone()
        granularity = {"none": None, "likelihood": "subspace", "difficulty": "sample"}[kind.prediction]
        self.head = MaskedSubspaceHead(
            mlp(FEATURES, HIDDEN, DIM),
            views.augmentations,
            kinds=views.kinds,
            uncertainty=granularity,  # type: ignore[arg-type]
        )
        param = float(kind.prediction == "difficulty")
        self.criterion = (
            SubspaceVICRegLoss(difficulty_param=param)
            if kind.base == "VICReg"
            else SubspaceNTXentLoss(TEMPERATURE, difficulty_param=param)
        )
        self.descent = Descent((self.backbone, self.head), steps)

    def step(self, view0: Tensor, view1: Tensor, kind: Tensor, reference: Tensor) -> None:
        options = {"kind": kind}
        if self.kind.prediction == "difficulty":
            options["reference"] = self.embedded(reference)
        with convolutions("cpu"):
            h = self.backbone(torch.cat([view0, view1]))
        self.descent.step(self.criterion(*self.head(h.float()).chunk(2), **options))

    @torch.no_grad()
    def embedded(self, images: Tensor) -> Tensor:
        for module in (self.backbone, self.head):
            module.eval()
        with convolutions("cpu"):
            h = self.backbone(images)
        embedding: Tensor = self.head.projector(h.float())
        for module in (self.backbone, self.head):
            module.train()
        return embedding


def train(scenes: Scenes, wanted: list[Kind], seed: int, settings: Settings) -> list[Model]:
    """All of them side by side: they see the same views, ruined ones and references, rendered once."""
    generator = torch.Generator().manual_seed(seed)
    of_references = torch.Generator().manual_seed(1_000_000 + seed)
    views = make_views(METHODS["vicreg/mast"], scenes, generator)
    models = [Model(kind, views, seed, settings.steps) for kind in wanted]
    for _ in tqdm(range(settings.steps), desc=f"seed {seed}", leave=False):
        index = torch.randint(len(scenes.labels), (settings.batch,), generator=generator)
        view0, view1, kind = views(layers(scenes, index))
        reference = render(scenes, index, draws_of_reference(len(index), of_references))
        chance, ruined = torch.rand(settings.batch, generator=generator), spoil(view1, generator)
        for model in models:
            which = chance < model.kind.spoiled
            model.step(view0, torch.where(which[:, None, None, None], ruined, view1), kind, reference)
    return models


def draws_of_reference(num_samples: int, generator: torch.Generator) -> Draws:
    level = torch.full((num_samples, 1), LITTLE)
    little = {name: at_strength(name, level, num_samples, generator) for name in AUGMENTATIONS if name != "background"}
    return draw(num_samples, generator) | little


@torch.no_grad()
def judged(models: list[Model], renderings: Renderings, scenes: Scenes) -> list[dict[str, Any]]:
    """Probes, and what those that predict call uncertain; every image is rendered once for all of them."""
    for model in models:
        model.backbone.eval()
        model.head.eval()
    said = doubts([model for model in models if model.kind.prediction != "none"], scenes)
    results = []
    for model in models:
        train, test = (apply(model.backbone, x) for x in (renderings.train, renderings.test))
        truth, truth_test = renderings.train_truth, renderings.test_truth
        result: dict[str, Any] = {
            "linear": {task: linear(train, truth[task], test, truth_test[task], "ridge") for task in TASKS}
        }
        if model.kind.prediction != "none":
            result["uncertainty"] = said.pop(0)
        results.append(result)
    return results


def doubts(models: list[Model], scenes: Scenes) -> list[dict[str, Any]]:
    """The doubt of a view is its log-variance; of one a subspace, that of their sum, or of the augmentation's own."""
    generator = torch.Generator().manual_seed(1_000_005)
    index = torch.arange(len(scenes.labels))
    names = [name for name in TASKS.values() if name]
    levels = torch.linspace(0, 1, 6)

    def predicted(x: Tensor, name: str = "all") -> list[Tensor]:
        found = []
        for model in models:
            seen = apply(lambda part, model=model: model.head(model.backbone(part)).log_variance, x)  # type: ignore[misc]
            one = name != "all" and seen.shape[1] > 1
            found.append(seen[:, model.head.subspaces.index(name)] if one else seen.logsumexp(1))
        return found

    curves: list[dict[str, list[float]]] = [{name: [] for name in (*names, "all")} for _ in models]
    for level in levels:
        full = draw(len(index), generator)
        strong = {name: at_strength(name, level, len(index), generator) for name in names}
        for name in (*names, "all"):
            moved = strong if name == "all" else {name: strong[name]}
            for curve, doubt in zip(curves, predicted(render(scenes, index, full | moved), name), strict=True):
                curve[name].append(float(doubt.mean()))
    strengths = torch.rand(2, len(index), 1, generator=generator).sort(dim=0).values
    weak, strong_ = (
        predicted(
            render(
                scenes,
                index,
                draw(len(index), generator)
                | {name: at_strength(name, strength, len(index), generator) for name in names},
            )
        )
        for strength in strengths
    )
    whole = render(scenes, index, draw(len(index), generator))
    doubt_of_whole, doubt_of_ruined = predicted(whole), predicted(spoil(whole, generator))
    return [
        {
            "levels": levels.tolist(),
            "curves": curves[i],
            "spearman": {name: float(spearman(levels, torch.tensor(curve))) for name, curve in curves[i].items()},
            "harder": float((strong_[i] > weak[i]).double().mean()),
            "auroc": float((doubt_of_ruined[i][:, None] > doubt_of_whole[i]).double().mean()),
        }
        for i in range(len(models))
    ]


# ---- What the runs say -----------------------------------------------------------------------------------------------

Runs = dict[str, dict[str, Any]]


def text(document: dict[str, Any]) -> str:
    results = document["results"]
    return "\n\n".join(filter(None, (meaning(results), means(results), falls(results))))


def meaning(results: dict[str, Runs]) -> str:
    names = [name for name in TASKS.values() if name]
    lines = []
    for title, runs in results.items():
        said = [run["uncertainty"] for run in runs.values() if "uncertainty" in run]
        if said:
            cells = [cell([one["spearman"][name] for one in said], 2) for name in (*names, "all")]
            cells += [cell([100 * one["harder"] for one in said]), cell([one["auroc"] for one in said], 2)]
            lines.append([title, *cells])
    rest = ["all", "stronger view less certain, %", "AUROC of spoiled views"]
    return table(["rank correlation of doubt with strength", *names, *rest], lines)


def means(results: dict[str, Runs]) -> str:
    lines = []
    for title, runs in results.items():
        found = scores(runs)
        lines.append([title, cell(found["class"]), cell(found["mean"])])
    return table(["ridge probe, %", "class", "mean of six tasks"], lines)


def falls(results: dict[str, Runs]) -> str:
    """What the mean loses where pairs are spoiled, against the same base and prediction on whole pairs."""
    lines = []
    for title, runs in results.items():
        whole = results.get(MODELS[title]._replace(spoiled=0.0).title, {})
        shared = [seed for seed in runs if seed in whole]
        if MODELS[title].spoiled and shared:
            before, after = (scores(of(shared, each))["mean"] for each in (whole, runs))
            lines.append([title, cell([a - b for a, b in zip(before, after, strict=True)])])
    return table(["points of the mean that spoiled pairs cost", ""], lines) if lines else ""


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = side_by_side.parser("difficulty", __doc__, quick="VICReg, seed 10, 100 steps")
    parser.add_argument("--only", metavar="REGEX", default="", help="models whose title it is found in")
    args = parser.parse_args(argv)
    if args.quick:
        args.only, args.seeds, args.steps = "VICReg", [10], 100
    if args.steps < 1 or args.batch < 2:
        parser.error(f"--steps, --batch: got {args.steps}, {args.batch}, wanted >= 1, >= 2")
    settings = side_by_side.settings_of(args)
    train_scenes, test_scenes = data.load(None)
    renderings = Renderings(train_scenes, test_scenes)
    wanted = {title: kind for title, kind in MODELS.items() if re.search(args.only, title)}
    results: dict[str, Runs] = {}
    for seed in args.seeds:
        paths = {
            title: args.out
            / f"{kind.base}_{kind.prediction}_{kind.spoiled}_{seed}_{settings.steps}_{settings.batch}.json"
            for title, kind in wanted.items()
        }

        def make(missing: list[str], seed: int = seed) -> list[dict[str, Any]]:
            models = train(train_scenes, [wanted[title] for title in missing], seed, settings)
            return judged(models, renderings, test_scenes)

        for title, result in side_by_side.kept(paths, make):
            results.setdefault(title, {})[str(seed)] = result
    document = side_by_side.document("difficulty", argv, args, results)
    print(text(document))
    side_by_side.write(document, args)


if __name__ == "__main__":
    main()
