"""Plain VICReg, MAST, and MAST without its masks, on real handwritten digits, probed on five tasks.

Every training image is a real digit (scikit-learn's, inside its wheel) seen under five augmentations: scale,
rotation, shift, colour and blur. Each task asks for something that one of the augmentations changes, so no
single invariance serves them all. Prints one table, and writes figures and a JSON file.

    python examples/quickstart.py                  # one seed
    python examples/quickstart.py --seeds 0 1 2    # mean and spread
"""

import argparse
import json
import os
import time
from pathlib import Path

# Images and probes are small: more threads gain little, and beside other work they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and NumPy read it

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from digits import (
    AUGMENTATIONS,
    BATCH,
    DIM,
    load_images,
    make_backbone,
    make_projector,
    probe_accuracy,
    render,
    tasks,
)
from mast_ops import FactorizedViews, MaskedSubspaceHead, SubspaceVICRegLoss
from mast_ops.plots import plot_masks, plot_overlap, plot_uncertainty

METHODS = {  # name: (has masks, which augmentations differ in its pairs, what the table calls it)
    "vicreg": (False, "all", "VICReg: all differ"),
    "no_masks": (False, "single", "one differs, no masks"),
    "single_mast": (True, "single", "one differs, MAST"),
    "mixed_no_masks": (False, "mixed", "one or all differ, no masks"),
    "mast": (True, "mixed", "one or all differ, MAST"),
}


# ---- Training -------------------------------------------------------------------------------------------


def train(method: str, images: Tensor, steps: int, seed: int) -> tuple[nn.Module, MaskedSubspaceHead | None]:
    torch.manual_seed(seed)
    masked, pairs, title = METHODS[method]
    views = FactorizedViews(AUGMENTATIONS, pairs=pairs, batched=True)
    backbone, projector = make_backbone(), make_projector()
    criterion = SubspaceVICRegLoss()
    groups = [{"params": [*backbone.parameters(), *projector.parameters()]}]
    if masked:
        head = MaskedSubspaceHead(projector, views, uncertainty="subspace")
        groups[0]["params"] += head.uncertainty.parameters()
        groups.append({"params": head.masks.parameters()})
    optimizer = torch.optim.Adam(groups, lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in groups], total_steps=steps)
    plain = torch.ones(1, DIM)

    progress = tqdm(range(steps), desc=f"{title:27s} seed {seed}", mininterval=0.5)
    for step in progress:
        view0, view1, kind = views(images[torch.randint(len(images), (BATCH,))])
        h0, h1 = backbone(torch.cat([view0, view1])).chunk(2)
        if masked:
            loss = criterion(head(h0), head(h1), kind=kind)
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


def probe(
    backbone: nn.Module, train_set: tuple[Tensor, dict[str, Tensor]], test_set: tuple[Tensor, dict[str, Tensor]]
) -> dict[str, float]:
    """Accuracy in percent of a linear probe for each task, on held-out digits in held-out renderings."""
    (x_train, train_tasks), (x_test, test_tasks) = train_set, test_set
    scores = {
        task: probe_accuracy(backbone, (x_train, y), (x_test, test_tasks[task])) for task, y in train_tasks.items()
    }
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
    parser.add_argument("--steps", type=int, default=300, help="of each method; 700 tell more, in twice the time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, help="use the first so many; all by default")
    parser.add_argument("--out", type=Path, default=Path("out/quickstart"), help="folder of figures and JSON")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    images, labels = (part[: args.images] for part in load_images())
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
