"""What the runs show, in sentences whose numbers come from the runs themselves. Differences are taken seed by seed."""

from typing import Any

import numpy as np

from benchmarks.evidence.factors import AUGMENTATIONS, SIZE, TASKS
from benchmarks.evidence.report import interval, oracle, rank_of_related, scores
from benchmarks.tables import table

_TASKS = tuple(TASKS)
_BASES = {"vicreg": "VICReg", "simclr": "SimCLR", "byol": "BYOL"}
_RIVALS = {
    "composed": "pairs that differ in all augmentations, no masks",
    "augself": "the same, told the random draws (AugSelf)",
    "looc": "a projector for each augmentation (LooC), eight views an image",
    "factorised": "pairs that differ in one augmentation, no masks",
    "half": "both kinds of pairs in halves, no masks",
    "fixed": "fixed disjoint masks",
    "fixed-sensitive": "fixed disjoint masks and sensitivity",
}
_COLUMNS = {"linear": "last features", "layers": "earlier layers too"}
_ORACLE = "VICReg, retrained for each task with the best augmentations for it"
Seeds = dict[int, Any]
Runs = dict[str, Seeds]


def result(document: dict[str, Any]) -> str:
    """README's one result: a table of three means, and its limit."""
    methods = document["results"]["methods"]
    rows = {
        "VICReg": "vicreg/composed",
        "AugSelf, which is told the random draws": "vicreg/augself",
        "**VICReg with mast-ops**": "vicreg/mast",
    }
    kinds = [kind for kind in ("linear", "layers") if kind in next(iter(methods["vicreg/mast"].values()))]
    lines = [
        [title, *(_figure(scores(methods[name], kind)["mean"]) for kind in kinds)]
        for title, name in rows.items()
        if name in methods
    ]
    best = [oracle(methods, kind) for kind in kinds]
    lines.append([_ORACLE, *(_figure(row["mean"]) for row in best if row is not None)])
    head = f"mean of six tasks, %, ± half its 95 % interval, {len(document['seeds'])} seeds"
    means = table([head, *(_COLUMNS[kind] for kind in kinds)], lines)
    fixed = _figure(_difference(methods, "vicreg/mast", "vicreg/fixed-sensitive"))
    limits = [
        f"**Its limits.** The images are {SIZE} pixels wide, the network has 0.2 million parameters, and training took "
        f"{document['settings']['steps']} steps.",
        _elsewhere(methods),
        f"Learned masks do no better than fixed ones ({fixed} points apart).",
        "No result of the paper was reproduced.",
    ]
    if "layers" in kinds:
        limits.insert(
            1,
            "What the last features of a plain model lack, its earlier layers keep in part: "
            f"where the probe reads these too, mast-ops {_layers(methods)}.",
        )
    return means + "\n\n" + " ".join(limits)


def differences(document: dict[str, Any]) -> str:
    """MAST's mean over tasks less that of every other method with the same base."""
    methods = document["results"]["methods"]
    lines = []
    for key, title in _RIVALS.items():
        cells = [
            _figure(_difference(methods, f"{base}/mast", f"{base}/{key}")) if f"{base}/{key}" in methods else "not run"
            for base in _BASES
        ]
        lines.append([title, *cells])
    return table(["mean of six tasks: MAST's lead over", *_BASES.values()], lines)


def _elsewhere(methods: Runs) -> str:
    """The rivals on the other bases."""
    simclr, byol = (_behind(methods, base) for base in ("simclr", "byol"))
    return (
        f"It is behind AugSelf by {simclr['augself']} points on SimCLR and {byol['augself']} on BYOL, "
        f"and behind LooC by {simclr['looc']} and {byol['looc']}."
    )


def _behind(methods: Runs, base: str) -> dict[str, str]:
    """How far MAST is below the strongest rivals."""
    return {key: _figure(_difference(methods, f"{base}/{key}", f"{base}/mast")) for key in ("augself", "looc")}


def _layers(methods: Runs) -> str:
    """MAST against composed pairs where the probe reads earlier layers too."""
    lead = _figure(_difference(methods, "vicreg/mast", "vicreg/composed", "layers"))
    behind = [
        f"{_figure(_difference(methods, f'{base}/composed', f'{base}/mast', 'layers'))} behind {_BASES[base]}"
        for base in ("simclr", "byol")
    ]
    return f"leads VICReg by {lead} points, and is {' and '.join(behind)}"


def _rivals(methods: Runs) -> list[str]:
    """The strongest ones, where they were run."""
    found = []
    if "layers" in next(iter(methods["vicreg/mast"].values())):
        found.append(
            "**Most of the gain is in a plain model too, in its earlier layers.** Where the probe reads the outputs of "
            f"the first two blocks beside the last features, MAST {_layers(methods)} with composed pairs."
        )
    if "vicreg/augself" in methods:
        last, both = (
            _figure(_difference(methods, "vicreg/augself", "vicreg/mast", kind)) for kind in ("linear", "layers")
        )
        found.append(
            "**AugSelf does as well or better, with more information.** Its mean is "
            f"{last} points above that of MAST, and {both} with earlier layers. It is told every draw, and five of the "
            "six tasks are draws; MAST is told which augmentations differ."
        )
    if "simclr/augself" in methods:
        found.append(
            "**On SimCLR no rival is behind.** AugSelf is {augself} points above MAST, and LooC, which takes eight "
            "views of an image, {looc}.".format(**_behind(methods, "simclr"))
        )
    return found


