"""Random calls of the library against plain formulas in float64: ``python -m tests.differential --cases 20000``.

A case is drawn from its number alone: what a run prints is found again by ``--case NUMBER``. Values and gradients may
err as far as the plain formula does in the same dtype, or as far as inputs that are rounded once more differ, and no
further. Where the formula is not finite, the library must not be either.
"""

import argparse
import os
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).parent))

import references as ref
import torch
from cases import LAYOUTS, laid
from torch import Tensor

import mast_ops
import mast_ops.functional as MF
from mast_ops import SubspaceOutput
from mast_ops.kernels.chunked import moments, pairs, products, scores

HALVES = (torch.float16, torch.bfloat16)
Leaves = dict[str, Tensor]


@dataclass
class Setting:
    """One case: the tensors of a call, and how it is made."""

    draw: random.Random
    generator: torch.Generator
    leaves: Leaves = field(default_factory=dict)
    kinds: Tensor | None = None
    kind: Tensor | None = None
    sample: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    region: torch.dtype | None = None
    text: dict[str, Any] = field(default_factory=dict)

    @property
    def scale_free(self) -> bool:
        """Whether values say nothing of the size of what they are made of."""
        return (
            self.text.get("distance") == "cosine"
            or self.text["name"] in ("masked_cosine", "info_nce", "nt_xent", "sup_con", "sigmoid", "barlow_twins")
            or (self.text["name"] == "loss" and self.text["loss"] not in ("vicreg", "invariance"))
        )

    @property
    def pairs(self) -> dict[str, Any]:
        return {"kinds": self.kinds if self.kind is not None else None, "kind": self.kind}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def placed(self, x: Tensor) -> Tensor:
        """What is learned of nothing, such as an index, in memory in some other way."""
        layout = self.draw.choice([None, None, *LAYOUTS])
        return x if layout in (None, "expanded") else laid(x, layout)

    def choose(self, name: str, *values: Any) -> Any:
        value = self.text[name] = self.draw.choice(values)
        return value


def draw_setting(number: int, seed: int) -> Setting:
    draw = random.Random(seed * 1_000_003 + number)
    s = Setting(draw, torch.Generator().manual_seed(draw.getrandbits(40)))
    n, d = s.choose("n", 2, 3, 4, 5, 7, 9, 16, 33), s.choose("d", 1, 2, 3, 5, 8, 17, 40)
    k = s.choose("k", 1, 2, 3, 5)
    dtypes = [torch.float64, torch.float32, torch.float32, *HALVES]
    dtype = s.choose("dtype", *dtypes)
    other = dtype if dtype == torch.float64 else s.choose("other", dtype, dtype, torch.float32, *HALVES)
    size = s.choose("size", 1, 1, 1, 1e-3, 1e2) if dtype not in HALVES and other not in HALVES else 1
    z0 = s.normal(n, d) * size + s.choose("offset", 0, 0, 0, 5) * size
    near = s.choose("near", None, None, 0.3, 1e-3, 0.0)
    z1 = s.normal(n, d) * size if near is None else z0 + near * size * s.normal(n, d)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    s.leaves = {"z0": z0.to(dtype), "z1": z1.to(other), "masks": draw_masks(s, k, d).to(wide)}
    s.backend = s.draw.choice(["auto", "eager", "chunked", "chunked"])
    if wide == torch.float32 and n * d * k < 200 and s.draw.random() < 0.05:  # its interpreter takes its time
        s.backend = "triton"
    if s.choose("of kinds", False, True):
        s.kinds = s.choose("table", None, "random")
        if s.kinds is not None:
            rows = torch.rand(s.draw.randint(1, 4), k, generator=s.generator) < 0.5
            s.kinds = torch.cat([rows[rows.any(1)], torch.eye(k, dtype=torch.bool), torch.ones(1, k).bool()])
            s.kinds = s.kinds.unique(dim=0) if k > 1 else torch.ones(1, 1).bool()
            s.kinds = s.placed(s.kinds)
        s.kind = s.placed(torch.randint(k if s.kinds is None else len(s.kinds), (n,), generator=s.generator))
    s.region = s.choose("region", None, None, None, *HALVES)
    s.text["backend"] = s.backend
    return s


