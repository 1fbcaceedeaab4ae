"""Tables and figures from what the runs gave."""

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.evidence.evaluate import rank_of_related
from benchmarks.evidence.factors import TASKS, num_answers
from benchmarks.evidence.methods import SUITES
from benchmarks.tables import table

_TASKS = tuple(TASKS)
_PREFIX = {"vicreg": "VICReg: ", "simclr": "SimCLR: ", "byol": "BYOL: "}
_LAYERS = ", with earlier layers"
Results = dict[str, dict[str, dict[int, Any]]]


def names() -> list[str]:
    return [name for suite in SUITES.values() for name in suite]


def sorted_results(results: Results) -> Results:
    return {
        suite: {name: dict(sorted(results[suite][name].items())) for name in methods if name in results[suite]}
        for suite, methods in SUITES.items()
        if suite in results
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval of Student's t; NaN for one value."""
    half = math.nan
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return float(np.mean(values)), half


def scores(runs: dict[int, Any], kind: str = "linear", tasks: tuple[str, ...] = _TASKS) -> dict[str, list[float]]:
    """Of each task and of their mean, one number a seed."""
    table = {task: [run[kind][task] for run in runs.values()] for task in tasks}
    return table | {"mean": [float(np.mean([run[kind][task] for task in tasks])) for run in runs.values()]}


def oracle(
    methods: dict[str, dict[int, Any]], kind: str = "linear", base: str = "vicreg"
) -> dict[str, list[float]] | None:
    """For each task the best subset of augmentations, composed: what the base could do if it knew the task.

    Of the seeds that every subset ran on.
    """
    subsets, seeds = _subsets(methods, base), oracle_seeds(methods, base)
    if len(subsets) < 2:
        return None
    found = [scores(of(seeds, runs), kind) for runs in subsets]
    best = {task: max((one[task] for one in found), key=np.mean) for task in _TASKS}
    return best | {"mean": [float(np.mean(row)) for row in zip(*best.values(), strict=True)]}


def oracle_seeds(methods: dict[str, dict[int, Any]], base: str = "vicreg") -> set[int]:
    """Those of :func:`oracle`."""
    seeds = [set(runs) for runs in _subsets(methods, base)]
    return set.intersection(*seeds) if seeds else set()


def _subsets(methods: dict[str, dict[int, Any]], base: str) -> list[dict[int, Any]]:
    return [runs for name, runs in methods.items() if name.startswith((f"{base}/without-", f"{base}/composed"))]


def of(seeds: Collection[int], runs: dict[int, Any]) -> dict[int, Any]:
    """In one order, so that methods are compared seed by seed."""
    return {seed: runs[seed] for seed in sorted(seeds)}


def text(document: dict[str, Any]) -> str:
    results = document["results"]
    parts = []
    if "methods" in results:
        parts += [probes(document, "linear"), of_the_object(document), probes(document, "knn")]
    parts += [probes(document, "linear", suite) for suite in ("ablations", "noise", "tuning") if suite in results]
    if "methods" in results:
        parts += [regret(results["methods"]), meaning(results["methods"])]
    parts += [doubt(results), relation(results), cost(results)]
    return "\n\n".join(part for part in parts if part)


def short(document: dict[str, Any]) -> str:
    """README's table: VICReg's rows and the bounds, linear probes."""
    methods = document["results"]["methods"]
    own = {name: runs for name, runs in methods.items() if not name.startswith(("simclr/", "byol/"))}
    return probes({**document, "results": {"methods": own}}, "linear")


def chance(document: dict[str, Any]) -> dict[str, float]:
    """In percent."""
    return {task: 100 / count for task, count in num_answers(document.get("num_classes", 10)).items()}


def probes(document: dict[str, Any], kind: str, suite: str = "methods") -> str:
    """Accuracy by task: mean and half of the 95 % interval."""
    methods = document["results"][suite]
    heading = {"linear": _probe(document), "knn": "20 nearest neighbours, %"}[kind]
    rows = []
    for name, runs in methods.items():
        sources = [kind]
        if kind == "linear" and all("layers" in run for run in runs.values()):
            sources.append("layers")
        for source in sources:
            note = _LAYERS if source == "layers" else ""
            if "/without-" not in name:
                rows.append((_title(suite, name) + note, scores(runs, source)))
        base, _, kind_of_pairs = name.partition("/")
        if suite == "methods" and kind_of_pairs == "composed":
            for source in sources:
                if best := oracle(methods, source, base):
                    title = f"{_PREFIX[base]}best subset for each task (oracle)"
                    rows.append((title + (_LAYERS if source == "layers" else ""), best))
    lines = [[title, *(cell(found[task]) for task in (*_TASKS, "mean"))] for title, found in rows]
    return table([heading, *_TASKS, "mean"], [*lines, _chance(chance(document).values())])


def of_the_object(document: dict[str, Any]) -> str:
    """Linear probes for what no augmentation draws and no method is told; where the images have such labels."""
    methods = {name: runs for name, runs in document["results"]["methods"].items() if "/without-" not in name}
    seen = [run["linear"] for runs in methods.values() for run in runs.values()]
    attributes = [name for name in (seen[0] if seen else ()) if name not in _TASKS]
    if not attributes or not all(set(attributes) <= set(one) for one in seen):
        return ""
    tasks = ("class", *attributes)
    rows = []
    for name, runs in methods.items():
        for kind, note in (("linear", ""), ("layers", _LAYERS)):
            rows.append([_title("methods", name) + note, *map(cell, scores(runs, kind, tasks).values())])
    answers = num_answers(document.get("num_classes", 10), attributes)
    rows.append(_chance(100 / answers[task] for task in tasks))
    return table(["tasks that nobody draws, linear probe, %", *tasks, "mean"], rows)


def _chance(guesses: Iterable[float]) -> list[str]:
    """The last row: what guessing gets right, and its mean."""
    each = [*guesses]
    return ["chance", *(f"{guess:.1f}" for guess in (*each, np.mean(each)))]


def brief(document: dict[str, Any]) -> str:
    """Means, and how far the oracle is where its subsets ran."""
    results = document["results"]
    parts = [means(document, suite) for suite in results]
    return "\n\n".join([*parts, regret(results["methods"])] if "methods" in results else parts).strip()


def means(document: dict[str, Any], suite: str = "methods") -> str:
    """One row a method: the class, means of the six tasks and of those that nobody draws, with earlier layers too."""
    everything = document["results"][suite]
    methods = {name: runs for name, runs in everything.items() if "/without-" not in name}
    first = next(run for runs in methods.values() for run in runs.values())
    own = ("class", *(task for task in first["linear"] if task not in _TASKS))
    columns = [
        ("class", "linear", _TASKS, "class"),
        ("six tasks", "linear", _TASKS, "mean"),
        ("with earlier layers", "layers", _TASKS, "mean"),
        (f"{', '.join(own)}", "linear", own, "mean"),
        ("with earlier layers", "layers", own, "mean"),
    ]
    rows = []
    for name, runs in methods.items():
        found = [scores(runs, kind, tasks)[column] for _, kind, tasks, column in columns]
        rows.append([_title(suite, name), *map(cell, found)])
    if suite == "methods" and (best := oracle(everything)):
        with_layers = oracle(everything, "layers")
        assert with_layers is not None
        cells = [cell(best["class"]), cell(best["mean"]), cell(with_layers["mean"]), "", ""]
        seeds = ", ".join(map(str, sorted(oracle_seeds(everything))))
        rows.append([f"best subset for each task (oracle), seeds {seeds}", *cells])
    return table([f"{_probe(document)}, means", *(title for title, *_ in columns)], rows)


def regret(methods: dict[str, dict[int, Any]]) -> str:
    """How far each method stays behind the best subset of augmentations for each task; by seed, then the mean."""
    columns, lines = (*_TASKS, "mean"), []
    for name, runs in methods.items():
        best = oracle(methods, base=name.split("/")[0])
        if best is None or "/without-" in name:
            continue
        seeds = oracle_seeds(methods, name.split("/")[0])
        if not seeds <= set(runs):
            continue
        mine = scores(of(seeds, runs))
        gaps = [[b - m for b, m in zip(best[column], mine[column], strict=True)] for column in columns]
        lines.append([_title("methods", name), *map(cell, gaps)])
    return table(["regret: points below the best subset for each task (oracle)", *columns], lines) if lines else ""


def meaning(methods: dict[str, dict[int, Any]]) -> str:
    """Probes of each factor inside its mask and outside."""
    lines = []
    for name, runs in methods.items():
        if all("subspaces" in run for run in runs.values()):
            for where in ("inside", "outside"):
                tasks = [task for task in _TASKS if TASKS[task]]
                values = [[run["subspaces"][where].get(task, math.nan) for run in runs.values()] for task in tasks]
                lines.append([f"{_title('methods', name)}, {where}", *map(cell, values)])
    tasks = [task for task in _TASKS if TASKS[task]]
    head = ["probe of a factor on its mask's dimensions of the embedding, and on the rest, %", *tasks]
    return table(head, lines) if lines else ""


def doubt(results: Results) -> str:
    """Rank correlation of strength and predicted log-variance, and AUROC of spoiled views."""
    lines, columns = [], [*(name for name in TASKS.values() if name), "all"]
    for suite, methods in results.items():
        for name, runs in methods.items():
            if all("uncertainty" in run for run in runs.values()) and suite in ("methods", "noise"):
                found = [run["uncertainty"] for run in runs.values()]
                rho = [cell([one["spearman"][column] for one in found], 2) for column in columns]
                auroc = cell([one["auroc"] for one in found], 2)
                lines.append([_title(suite, name), *rho, auroc])
    head = ["predicted uncertainty: rank correlation with strength of", *columns, "AUROC, spoiled views"]
    return table(head, lines) if lines else ""


def relation(results: Results) -> str:
    if "relation" not in results:
        return ""
    lines = []
    for name, runs in results["relation"].items():
        ranks = [rank_of_related(run["subspaces"]) for run in runs.values()]
        pairs = math.comb(len(next(iter(runs.values()))["subspaces"]["names"]), 2)
        lines.append([name, f"{', '.join(map(str, ranks))} of {pairs}"])
    return table(["overlap of what masks leave out", "rank of colour and tint, by seed"], lines, left=2)


def cost(results: Results) -> str:
    methods = results.get("methods", {})
    seconds = {name: float(np.median([run["seconds"] for run in runs.values()])) for name, runs in methods.items()}
    lines = [[_title("methods", name), f"{value:.0f}"] for name, value in seconds.items() if "/without-" not in name]
    return table(["median seconds of training, runs side by side", ""], lines) if lines else ""


def figures(document: dict[str, Any], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = document["results"]
    methods = {n: r for n, r in results.get("methods", {}).items() if n.startswith("vicreg/") and "/without-" not in n}
    if methods:
        columns = (*_TASKS, "mean")
        fig, ax = plt.subplots(figsize=(11, 4), layout="constrained")
        colours = plt.get_cmap("viridis")(np.linspace(0.95, 0, len(methods)))
        width = 0.86 / len(methods)
        for i, (name, runs) in enumerate(methods.items()):
            means, halves = zip(*(interval(scores(runs)[column]) for column in columns), strict=True)
            places = np.arange(len(columns)) + width * (i - (len(methods) - 1) / 2)
            ax.bar(places, means, 0.92 * width, yerr=np.nan_to_num(halves), color=colours[i],
                   label=SUITES["methods"][name].title, error_kw={"linewidth": 0.8})  # fmt: skip
        for i, task in enumerate(_TASKS):
            ax.plot([i - 0.46, i + 0.46], [chance(document)[task]] * 2, color="black", linewidth=0.8, linestyle=":")
        ax.set_xticks(range(len(columns)), columns)
        ax.set_ylabel("linear probe, %")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
        fig.savefig(folder / "probes.png", dpi=130)
        plt.close(fig)
    curves = [
        (f"{_title(suite, name)}", [run["uncertainty"] for run in runs.values()])
        for suite, name in (("methods", "vicreg/mast-uncertainty"), ("noise", "20 % spoiled, uncertainty"))
        if (runs := results.get(suite, {}).get(name))
    ]
    if curves:
        fig, axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 3.6), layout="constrained", squeeze=False)
        for ax, (title, found) in zip(axes[0], curves, strict=True):
            for key in found[0]["curves"]:
                rows = np.array([one["curves"][key] for one in found])
                ax.plot(
                    found[0]["levels"],
                    rows.mean(0) - rows.mean(0)[0],
                    label=key,
                    color="black" if key == "all" else None,
                )
            ax.set_title(title, fontsize=9)
            ax.set_xlabel("strength")
            ax.set_ylabel("log-variance, less that at strength 0")
            ax.spines[["top", "right"]].set_visible(False)
            ax.legend(frameon=False, fontsize=8)
        fig.savefig(folder / "uncertainty.png", dpi=130)
        plt.close(fig)


def _probe(document: dict[str, Any]) -> str:
    probe = document.get("settings", {}).get("probe", "logistic")
    return {"logistic": "linear probe, %", "ridge": "ridge probe, %"}[probe]


def _title(suite: str, name: str) -> str:
    title = SUITES[suite][name].title if suite in ("methods", "tuning") else name
    return _PREFIX.get(name.split("/")[0], "") + title


def cell(values: list[float], digits: int = 1) -> str:
    """The mean, and half of its interval where there are three values: of two it is wider than what it is of."""
    mean, half = interval(values)
    mean = 0.0 if abs(mean) < 0.5 * 10**-digits else mean  # no minus zero
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 2 else "")
