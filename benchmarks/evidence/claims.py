"""What the runs show, in sentences whose numbers come from the runs themselves. Differences are taken seed by seed."""

from typing import Any

import numpy as np

from benchmarks.evidence.factors import AUGMENTATIONS, SIZE, TASKS
from benchmarks.evidence.report import brief, interval, means, oracle, rank_of_related, scores
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
_KINDS = {"linear": "six tasks", "layers": "earlier layers too"}
_TUNED = {"composed": "composed pairs", "augself": "AugSelf", "looc": "LooC", "mast": "MAST"}
Seeds = dict[int, Any]
Runs = dict[str, Seeds]


def result(document: dict[str, Any], tuned: dict[str, Any]) -> str:
    """README's one result: every method at its best, and the limit of what that shows."""
    methods = _best(tuned)
    titles = {
        "VICReg": "vicreg/composed",
        "AugSelf, which is told the random draws": "vicreg/augself",
        "LooC, from eight views of each image": "vicreg/looc",
        "**VICReg with mast-ops**": "vicreg/mast",
    }
    columns = [*((title, kind, "mean") for kind, title in _KINDS.items()), ("class alone", "linear", "class")]
    lines = [
        [title, *(_figure(scores(methods[name], kind)[task]) for _, kind, task in columns)]
        for title, name in titles.items()
    ]
    head = f"%, ± half of the 95 % interval, {len(tuned['seeds'])} seeds"
    rows = table([head, *(title for title, *_ in columns)], lines)
    usual = document["results"]["methods"]
    fixed = _figure(_difference(usual, "vicreg/mast", "vicreg/fixed-sensitive"))
    limits = [
        f"**Its limits.** The images are {SIZE} pixels wide, the network has 0.2 million parameters, and training took "
        f"{tuned['settings']['steps']} steps.",
        "What the last features of a plain model lack, its earlier layers keep: with these the lead of mast-ops over "
        f"plain training, in points, is {_leads(methods, 'composed', 'layers')}.",
        f"In the last features AugSelf leads it by {_leads(methods, 'augself', sign=-1)}.",
        f"Learned masks do no better than fixed ones ({fixed} points apart).",
        "No result of the paper was reproduced.",
    ]
    return rows + "\n\n" + " ".join(limits)


def answer(tuned: dict[str, Any], usual: dict[str, Any]) -> str:
    """Does it help? Every method at its best, on every base; MAST's lead, or its rival's."""
    methods = _best(tuned)
    fixed = _leads(usual["results"]["methods"], "fixed-sensitive")
    plain = _leads(methods, "composed", task="class", sign=-1)
    found = [
        "**Last features serve more tasks.** MAST leads composed pairs in the mean of six tasks by "
        f"{_leads(methods, 'composed')}.",
        f"**Earlier layers make up for most of it.** With these the lead is {_leads(methods, 'composed', 'layers')}.",
        f"**The class pays for it.** Composed pairs lead there by {plain}.",
        "**AugSelf, which is told the random draws, is better.** It leads MAST in the mean of six tasks by "
        f"{_leads(methods, 'augself', sign=-1)}.",
        "**LooC, from eight views of each image, is level or better.** It leads by "
        f"{_leads(methods, 'looc', sign=-1)}, and takes four times as long; [at equal work](#looc-at-equal-work) MAST "
        "leads on VICReg and SimCLR.",
        f"**Learned masks do no better than fixed ones.** Their lead, with usual settings, is {fixed}.",
    ]
    return "\n".join(f"- {line}" for line in found)


def tuning(document: dict[str, Any], best: int = 3) -> str:
    """Of each method the usual setting and the best, by the mean of both columns; every setting is in the JSON."""
    settings: dict[str, list[tuple[str, Seeds]]] = {}
    for name, runs in document["results"]["tuning"].items():
        settings.setdefault(name.split(",")[0], []).append((name, runs))
    lines = []
    for method, tried in settings.items():
        usual, *others = tried
        others.sort(key=lambda one: -_both(one[1]))
        for name, runs in (usual, *others[:best]):
            change = name.removeprefix(method).removeprefix(", ") or f"usual; {len(tried)} tried"
            found = [scores(runs, kind) for kind in _KINDS]
            numbers = [found[0]["class"], *(one["mean"] for one in found)]
            seeds = ", ".join(map(str, sorted(runs)))
            title = f"{_BASES[method.split('/')[0]]}: {_TUNED[method.split('/')[1]]}"
            lines.append([title, change, seeds, *(f"{np.mean(x):.1f}" for x in (*numbers, _both(runs)))])
    head = ["ridge probe, %", "setting", "seeds", "class", *_KINDS.values(), "mean of both"]
    return table(head, lines, left=3)


def _both(runs: Seeds) -> float:
    return float(np.mean([scores(runs, kind)["mean"] for kind in _KINDS]))


def tuned(document: dict[str, Any]) -> str:
    """Every method at its best on the seeds of the table, and MAST's lead over each, seed by seed."""
    return f"{means(document, 'tuning')}\n\n{_lead_table(_best(document))}"


def longer(document: dict[str, Any]) -> str:
    """With usual settings and as tuned, and the leads of these."""
    return f"{brief(document)}\n\n{_lead_table(_best(document))}"


def _lead_table(methods: Runs) -> str:
    columns = _columns(next(iter(methods.values())))
    lines = []
    for base, title in _BASES.items():
        for key, rival in _TUNED.items():
            if key != "mast" and (theirs := methods.get(f"{base}/{key}")):
                ours = methods[f"{base}/mast"]
                cells = [_figure(_apart(ours, theirs, kind, task, tasks)) for _, kind, tasks, task in columns]
                lines.append([f"{title}: {rival}", *cells])
    return table(["MAST, tuned, leads", *(c[0] for c in columns)], lines)


def _best(tuned: dict[str, Any]) -> Runs:
    """By the names that methods have in the main table: of each, one setting ran on these seeds."""
    found = {name.split(",")[0]: runs for name, runs in tuned["results"]["tuning"].items()}
    assert len(found) == len(tuned["results"]["tuning"])
    return found


def _columns(runs: Seeds) -> list[tuple[str, str, tuple[str, ...], str]]:
    own = ("class", *sorted(next(iter(runs.values()))["linear"].keys() - set(_TASKS)))
    return [
        ("class", "linear", _TASKS, "class"),
        ("six tasks", "linear", _TASKS, "mean"),
        ("with earlier layers", "layers", _TASKS, "mean"),
        ("tasks that nobody draws", "linear", own, "mean"),
    ]


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


def _leads(methods: Runs, rival: str, kind: str = "linear", task: str = "mean", sign: int = 1) -> str:
    """MAST's over a rival, on every base that has both; with a sign of -1 the rival's."""
    each = [
        f"{_figure([sign * lead for lead in _difference(methods, f'{base}/mast', f'{base}/{rival}', kind, task)])} "
        f"on {title}"
        for base, title in _BASES.items()
        if f"{base}/{rival}" in methods
    ]
    return " and ".join(filter(None, [", ".join(each[:-1]), each[-1]]))


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


def looc(document: dict[str, Any], tuned: dict[str, Any], longer: dict[str, Any]) -> str:
    """MAST's lead over LooC, in as many steps and from as many views: LooC takes eight of an image, MAST two.

    As tuned; longer runs have the usual settings.
    """
    few, many = document["results"]["methods"] | _best(tuned), longer["results"]["methods"]
    steps, more = (each["settings"]["steps"] for each in (document, longer))
    assert more == steps * (len(AUGMENTATIONS) + 2) // 2
    columns = _columns(few["vicreg/looc"])
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