def draw_masks(s: Setting, k: int, d: int) -> Tensor:
    form = s.choose("masks", "open", "sparse", "binary", "signed", "closed row", "large")
    masks = torch.rand(k, d, generator=s.generator, dtype=torch.float64) * 0.95 + 0.02
    if form == "sparse":
        masks = masks * (torch.rand(k, d, generator=s.generator) < 0.3)
    if form == "binary":
        masks = (masks > 0.4).double()
    if form == "signed":
        masks = masks - 0.5
    if form == "closed row":
        masks[0] = 0
    return masks * 3 if form == "large" else masks


Answer = Tensor | tuple[Tensor, ...]
Function = Callable[[Leaves], Answer]
OPERATIONS: dict[str, Callable[[Setting], tuple[Function, Function]]] = {}
"""Each draws its own options, and gives the library's function and the formula's, of the same leaves."""


def operation(make: Callable[[Setting], tuple[Function, Function]]) -> Callable[[Setting], tuple[Function, Function]]:
    OPERATIONS[make.__name__] = make
    return make


def reduced(s: Setting, losses: Tensor, reduction: str) -> Tensor:
    """(N, R), or (N,) of kinds of pairs, or the mean."""
    return losses.mean() if reduction == "mean" else losses if s.kind is None else losses.squeeze(1)


def seen(s: Setting, x: Leaves) -> Tensor:
    return ref.seen_by(x["masks"], s.kinds, s.kind, len(x["z0"]))


@operation
def masked_distance(s: Setting) -> tuple[Function, Function]:
    r = s.choose("reduction", "mean", "none")
    return (
        lambda x: MF.masked_distance(x["z0"], x["z1"], x["masks"], reduction=r, backend=s.backend, **s.pairs),
        lambda x: reduced(s, ref.distance(x["z0"], x["z1"], seen(s, x)), r),
    )


@operation
def masked_cosine(s: Setting) -> tuple[Function, Function]:
    r = s.choose("reduction", "mean", "none")
    return (
        lambda x: MF.masked_cosine_similarity(x["z0"], x["z1"], x["masks"], reduction=r, backend=s.backend, **s.pairs),
        lambda x: reduced(s, ref.cosine(x["z0"], x["z1"], seen(s, x)), r),
    )


def with_temperature(s: Setting) -> None:
    dtype = s.leaves["masks"].dtype
    s.leaves["temperature"] = torch.tensor(s.choose("temperature", 0.5, 0.1, 2.0, 0.01), dtype=dtype)