def claims(document: dict[str, Any]) -> str:
    results = document["results"]
    methods = results["methods"]
    return "\n".join(
        f"- {claim}"
        for claim in (
            *_gains(methods),
            *_rivals(methods),
            _shortfall(methods),
            _byol(methods),
            _meaning(methods),
            *_uncertainty(methods, results["noise"]),
            _relation(results["relation"]),
        )
    )


def looc(document: dict[str, Any], longer: dict[str, Any]) -> str:
    """MAST's lead over LooC, in as many steps and from as many views: LooC takes eight of an image, MAST two."""
    few, many = document["results"]["methods"], longer["results"]["methods"]
    steps, more = (each["settings"]["steps"] for each in (document, longer))
    assert more == steps * (len(AUGMENTATIONS) + 2) // 2
    own = ("class", *sorted(next(iter(few["vicreg/looc"].values()))["linear"].keys() - set(_TASKS)))
    columns: list[tuple[str, str, tuple[str, ...], str]] = [
        ("class", "linear", _TASKS, "class"),
        ("six tasks", "linear", _TASKS, "mean"),
        ("with earlier layers", "layers", _TASKS, "mean"),
        ("tasks that nobody draws", "linear", own, "mean"),
    ]
    lines = []
    for base, title in _BASES.items():
        for equal, run, methods in (("steps", steps, few), ("views", more, many)):
            if (ours := methods.get(f"{base}/mast")) and (theirs := few.get(f"{base}/looc")):
                cells = [_figure(_apart(ours, theirs, kind, task, tasks)) for _, kind, tasks, task in columns]
                lines.append([f"{title}, as many {equal}: MAST in {run:,} steps", *cells])
    return table([f"MAST's lead over LooC in {steps} steps", *(title for title, *_ in columns)], lines)


def ablations(document: dict[str, Any]) -> str:
    """Means alone: intervals of two seeds are in the full tables."""
    columns = ("class", "sharpness", "mean")
    lines = []
    for title, runs in document["results"]["ablations"].items():
        found = scores(runs)
        lines.append([title, *(f"{np.mean(found[column]):.1f}" for column in columns)])
    return table([f"change, {len(document['seeds'])} seeds", "class", "sharpness", "mean of six tasks, %"], lines)


def _gains(methods: Runs) -> list[str]:
    lead = {key: _figure(_difference(methods, "vicreg/mast", f"vicreg/{key}")) for key in _RIVALS}
    other = {
        key: _figure(_difference(methods, "simclr/mast", f"simclr/{key}"))
        for key in _RIVALS
        if f"simclr/{key}" in methods
    }
    sensitivity = _figure(_difference(methods, "vicreg/fixed-sensitive", "vicreg/fixed"))
    names = ("composed", "looc", "factorised", "fixed")  # none has sensitivity
    sharp = {key: np.mean(scores(methods[f"vicreg/{key}"])["sharpness"]) for key in ("mast", *names, "half")}
    rest = [value for key, value in sharp.items() if key != "mast"]
    return [
        "**One set of features serves more of the six tasks.** On VICReg the mean of MAST is "
        f"{lead['composed']} points above that of pairs that differ in all augmentations. "
        f"It is {lead['factorised']} above pairs that differ in one augmentation without masks, and "
        f"{lead['fixed']} above fixed masks without sensitivity. On SimCLR these leads are "
        f"{other['composed']}, {other['factorised']} and {other['fixed']}.",
        "**The gain has two sources.** A mask leaves dimensions free, and the sensitivity term asks these dimensions "
        f"to change with the mask's augmentation. Fixed masks gain {sensitivity} points by sensitivity, of the "
        f"{lead['composed']} above. It is what keeps sharpness: "
        f"{sharp['mast']:.0f} % against {min(rest):.0f} to {max(rest):.0f} % "
        "without it.",
        f"**Learning the masks does not pay.** Fixed disjoint masks with the same sensitivity term do as well: "
        f"the means are {lead['fixed-sensitive']} points apart.",
    ]


def _shortfall(methods: Runs) -> str:
    best, ours = oracle(methods), scores(methods["vicreg/mast"])
    assert best is not None
    gaps = {task: np.mean(best[task]) - np.mean(ours[task]) for task in _TASKS}
    listed = ", ".join(f"{task} {gap:.0f}" for task, gap in sorted(gaps.items(), key=lambda item: -item[1]))
    return (
        "**An oracle is better on every task.** It trains VICReg once for each task, with the best subset of "
        f"augmentations for that task. MAST lies below it by these points: {listed}."
    )


