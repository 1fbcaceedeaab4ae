"""Every method of the table, as what it does differently. All share backbone, steps, optimizer and budget."""

import itertools
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
    share: float = 0.5
    """Of pairs that differ in all augmentations; with "mixed" alone."""
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


_SETTINGS = {
    "share": "{:.0%} composed",
    "momentum": "momentum {}",
    "sensitivity": "sensitivity {:g}",
    "coverage": "coverage {}",
    "augself": "weight {:g}",
    "lambda_param": "invariance {:g}",
    "nu_param": "covariance {:g}",
    "temperature": "temperature {}",
    "lr": "learning rate x {}",
}


def _grid(**values: tuple[float, ...]) -> list[dict[str, float]]:
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def _tuned() -> dict[str, Method]:
    """Rivals and MAST with other settings than theirs in the table: one number at a time, then some that paid together.

    For seeds that are not in the table.
    """
    rates = _grid(lr=(0.5, 2.0, 4.0))
    told = [
        *_grid(augself=(0.5, 1.0, 2.0, 10.0)),
        *_grid(augself=(1.0, 2.0), lr=(2.0,)),
        *_grid(augself=(1.0,), lr=(4.0,)),
    ]
    invariance = _grid(lambda_param=(5.0, 10.0, 50.0))
    warmth = _grid(temperature=(0.1, 0.5))
    momenta = _grid(momentum=(0.95, 0.996))
    changes = {
        "vicreg/composed": [
            *rates,
            *_grid(lambda_param=(5.0, 7.0, 10.0, 15.0, 50.0)),
            *_grid(lambda_param=(10.0,), lr=(0.5, 2.0, 4.0)),
            *_grid(lambda_param=(10.0,), nu_param=(0.1, 0.25, 0.5, 4.0)),
            *_grid(lambda_param=(5.0, 7.0, 15.0), nu_param=(0.25,)),
            *_grid(lambda_param=(10.0,), nu_param=(0.25,), lr=(0.5, 2.0, 4.0)),
            *_grid(lambda_param=(7.0,), nu_param=(0.25,), lr=(2.0,)),
        ],
        "vicreg/augself": [
            *rates,
            *told,
            *invariance,
            *_grid(augself=(1.0,), lambda_param=(10.0,)),
            *_grid(augself=(2.0, 5.0), lr=(4.0,), nu_param=(0.25,)),
            *_grid(augself=(2.0,), lr=(4.0,)),
            *_grid(lr=(8.0, 16.0)),
            *_grid(augself=(1.0, 2.0, 10.0), lr=(8.0,)),
            *_grid(augself=(10.0,), lr=(16.0,)),
            *_grid(lambda_param=(10.0, 15.0, 50.0), lr=(8.0,)),
            *_grid(lambda_param=(10.0,), lr=(16.0,)),
            *_grid(nu_param=(0.25,), lr=(8.0,)),
            *_grid(lambda_param=(10.0,), nu_param=(0.25,), lr=(8.0,)),
            *_grid(augself=(2.0,), lambda_param=(10.0,), nu_param=(0.25,), lr=(8.0,)),
        ],
        "vicreg/looc": [
            *rates,
            *_grid(lambda_param=(5.0, 7.0, 10.0, 15.0, 50.0)),
            *_grid(lambda_param=(10.0,), lr=(0.5, 2.0)),
            *_grid(lambda_param=(10.0,), nu_param=(0.1, 0.25, 0.5)),
            *_grid(lambda_param=(7.0,), nu_param=(0.25,)),
        ],
        "vicreg/mast": [
            *rates,
            *invariance,
            *_grid(sensitivity=(5.0, 20.0)),
            *_grid(coverage=(0.9, 0.97)),
            *_grid(sensitivity=(5.0,), lr=(2.0,)),
            *_grid(coverage=(0.97,), lr=(2.0,)),
            *_grid(nu_param=(0.25,), lr=(1.0, 2.0, 4.0)),
            *_grid(lambda_param=(10.0, 15.0), nu_param=(0.25,), lr=(2.0, 4.0)),
            *_grid(lambda_param=(10.0,), nu_param=(0.25,), lr=(8.0,)),
            *_grid(sensitivity=(15.0,), lambda_param=(10.0,), nu_param=(0.25,), lr=(8.0,)),
            *_grid(lr=(8.0,)),
            *_grid(sensitivity=(20.0,), nu_param=(0.25,), lr=(2.0, 4.0)),
            *_grid(coverage=(0.97,), nu_param=(0.25,), lr=(2.0, 4.0)),
            *_grid(share=(0.8,), lr=(2.0,)),
            *_grid(share=(0.8,), sensitivity=(20.0,)),
            *_grid(share=(0.65, 0.8), lambda_param=(10.0,), nu_param=(0.25,), lr=(4.0,)),
            *_grid(share=(0.8,), sensitivity=(3.0,), lambda_param=(10.0,), nu_param=(0.25,), lr=(4.0,)),
        ],
        "simclr/composed": [
            *rates,
            *warmth,
            *_grid(temperature=(0.1,), lr=(0.5, 2.0)),
            *_grid(temperature=(0.5,), lr=(2.0,)),
            *_grid(lr=(0.25,)),
            *_grid(temperature=(0.05, 0.15, 0.3)),
            *_grid(temperature=(0.1,), lr=(0.25, 4.0)),
        ],
        "simclr/augself": [
            *rates,
            *told,
            *warmth,
            *_grid(augself=(1.0,), lr=(8.0, 16.0)),
            *_grid(augself=(0.5,), lr=(4.0, 8.0, 16.0)),
            *_grid(augself=(2.0, 5.0), lr=(8.0,)),
            *_grid(augself=(1.0,), temperature=(0.1, 0.5), lr=(8.0,)),
            *_grid(augself=(1.0,), temperature=(0.1,), lr=(4.0,)),
        ],
        "simclr/looc": [*rates, *warmth, *_grid(temperature=(0.1,), lr=(2.0,))],
        "simclr/mast": [
            *rates,
            *_grid(lr=(8.0,)),
            *warmth,
            *_grid(sensitivity=(1.0, 2.0)),
            *_grid(sensitivity=(2.0,), lr=(4.0,)),
            *_grid(share=(0.8, 0.95), lr=(2.0,)),
            *_grid(share=(0.8,), sensitivity=(0.5, 1.0, 2.0, 3.0), lr=(4.0,)),
            *_grid(share=(0.7,), sensitivity=(1.0,), lr=(4.0,)),
        ],
        "byol/composed": [
            *rates,
            *momenta,
            *_grid(momentum=(0.95,), lr=(0.25, 0.5, 2.0)),
            *_grid(lr=(0.25,)),
            *_grid(momentum=(0.9,)),
            *_grid(momentum=(0.9, 0.996), lr=(0.5,)),
        ],
        "byol/augself": [
            *rates,
            *told,
            *momenta,
            *_grid(lr=(8.0, 16.0)),
            *_grid(augself=(1.0, 2.0, 10.0), lr=(8.0,)),
            *_grid(augself=(2.0,), lr=(4.0,)),
            *_grid(momentum=(0.95,), lr=(4.0, 8.0)),
            *_grid(momentum=(0.9, 0.996), lr=(8.0,)),
        ],
        "byol/looc": [*rates, *momenta],
        "byol/mast": [*rates, *momenta, *_grid(momentum=(0.9,)), *_grid(momentum=(0.95,), lr=(2.0,))],
    }
    tuned = dict[str, Method]()
    for name, each in changes.items():
        method = tuned[name] = METHODS[name]
        for values in each:
            change = ", ".join(_SETTINGS[key].format(value) for key, value in values.items())
            own = {key: value for key, value in values.items() if key in Method.__dataclass_fields__}
            options = tuple((key, value) for key, value in values.items() if key not in own)
            changed: dict[str, Any] = {**own, "options": options, "title": f"{method.title}, {change}"}
            tuned[f"{name}, {change}"] = replace(method, **changed)
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
    weights = None
    if method.share != 0.5:
        assert pairs == "mixed"
        weights = [*[(1 - method.share) / len(calls)] * len(calls), method.share]
    return FactorizedViews(calls, pairs=pairs, weights=weights, batched=True, generator=generator)


def canonical(suite: str, name: str) -> tuple[str, str]:
    """The first place of the same method: it is run once."""
    method = SUITES[suite][name]
    return next((s, n) for s, methods in SUITES.items() for n, other in methods.items() if other == method)
