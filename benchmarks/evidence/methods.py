"""Every method of the table, as what it does differently. All share backbone, steps, optimizer and budget."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from benchmarks.evidence.factors import AUGMENTATIONS, RELATED, Scenes, augmentations
from mast_ops import FactorizedViews

AUGSELF = 5.0
BASES = ("vicreg", "simclr", "byol")


@dataclass(frozen=True)
class Method:
    title: str = field(compare=False)
    base: Literal["vicreg", "simclr", "byol", "supervised", "random"]
    pairs: Literal["all", "single", "mixed", "all but one"] = "all"
    """Of `FactorizedViews`; or LooC's: one view, and for each space another that differs from it as the space wants."""
    shared: tuple[str, ...] = ()
    """Augmentations in which no pair differs; with "all" alone."""
    masks: str | None = None
    learned: bool = True
    coverage: float = 0.95
    mask_lr: float = 1.0
    """Of the model's."""
    sensitivity: float | None = 0.0
    """None: the loss's default."""
    uncertainty: Literal["sample", "subspace", "dimension"] | None = None
    scope: Literal["embedding", "subspace"] = "embedding"
    lr: float = 1.0
    """Of the learning rate that all share."""
    options: tuple[tuple[str, float], ...] = ()
    """Of the loss, by name."""
    momentum: float = 0.99
    """Of BYOL's target."""
    augself: float = 0.0
    """Weight of a prediction of how the views' draws differ, from their two features: AugSelf."""
    spoiled: float = 0.0
    """Share of pairs in which one view is ruined."""
    dim: int = 128
    augmentations: tuple[str, ...] = AUGMENTATIONS


def _of_base(base: str) -> dict[str, Method]:
    composed = Method("all augmentations composed", base)
    masked = Method("fixed disjoint masks", base, "mixed", masks="binary", learned=False)
    mast = replace(masked, title="MAST: learned masks", learned=True, sensitivity=None)
    methods = {
        "composed": composed,
        **{
            f"without-{name}": replace(composed, title=f"composed without {name}", shared=(name,))
            for name in AUGMENTATIONS
            if name != "background"
        },
        "looc": Method("all-but-one spaces (LooC)", base, "all but one"),
        "augself": replace(composed, title="composed, told the draws (AugSelf)", augself=AUGSELF),
        "factorised": Method("factorised pairs, no masks", base, "single"),
        "half": Method("half composed, no masks", base, "mixed"),
        "fixed": masked,
        "fixed-sensitive": replace(masked, title="fixed disjoint masks and sensitivity", sensitivity=None),
        "mast": mast,
        "mast-uncertainty": replace(mast, title="MAST: learned masks and uncertainty", uncertainty="subspace"),
    }
    return {f"{base}/{key}": method for key, method in methods.items()}


_ALL = {key: method for base in BASES for key, method in _of_base(base).items()}
METHODS: dict[str, Method] = {
    key: method
    for key, method in _ALL.items()
    # NT-Xent has no use for a predicted variance, and BYOL's loss has no sensitivity by default.
    if key not in ("simclr/mast-uncertainty", "byol/fixed-sensitive")
} | {
    "supervised": Method("supervised, each task its own", "supervised"),
    "random": Method("random features", "random"),
}

_MAST = METHODS["vicreg/mast-uncertainty"]
ABLATIONS: dict[str, Method] = {
    "no sensitivity": replace(_MAST, sensitivity=0.0),
    "sensitivity 3": replace(_MAST, sensitivity=3.0),
    "sensitivity 30": replace(_MAST, sensitivity=30.0),
    "coverage 0.9": replace(_MAST, coverage=0.9),
    "coverage 0.98": replace(_MAST, coverage=0.98),
    "factorised pairs": replace(_MAST, pairs="single"),
    "normalized masks": replace(_MAST, masks="normalized"),
    "sigmoid masks": replace(_MAST, masks="sigmoid"),
    "variance and covariance inside subspaces": replace(_MAST, scope="subspace"),
    "mask learning rate x 10": replace(_MAST, mask_lr=10.0),
    "D=64": replace(_MAST, dim=64),
    "D=256": replace(_MAST, dim=256),
    "uncertainty per sample": replace(_MAST, uncertainty="sample"),
    "uncertainty per dimension": replace(_MAST, uncertainty="dimension"),
    "no uncertainty": replace(_MAST, uncertainty=None),
}
NOISE: dict[str, Method] = {
    "clean, plain": METHODS["vicreg/mast"],
    "clean, uncertainty": _MAST,
    "20 % spoiled, plain": replace(METHODS["vicreg/mast"], spoiled=0.2),
    "20 % spoiled, uncertainty": replace(_MAST, spoiled=0.2),
}
RELATION: dict[str, Method] = {
    f"tint, mask learning rate x {rate}": replace(
        METHODS["vicreg/mast"], augmentations=(*AUGMENTATIONS, RELATED), mask_lr=float(rate)
    )
    for rate in (1, 10)
}


def _tuned() -> dict[str, Method]:
    """Rivals with other settings than theirs in the table, one at a time, for seeds that are not in it."""
    rates = {f"learning rate x {rate}": {"lr": rate} for rate in (0.5, 2.0)}
    told = {f"weight {weight:g}": {"augself": weight} for weight in (1.0, 2.0, 10.0)}
    invariance = {f"invariance {weight:g}": {"options": (("lambda_param", weight),)} for weight in (5.0, 10.0, 50.0)}
    warmth = {f"temperature {t}": {"options": (("temperature", t),)} for t in (0.1, 0.5)}
    momenta = {f"momentum {momentum}": {"momentum": momentum} for momentum in (0.95, 0.996)}
    changes: dict[str, dict[str, dict[str, Any]]] = {
        "vicreg/composed": {**rates, **invariance},
        "vicreg/augself": {**rates, **told, **invariance},
        "vicreg/looc": rates,
        "vicreg/mast": {**rates, **invariance},
        "simclr/composed": {**rates, **warmth},
        "simclr/augself": {**rates, **told},
        "simclr/mast": rates,
        "byol/composed": {**rates, **momenta},
        "byol/augself": {**rates, **told},
    }
    tuned = dict[str, Method]()
    for name, fields_of in changes.items():
        method = tuned[name] = METHODS[name]
        for change, fields in fields_of.items():
            tuned[f"{name}, {change}"] = replace(method, title=f"{method.title}, {change}", **fields)
    return tuned


TUNING = _tuned()
SUITES = {"methods": METHODS, "ablations": ABLATIONS, "noise": NOISE, "relation": RELATION, "tuning": TUNING}


def make_views(method: Method, scenes: Scenes, generator: torch.Generator) -> FactorizedViews:
    """Of batches of :func:`benchmarks.evidence.factors.layers`."""
    calls = augmentations(scenes, method.augmentations)
    pairs: Any = method.pairs
    if method.shared:
        assert method.pairs == "all"
        pairs = torch.tensor([[name not in method.shared for name in calls]])
    elif method.pairs == "all but one":
        pairs = "all"
    return FactorizedViews(calls, pairs=pairs, batched=True, generator=generator)


def canonical(suite: str, name: str) -> tuple[str, str]:
    """The first place of the same method: it is run once."""
    method = SUITES[suite][name]
    return next((s, n) for s, methods in SUITES.items() for n, other in methods.items() if other == method)