def _byol(methods: Runs) -> str:
    others = ("composed", "factorised", "fixed")
    lead = {key: _figure(_difference(methods, "byol/mast", f"byol/{key}")) for key in others}
    behind = _behind(methods, "byol")
    layers = _figure(_difference(methods, "byol/composed", "byol/mast", "layers"))
    return (
        f"**On BYOL the method does not pay.** MAST is {lead['composed']} points above pairs that differ in "
        f"all augmentations, and with earlier layers {layers} below them. LooC is {behind['looc']} above MAST, and "
        f"AugSelf {behind['augself']}. Pairs that differ in one augmentation do as well "
        f"({lead['factorised']}), and so do fixed masks ({lead['fixed']}). "
        "Sensitivity is off in BYOL: a prediction and its target differ for reasons other than the augmentation."
    )


def _meaning(methods: Runs) -> str:
    runs = methods["vicreg/mast"].values()

    def read(where: str, task: str) -> float:
        return float(np.mean([run["subspaces"][where][task] for run in runs]))

    tasks = ("color", "position", "sharpness", "scale")
    listed = ", ".join(f"{task} {read('inside', task):.0f} % against {read('outside', task):.0f} %" for task in tasks)
    return (
        "**Masks mean something on VICReg.** A probe reads a factor worse from the dimensions inside the mask of its "
        f"augmentation than from the twentieth outside: {listed}. On SimCLR the difference is small."
    )


def _uncertainty(methods: Runs, noise: Runs) -> list[str]:
    clean = _figure(_difference(methods, "vicreg/mast-uncertainty", "vicreg/mast"))
    fall = {
        kind: np.subtract(scores(noise[f"clean, {kind}"])["mean"], scores(noise[f"20 % spoiled, {kind}"])["mean"])
        for kind in ("plain", "uncertainty")
    }
    spoiled = [run["uncertainty"] for run in noise["20 % spoiled, uncertainty"].values()]
    trained = [run["uncertainty"] for run in methods["vicreg/mast-uncertainty"].values()]
    auroc, blind = (np.mean([one["auroc"] for one in found]) for found in (spoiled, trained))
    rho = np.mean([one["spearman"]["all"] for one in trained])
    return [
        f"**Predicted uncertainty protects from ruined pairs.** On clean pairs it changes the mean by {clean} points. "
        f"Where one view of 20 % of the pairs is spoiled, the mean falls by {np.mean(fall['uncertainty']):.1f} points "
        f"with it and by {np.mean(fall['plain']):.1f} without it; the difference is "
        f"{_figure(fall['plain'] - fall['uncertainty'])}. The predicted variance then tells spoiled views from "
        f"whole ones (AUROC {auroc:.2f}). A model that never saw a spoiled pair calls spoiled views *certain* "
        f"(AUROC {blind:.2f}).",
        "**Not reproduced by the likelihood: uncertainty that rises with strength.** The rank correlation with the "
        f"strength of all augmentations together is {rho:.2f}. Uncertainty rises for rotation and colour, "
        f"and falls for blur and scale. A prediction of which view is the harder one rises, "
        "[below](#uncertainty-that-means-difficulty).",
    ]


def _relation(relation: Runs) -> str:
    fast, slow = (
        ", ".join(
            str(rank_of_related(run["subspaces"])) for run in relation[f"tint, mask learning rate x {rate}"].values()
        )
        for rate in (10, 1)
    )
    return (
        "**Not reproduced: overlap of masks that shows which augmentations are related.** A seventh augmentation, "
        "tint, moved the same hue as colour did. Among 21 pairs of masks, "
        "colour and tint should have ranked first. They "
        f"ranked {fast} by seed where masks learned ten times as fast as the model, and {slow} where they learned "
        "at its rate."
    )


def cost(document: dict[str, Any]) -> str:
    """What MAST costs where no augmentation matters: a probe's accuracy on the class."""
    methods = document["results"]["methods"]
    lines = []
    for base, title in _BASES.items():
        plain, mast = (scores(methods[f"{base}/{key}"])["class"] for key in ("composed", "mast"))
        apart = _difference(methods, f"{base}/mast", f"{base}/composed", task="class")
        lines.append([title, *map(_figure, (plain, mast, apart))])
    return table(["linear probe on the class, %", "plain", "MAST", "difference"], lines)


def _difference(methods: Runs, ours: str, other: str, kind: str = "linear", task: str = "mean") -> list[float]:
    return _apart(methods[ours], methods[other], kind, task)


def _apart(ours: Seeds, theirs: Seeds, kind: str, task: str, tasks: tuple[str, ...] = _TASKS) -> list[float]:
    """Seed by seed."""
    pairs = zip(scores(ours, kind, tasks)[task], scores(theirs, kind, tasks)[task], strict=True)
    return [a - b for a, b in pairs]


def _figure(values: Any) -> str:
    mean, half = interval(list(values))
    mean = 0.0 if abs(mean) < 0.05 else mean  # no minus zero
    return f"{mean:.1f} ± {half:.1f}"