@operation
def info_nce(s: Setting) -> tuple[Function, Function]:
    with_temperature(s)
    r, both = s.choose("reduction", "mean", "none"), s.kind is None and s.choose("symmetric", False, True)
    n = len(s.leaves["z0"])
    samples = (torch.arange(n), torch.arange(n))
    given: dict[str, Any] = {}
    if s.choose("samples", False, True):
        ids = torch.randint(max(n // 2, 1), (n,), generator=s.generator)
        samples = (s.placed(ids), s.placed(ids[torch.randperm(n, generator=s.generator)]))
        given = {"sample0": samples[0], "sample1": samples[1]}

    def formula(x: Leaves) -> Tensor:
        one, two = ref.info_nce(x["z0"], x["z1"], seen(s, x), x["temperature"], samples, both)
        return reduced(s, one if two is None else (one + two) / 2, r)

    return (
        lambda x: MF.subspace_info_nce(
            x["z0"],
            x["z1"],
            x["masks"],
            temperature=x["temperature"],
            symmetric=both,
            reduction=r,
            backend=s.backend,
            **given,
            **s.pairs,
        ),
        formula,
    )


@operation
def nt_xent(s: Setting) -> tuple[Function, Function]:
    with_temperature(s)
    r = s.choose("reduction", "mean", "none")
    return (
        lambda x: MF.subspace_nt_xent(
            x["z0"], x["z1"], x["masks"], temperature=x["temperature"], reduction=r, backend=s.backend, **s.pairs
        ),
        lambda x: reduced(s, ref.nt_xent(x["z0"], x["z1"], seen(s, x), x["temperature"]), r),
    )


@operation
def sup_con(s: Setting) -> tuple[Function, Function]:
    with_temperature(s)
    del s.leaves["z1"]
    r, n = s.choose("reduction", "mean", "none"), len(s.leaves["z0"])
    sample = s.placed(torch.arange(n) // 2 % max(n // 2, 1))
    return (
        lambda x: MF.subspace_sup_con(
            x["z0"], sample, x["masks"], temperature=x["temperature"], reduction=r, backend=s.backend, **s.pairs
        ),
        lambda x: reduced(s, ref.sup_con(x["z0"], sample, seen(s, x), x["temperature"]), r),
    )


@operation
def sigmoid(s: Setting) -> tuple[Function, Function]:
    dtype, n = s.leaves["masks"].dtype, len(s.leaves["z0"])
    s.leaves["scale"] = torch.tensor(s.choose("scale", 10.0, 1.0, 100.0), dtype=dtype)
    s.leaves["bias"] = torch.tensor(s.choose("bias", -10.0, 0.0, 3.0), dtype=dtype)
    r = s.choose("reduction", "mean", "none")
    ids = [s.placed(x) for x in torch.randint(n, (2, n), generator=s.generator)]
    return (
        lambda x: MF.subspace_sigmoid(
            x["z0"],
            x["z1"],
            x["masks"],
            scale=x["scale"],
            bias=x["bias"],
            reduction=r,
            backend=s.backend,
            sample0=ids[0],
            sample1=ids[1],
            **s.pairs,
        ),
        lambda x: reduced(s, ref.sigmoid(x["z0"], x["z1"], seen(s, x), x["scale"], x["bias"], ids), r),
    )


@operation
def both_moments(s: Setting) -> tuple[Function, Function]:
    del s.leaves["z1"]
    return (
        lambda x: MF.subspace_moments(x["z0"], x["masks"], backend=s.backend),
        lambda x: (ref.variance_hinge(x["z0"], x["masks"]), ref.covariance(x["z0"], x["masks"])),
    )


@operation
def each_moment(s: Setting) -> tuple[Function, Function]:
    """One at a time: in half precision two gradients are rounded before they are added, and may cancel."""
    del s.leaves["z1"]
    if s.choose("moment", "variance", "covariance") == "variance":
        return lambda x: MF.subspace_variance(x["z0"], x["masks"]), lambda x: ref.variance_hinge(x["z0"], x["masks"])
    return (
        lambda x: MF.subspace_covariance(x["z0"], x["masks"], backend=s.backend),
        lambda x: ref.covariance(x["z0"], x["masks"]),
    )


@operation
def barlow_twins(s: Setting) -> tuple[Function, Function]:
    return (
        lambda x: MF.subspace_barlow_twins(x["z0"], x["z1"], x["masks"], backend=s.backend, **s.pairs),
        lambda x: ref.barlow_twins(x["z0"], x["z1"], x["masks"], s.kinds, s.kind),
    )


@operation
def sensitivity(s: Setting) -> tuple[Function, Function]:
    n, k = len(s.leaves["z0"]), len(s.leaves["masks"])
    if s.kind is None:
        s.kind = s.placed(torch.randint(k, (n,), generator=s.generator))
    weight = s.choose("weight", None, "random")
    if weight is not None:
        weight = s.placed(torch.rand(n, generator=s.generator, dtype=torch.float64).to(s.leaves["masks"].dtype))

    def formula(x: Leaves) -> Tensor:
        counted = None if weight is None else weight.to(x["masks"].dtype)
        return ref.sensitivity(x["z0"], x["z1"], x["masks"], s.kinds, s.kind, counted)

    return (
        lambda x: MF.subspace_sensitivity(x["z0"], x["z1"], x["masks"], weight=weight, backend=s.backend, **s.pairs),
        formula,
    )


def with_variance(s: Setting, *names: str) -> str:
    granularity = s.choose("granularity", "sample", "subspace", "dimension")
    (n, d), k = s.leaves["z0"].shape, len(s.leaves["masks"])
    width = {"sample": 1, "subspace": k, "dimension": d}[granularity]
    dtype = s.leaves["masks"].dtype
    if dtype == torch.float32:
        dtype = s.choose("variance in", torch.float32, torch.float32, *HALVES)
    size = s.choose("doubt", 1, 3, 0)
    s.leaves |= {name: (size * s.normal(n, width)).clamp(-8, 8).to(dtype) for name in names}
    return granularity


@operation
def invariance(s: Setting) -> tuple[Function, Function]:
    r, cosine = s.choose("reduction", "mean", "none"), s.choose("distance", "squared", "cosine") == "cosine"
    normalize = s.choose("normalize", False, True)
    granularity = with_variance(s, "log_variance") if s.choose("uncertain", True, True, False) else None
    cosine = cosine and granularity != "dimension"
    return (
        lambda x: MF.uncertainty_invariance(
            x["z0"],
            x["z1"],
            x["masks"],
            log_variance=x.get("log_variance"),
            granularity=granularity,
            reduction=r,
            distance="cosine" if cosine else "squared",
            normalize=normalize,
            backend=s.backend,
            **s.pairs,
        ),
        lambda x: reduced(
            s,
            ref.invariance(
                x["z0"],
                x["z1"],
                x["masks"],
                s.kinds,
                s.kind,
                log_variance=x.get("log_variance"),
                granularity=granularity,
                cosine_distance=cosine,
                normalize=normalize,
            ),
            r,
        ),
    )


@operation
def loss(s: Setting) -> tuple[Function, Function]:
    """Whole losses on outputs of heads, one of which may be a plain tensor."""
    name = s.choose("loss", "vicreg", "nt_xent", "cosine", "barlow", "invariance", "sigmoid")
    weight, normalize = s.choose("sensitivity", 0.0, 3.0), s.choose("normalize", False, True)
    scope = s.choose("scope", "embedding", "subspace")
    granularity = with_variance(s, "variance0", "variance1") if s.choose("uncertain", True, False) else None
    point = granularity is not None and s.choose("target", "output", "tensor") == "tensor"
    common = {"backend": s.backend}
    criterion: Any = {
        "vicreg": lambda: mast_ops.SubspaceVICRegLoss(
            20.0, 10.0, 2.0, scope=scope, normalize=normalize, sensitivity_param=weight, **common
        ),
        "nt_xent": lambda: mast_ops.SubspaceNTXentLoss(0.2, sensitivity_param=weight, **common),
        "cosine": lambda: mast_ops.SubspaceCosineLoss(sensitivity_param=weight, **common),
        "barlow": lambda: mast_ops.SubspaceBarlowTwinsLoss(0.1, **common),
        "invariance": lambda: mast_ops.UncertaintyInvarianceLoss(normalize=normalize, **common),
        "sigmoid": lambda: mast_ops.SubspaceSigmoidLoss(sensitivity_param=weight, **common),
    }[name]()
    if name in ("barlow", "invariance") or s.kind is None:
        weight = 0.0
    if point:
        del s.leaves["variance1"]

    def call(x: Leaves) -> Tensor:
        kinds = None if s.kind is None else s.kinds
        out0, out1 = (
            SubspaceOutput(x[f"z{i}"], x["masks"], x.get(f"variance{i}"), kinds, granularity) for i in range(2)
        )
        value: Tensor = criterion(out0, x["z1"] if point else out1, kind=s.kind)
        return value

    def formula(x: Leaves) -> Tensor:
        z0, z1, masks, view = x["z0"], x["z1"], x["masks"], seen(s, x)
        doubt = x.get("variance0")
        if "variance1" in x:
            doubt = (x["variance0"].exp() + x["variance1"].exp()).log()
        same = {"log_variance": doubt, "granularity": granularity, "cosine_distance": False, "normalize": normalize}
        counted = None
        if name == "vicreg":
            scoped = masks if scope == "subspace" else torch.ones_like(masks[:1])
            value = 20 * ref.invariance(z0, z1, masks, s.kinds, s.kind, **same).mean()
            value = value + 5 * (ref.variance_hinge(z0, scoped) + ref.variance_hinge(z1, scoped)).mean()
            value = value + 2 * (ref.covariance(z0, scoped) + ref.covariance(z1, scoped)).mean()
            if doubt is not None and granularity is not None and s.kind is not None:
                counted = ref.weights_of_pairs(doubt, granularity, s.kinds, s.kind)
        elif name == "nt_xent":
            value = ref.nt_xent(z0, z1, view, torch.tensor(0.2, dtype=z0.dtype)).mean()
        elif name == "cosine":
            value = -ref.cosine(z0, z1, view).mean()
        elif name == "barlow":
            first, second = ref.barlow_twins(z0, z1, masks, s.kinds, s.kind)
            value = first.mean() + 0.1 * second.mean()
        elif name == "invariance":
            value = ref.invariance(z0, z1, masks, s.kinds, s.kind, **same).mean()
        else:
            ids = torch.arange(len(z0))
            scale, bias = (
                torch.tensor(float(x.detach()), dtype=z0.dtype) for x in (criterion.log_scale.exp(), criterion.bias)
            )
            value = ref.sigmoid(z0, z1, view, scale, bias, (ids, ids)).mean()
        if weight:
            assert s.kind is not None
            value = value + weight * ref.sensitivity(z0, z1, masks, s.kinds, s.kind, counted).sum()
        return value

    return call, formula


@dataclass
class Result:
    values: list[Tensor]
    gradients: dict[str, Tensor | None]


def evaluate(
    function: Function, leaves: Leaves, generator_seed: int, region: torch.dtype | None = None, by: str | None = None
) -> Result:
    """Outputs, and the gradients of a sum of them with random weights; ``by`` autograd, torch.func, or compiled."""
    if by == "compile":
        torch._dynamo.reset()
        function = torch.compile(function, backend="aot_eager")

    def weighed(*given: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.autocast("cpu", region, enabled=region is not None):
            out = function(dict(zip(leaves, given, strict=True)))
        outputs = out if isinstance(out, tuple) else (out,)
        g = torch.Generator().manual_seed(generator_seed)
        weights = [torch.rand(x.shape, generator=g, dtype=torch.float64) + 0.5 for x in outputs]
        total = torch.stack([(x.double() * w).sum() for x, w in zip(outputs, weights, strict=True)]).sum()
        return total, outputs

    if by == "func":
        every = tuple(range(len(leaves)))
        found, outputs = torch.func.grad(weighed, argnums=every, has_aux=True)(*(x.detach() for x in leaves.values()))
    else:
        learned = [x.detach().requires_grad_() for x in leaves.values()]
        total, outputs = weighed(*learned)
        found = torch.autograd.grad(total, learned, allow_unused=True)
    return Result([x.detach().double() for x in outputs], dict(zip(leaves, found, strict=True)))


@contextmanager
def small_pieces(draw: random.Random) -> Iterator[None]:
    """Now and then so small that even these problems have many."""
    kept = [(table, "cpu", table["cpu"]) for table in (pairs._TILE, products.BLOCK, moments._BLOCK)]
    widest, cached = moments._WIDEST, scores._CACHED
    try:
        if draw.random() < 0.5:
            for table, key, _ in kept:
                table[key] = draw.choice([1, 50, 100])
            moments._WIDEST = 3
            scores._CACHED = draw.choice([0, cached])
        yield
    finally:
        moments._WIDEST, scores._CACHED = widest, cached
        for table, key, value in kept:
            table[key] = value


def spoil(s: Setting) -> str | None:
    """One number of one tensor that is not finite."""
    name = s.draw.choice([name for name, x in s.leaves.items() if x.dim() == 2])
    bad = s.draw.choice([float("nan"), float("inf"), -float("inf")])
    x = s.leaves[name].clone()
    x[s.draw.randrange(x.shape[0]), s.draw.randrange(x.shape[1])] = bad
    s.leaves[name] = x
    s.text["spoilt"] = f"{name}: {bad}"
    return name


def findings(number: int, seed: int = 0) -> tuple[list[str], str]:
    """What is wrong with one case, and the case in words."""
    s = draw_setting(number, seed)
    name = s.draw.choice(list(OPERATIONS))
    s.text["name"] = name
    call, formula = OPERATIONS[name](s)
    spoilt = spoil(s) if s.draw.random() < 0.15 else None
    layout = s.choose("layout", None, *LAYOUTS)
    if layout == "expanded":
        layout = None
    exact = {key: x.double() for key, x in s.leaves.items()}
    used = {key: laid(x, layout) if layout else x for key, x in s.leaves.items()}
    weights = s.draw.getrandbits(40)
    by = None
    if s.draw.random() < 0.1 and s.backend in ("auto", "eager") and spoilt is None:
        by = "func"
    elif s.draw.random() < 0.001:
        by = "compile"
    s.text["by"] = by
    text = f"{number} {name} {s.text}"
    with small_pieces(s.draw), warnings.catch_warnings(action="ignore"):
        try:
            got = evaluate(call, used, weights, s.region, by)
        except Exception as error:
            return [f"{type(error).__name__}: {error}"], text
    wanted = evaluate(formula, exact, weights)
    if spoilt is not None:
        return [
            f"value {i} is finite"
            for i, (x, y) in enumerate(zip(got.values, wanted.values, strict=True))
            if (x.isfinite() & ~y.isfinite()).any() or (x.sum().isfinite() and not y.sum().isfinite())
        ], text
    return [*compare(s, got, wanted, allowance(s, formula, exact, wanted, weights))], text


def allowance(s: Setting, formula: Function, exact: Leaves, wanted: Result, weights: int) -> list[Result]:
    """What else may come out: the formula in the library's own precision, and of inputs and norms rounded once more."""
    wide, eps = s.leaves["masks"].dtype, precision(s)
    others = []
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        shaken = {key: x * (1 + eps * torch.randn(x.shape, generator=g, dtype=x.dtype)) for key, x in exact.items()}
        with ref.rounded(eps, seed):
            others.append(evaluate(formula, shaken, weights))
    if wide == torch.float32:
        others.append(evaluate(formula, {key: x.float() for key, x in exact.items()}, weights))
    return others


def precision(s: Setting) -> float:
    """Of one product inside: Triton's take embeddings in half precision as they are."""
    dtypes = [s.leaves["masks"].dtype, *([s.leaves["z0"].dtype] if s.backend == "triton" else [])]
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def compare(s: Setting, got: Result, wanted: Result, others: list[Result]) -> Iterator[str]:
    eps = precision(s)
    unit_of_values = 0.0
    if s.scale_free:
        unit_of_values = max(1 / s.text.get("temperature", 1), s.text.get("scale", 1))
    for i, value in enumerate(got.values):
        beside = [other.values[i] for other in others]
        yield from differ(f"value {i}", value, wanted.values[i], beside, 64 * eps, 1e-30 + 8 * eps * unit_of_values)
    for name, gradient in got.gradients.items():
        right = wanted.gradients[name]
        if gradient is None or right is None:
            if (gradient if right is None else right) is not None and (gradient if right is None else right).any():
                yield f"gradient of {name}: {'none' if gradient is None else 'one'} too many"
            continue
        dtype = s.leaves[name].dtype
        if gradient.dtype != dtype or gradient.shape != s.leaves[name].shape:
            yield f"gradient of {name}: {gradient.dtype}, {tuple(gradient.shape)}"
        if right.abs().max() > torch.finfo(dtype).max / 2:
            continue
        beside = [other.gradients[name] for other in others]
        unit = torch.finfo(dtype).eps
        # What cancels in the sum of a gradient is of the size of its parts: of values over the size of the input.
        parts = max(float(x.abs().max()) for x in wanted.values)
        x = s.leaves[name].double()
        size = max(parts, unit_of_values) / max(float(x.abs().max()), 1e-3)
        floor = 64 * eps * size + torch.finfo(dtype).tiny * 2
        floor += torch.finfo(dtype).smallest_normal * unit * 4
        yield from differ(f"gradient of {name}", gradient.double(), right, beside, 64 * eps + 2 * unit, floor)


def differ(
    what: str, got: Tensor, wanted: Tensor, others: list[Tensor | None], relative: float, floor: float
) -> Iterator[str]:
    if got.shape != wanted.shape:
        yield f"{what}: shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
        return
    if not wanted.numel():
        return
    if not torch.equal(got.isfinite(), wanted.isfinite()):
        yield f"{what}: {got.flatten()[:4].tolist()}, wanted {wanted.flatten()[:4].tolist()}: not finite alike"
        return
    error = (got - wanted).abs().nan_to_num().max()
    noise = max(float((x.double() - wanted).abs().nan_to_num().max()) for x in others if x is not None)
    allowed = 32 * noise + relative * float(wanted.abs().nan_to_num(posinf=0).max()) + floor
    if error > allowed:
        yield f"{what}: off by {float(error):.2e}, allowed {allowed:.2e}, largest {float(wanted.abs().max()):.2e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = range(options.start, options.start + options.cases) if options.case is None else [options.case]
    bad, started, kinds = 0, time.monotonic(), Counter[str]()
    for number in numbers:
        found, text = findings(number, options.seed)
        kinds[text.split()[1]] += 1
        if found or options.case is not None:
            print(text, *found, sep="\n    ", flush=True)
        bad += bool(found)
    print(f"{len(numbers)} cases in {time.monotonic() - started:.0f} s, {bad} with findings; {dict(kinds)}")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
