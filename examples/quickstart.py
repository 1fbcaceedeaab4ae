"""Plain VICReg, MAST, and MAST without its masks on real handwritten digits, probed on five tasks.

Every training image is a real digit (scikit-learn's, inside its wheel) seen under five augmentations: scale,
rotation, shift, colour and blur. Each task asks for something that one of the augmentations changes, so no
single invariance serves them all. Prints one table, and writes figures and a JSON file.

    python examples/quickstart.py                  # one seed, under 3 minutes on 2 CPU cores
    python examples/quickstart.py --seeds 0 1 2    # mean and spread
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm import tqdm

from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceVICRegLoss
from mast_ops.plots import plot_masks, plot_overlap, plot_uncertainty

SIZE, BATCH, DIM = 16, 256, 128
METHODS = {  # name: (has masks, share of pairs that differ in every augmentation, what the table calls it)
    "vicreg": (False, 1.0, "VICReg: composed pairs"),
    "no_masks": (False, 0.0, "factorised pairs, no masks"),
    "mast": (True, 0.0, "factorised pairs, MAST"),
    "mixed_no_masks": (False, 0.5, "half composed, no masks"),
    "mixed_mast": (True, 0.5, "half composed, MAST"),
}


# ---- Real digits under five augmentations whose draws are known ------------------------------------------


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


# ---- Training --------------------------------------------------------------------------------------------


def make_backbone() -> nn.Module:
    widths = (3, 32, 64, 128)
    blocks = [
        nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in itertools.pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * widths[-1], DIM), nn.BatchNorm1d(DIM), nn.ReLU())


def make_projector() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.ReLU(), nn.Linear(DIM, DIM))


def train(method: str, images: Tensor, steps: int, seed: int) -> tuple[nn.Module, MaskedSubspaceHead | None]:
    torch.manual_seed(seed)
    masked, composed, title = METHODS[method]
    views = FactorizedViews(AUGMENTATIONS, composed=composed, batched=True)
    backbone, projector = make_backbone(), make_projector()
    criterion = SubspaceVICRegLoss()
    groups = [{"params": [*backbone.parameters(), *projector.parameters()], "lr": 2e-3}]
    if masked:
        head = MaskedSubspaceHead(projector, subspaces=views.subspaces, uncertainty="subspace")
        groups[0]["params"] += head.uncertainty.parameters()
        groups.append({"params": head.masks.parameters(), "lr": 2e-2})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in groups], total_steps=steps)
    plain = torch.ones(1, DIM)

    progress = tqdm(range(steps), desc=f"{title:27s} seed {seed}", mininterval=0.5)
    for step in progress:
        view0, view1, subspace = views(images[torch.randint(len(images), (BATCH,))])
        h0, h1 = backbone(torch.cat([view0, view1])).chunk(2)
        if masked:
            loss = criterion(head(h0), head(h1), subspace=subspace)
        else:
            loss = criterion(projector(h0), projector(h1), masks=plain)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.2f}")
    return backbone.eval(), head.eval() if masked else None


# ---- Evaluation ------------------------------------------------------------------------------------------


@torch.no_grad()
def probe(backbone: nn.Module, train_set: tuple[Tensor, dict], test_set: tuple[Tensor, dict]) -> dict[str, float]:
    """Accuracy in percent of a linear probe for each task, on held-out digits in held-out renderings."""
    scaler = StandardScaler()
    x_train = scaler.fit_transform(backbone(train_set[0]).numpy())
    x_test = scaler.transform(backbone(test_set[0]).numpy())
    scores = {}
    for task, y_train in train_set[1].items():
        classifier = LogisticRegression(C=0.03, max_iter=500).fit(x_train, y_train.numpy())
        scores[task] = 100 * float(classifier.score(x_test, test_set[1][task].numpy()))
    scores["mean"] = sum(scores.values()) / len(scores)
    return scores


def rendered_tasks(images: Tensor, labels: Tensor, copies: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    rendered, draws = render(images.repeat(copies, 1, 1, 1))
    return rendered, tasks(labels.repeat(copies), draws)


@torch.no_grad()
def uncertainty_curves(backbone: nn.Module, head: MaskedSubspaceHead, images: Tensor) -> dict[str, tuple]:
    """For each augmentation: the strength of its draw, and the log-variance predicted in its subspace."""
    torch.manual_seed(0)
    rendered, draws = render(images.repeat(8, 1, 1, 1))
    log_variance = head(backbone(rendered)).log_variance
    return {name: (draws[name].abs().mean(1), log_variance[:, k]) for k, name in enumerate(AUGMENTATIONS)}


def figure_of_probes(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    names = list(next(iter(results.values()))[0])
    fig, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
    colours = ("#BBBBBB", "#9BD0EE", "#0072B2", "#F5C79A", "#D55E00")
    for i, (method, runs) in enumerate(results.items()):
        mean, spread = summary(runs)
        places = [j + 0.16 * (i - 2) for j in range(len(names))]
        ax.bar(
            places, mean.values(), 0.15, yerr=spread.values() if len(runs) > 1 else None,
            label=METHODS[method][2], color=colours[i], error_kw={"linewidth": 1},
        )  # fmt: skip
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("linear probe, %")
    ax.set_ylim(0, 100)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    fig.savefig(path, dpi=130)
    plt.close(fig)


def figures_of_head(backbone: nn.Module, head: MaskedSubspaceHead, images: Tensor, out: Path) -> None:
    masks = head.masks().detach()
    for name, draw in {
        "masks": lambda: plot_masks(masks, head.subspaces),
        "overlap": lambda: plot_overlap(masks, head.subspaces),
        "uncertainty": lambda: plot_uncertainty(uncertainty_curves(backbone, head, images)),
    }.items():
        figure = draw().figure
        figure.savefig(out / f"{name}.png", dpi=130, bbox_inches="tight")
        plt.close(figure)


def summary(runs: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation over seeds, by task."""
    values = {task: torch.tensor([run[task] for run in runs]) for task in runs[0]}
    spread = {task: float(v.std()) if len(runs) > 1 else 0.0 for task, v in values.items()}
    return {task: float(v.mean()) for task, v in values.items()}, spread


def table(results: dict[str, list[dict[str, float]]]) -> str:
    names = list(next(iter(results.values()))[0])
    lines = ["| linear probe, % | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for method, runs in results.items():
        mean, spread = summary(runs)
        cells = [f"{mean[t]:.1f}" + (f" ± {spread[t]:.1f}" if len(runs) > 1 else "") for t in names]
        lines.append(f"| {METHODS[method][2]} | " + " | ".join(cells) + " |")
    chance = [10.0, 100 / 8, 100 / 6, 100 / 9, 25.0]
    cells = [f"{c:.1f}" for c in [*chance, sum(chance) / len(chance)]]
    return "\n".join([*lines, "| chance | " + " | ".join(cells) + " |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700, help="training steps of each method")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("out/quickstart"), help="folder of figures and JSON")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    images, labels = load_images()
    held_out = torch.arange(len(images)) % 4 == 0
    train_images, train_labels = images[~held_out], labels[~held_out]
    train_set = rendered_tasks(train_images, train_labels, copies=3, seed=1_000_001)
    test_set = rendered_tasks(images[held_out], labels[held_out], copies=5, seed=1_000_002)

    results: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for seed in args.seeds:
        for method, runs in results.items():
            backbone, head = train(method, train_images, args.steps, seed)
            runs.append(probe(backbone, train_set, test_set))
            if method == "mast" and seed == args.seeds[0]:
                figures_of_head(backbone, head, images[held_out], args.out)
    figure_of_probes(results, args.out / "probes.png")

    print(f"\n{table(results)}\n")
    seconds = time.perf_counter() - start
    record = {"steps": args.steps, "seeds": args.seeds, "torch": torch.__version__, "seconds": seconds}
    (args.out / "results.json").write_text(json.dumps({**record, "probes": results}, indent=2) + "\n")
    print(f"{seconds:.0f} s; figures and results.json are in {args.out}")


if __name__ == "__main__":
    main()
