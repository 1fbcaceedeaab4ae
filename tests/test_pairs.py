"""Kinds of pairs: every loss and pure function against float64 formulas written pair by pair, on any table."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mast_ops.functional as MF
from mast_ops import (
    MaskedSubspaceHead,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceOutput,
    SubspaceSigmoidLoss,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
)
from mast_ops.pairs import masks_of_kinds

N, D, K = 8, 6, 3
T = 0.3
TABLES = {
    "one at a time": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "all": [[1, 1, 1]],
    "mixed": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]],
    "all but one": [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
    "every set": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]],
    "fewer kinds than masks, one of them absent": [[1, 1, 0], [0, 0, 1]],
}
WIDTHS = {"sample": lambda k, d: 1, "subspace": lambda k, d: k, "dimension": lambda k, d: d}


def table_of(name):
    return torch.tensor(TABLES[name]).bool()


def make(kinds, n=N, d=D, dtype=torch.float64, seed=0):
    """Views that differ, masks on either side of 1, a kind for each pair, and what a formula may want beside them."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    num_kinds, k = kinds.shape
    kind = torch.randint(num_kinds, (n,), generator=g)
    if n >= num_kinds > 2:
        kind[:num_kinds] = torch.arange(num_kinds)
    if num_kinds == 2:
        kind = torch.zeros_like(kind)
    x = {"z0": normal(n, d), "z1": normal(n, d), "masks": torch.rand(k, d, generator=g, dtype=torch.float64) * 1.2}
    x["log_variance"] = {name: normal(n, width(k, d)) for name, width in WIDTHS.items()}
    x["log_variance"] = {name: value.to(dtype).requires_grad_() for name, value in x["log_variance"].items()}
    leaves = {name: x[name].to(dtype).requires_grad_() for name in ("z0", "z1", "masks")}
    return SimpleNamespace(**{**x, **leaves}, kinds=kinds, kind=kind)


def leaves_of(x, granularity=None):
    return [x.z0, x.z1, x.masks, *([x.log_variance[granularity]] if granularity else [])]


def in_float64(x):
    def copy(value):
        return value.detach().double().requires_grad_()

    variances = {name: copy(value) for name, value in x.log_variance.items()}
    views = {name: copy(getattr(x, name)) for name in ("z0", "z1", "masks")}
    return SimpleNamespace(**views, log_variance=variances, kinds=x.kinds, kind=x.kind)


# ---- references: pair by pair


def mask_of(x, kind):
    mask = torch.ones_like(x.masks[0])
    for k, differs in enumerate(x.kinds[kind].tolist()):
        mask = mask * x.masks[k] if differs else mask
    return mask


def mask_of_pair(x, i):
    return mask_of(x, int(x.kind[i]))


def per_pair(formula):
    """Of each pair through the mask of its kind."""

    def reference(x):
        return torch.stack([formula(x.z0[i], x.z1[i], mask_of_pair(x, i)) for i in range(len(x.z0))])

    return reference


def cosine(a, b, mask):
    return F.cosine_similarity((a * mask)[None], (b * mask)[None])[0]


def contrast_of(anchor, candidates, mask, positives, own=None):
    """``logsumexp_j s_j - mean_{j positive} s_j``, without the anchor itself."""
    scores = torch.stack([cosine(anchor, c, mask) / T for c in candidates])
    others = [j for j in range(len(candidates)) if j != own]
    return scores[others].logsumexp(0) - scores[positives].mean()


def info_nce(x):
    return torch.stack([contrast_of(x.z0[i], x.z1, mask_of_pair(x, i), [i]) for i in range(len(x.z0))])


def nt_xent(x):
    views, n = torch.cat([x.z0, x.z1]), len(x.z0)

    def anchor(i, j):
        return contrast_of(views[i], views, mask_of_pair(x, i % n), [j], own=i)

    return torch.stack([(anchor(i, i + n) + anchor(i + n, i)) / 2 for i in range(n)])


def sigmoid(x):
    """``sum_j softplus(-l_ij (cos_ij / T - 2))``, where l is 1 for the pair's own second view and -1 for the others."""
    n = len(x.z0)

    def anchor(i):
        scores = torch.stack([cosine(x.z0[i], x.z1[j], mask_of_pair(x, i)) / T - 2 for j in range(n)])
        return F.softplus(torch.where(torch.arange(n) == i, -scores, scores)).sum()

    return torch.stack([anchor(i) for i in range(n)])


def classes(n):
    return torch.arange(n) % (n // 2)


def sup_con(x):
    n = len(x.z0)
    same = [[j for j in range(n) if j != i and classes(n)[i] == classes(n)[j]] for i in range(n)]
    return torch.stack([contrast_of(x.z0[i], x.z0, mask_of_pair(x, i), same[i], own=i) for i in range(n)])


def barlow_twins(x):
    """The invariance of each kind, and the redundancy of each mask alone."""
    a, b = (F.batch_norm(z, None, None, training=True) for z in (x.z0, x.z1))
    n, invariance = len(a), []
    for kind in range(len(x.kinds)):
        own = [i for i in range(n) if x.kind[i] == kind]
        diagonal = (a[own] * b[own]).mean(0) if own else torch.zeros_like(a[0])
        energy = (mask_of(x, kind) * (diagonal - 1)).square().sum()
        invariance.append(energy * len(own) * len(x.kinds) / n)
    redundancy = []
    for mask in x.masks:
        c = (a * mask).T @ (b * mask) / n
        redundancy.append((c - torch.diag(c.diagonal())).square().sum())
    return torch.stack(invariance), torch.stack(redundancy)


def variance_of(x, granularity, i, kind):
    """That of pair i, were it of this kind: the variances of what differs add up."""
    variance = x.log_variance[granularity][i].exp()
    return variance[x.kinds[kind]].sum() if granularity == "subspace" else variance


def uncertain(granularity, distance="squared", normalize=False):
    def reference(x):
        n, losses = len(x.z0), []
        centre = (x.z0.sum(0) + x.z1.sum(0)) / (2 * n)
        for i in range(n):
            kind, mask = int(x.kind[i]), mask_of_pair(x, i)
            v = variance_of(x, granularity, i, kind)
            gap = (mask * (x.z0[i] - x.z1[i])).square() if distance == "squared" else 1 - cosine(x.z0[i], x.z1[i], mask)
            price = mask.square().clamp(max=1) * v.log() if distance == "squared" else v.log()
            if not normalize:
                losses.append((gap / v + price).mean() / 2)
                continue
            inverse_mean = torch.stack([1 / variance_of(x, granularity, j, kind) for j in range(n)]).mean(0).detach()
            if granularity == "dimension":
                losses.append(((gap / v + price) / inverse_mean).mean())
                continue
            a, b = (mask * (z[i] - centre) for z in (x.z0, x.z1))
            mismatch = ((a - b).square().sum() / (a.square().sum() + b.square().sum())).detach()
            losses.append(gap.mean() * (1 / v / inverse_mean).detach().sum() + (mismatch / v + v.log()).sum())
        return torch.stack(losses)

    return reference


def sensitivity(x, weights=None, eps=1e-4):
    """From the pairs in which one augmentation alone differs."""
    spread = ((x.z0.var(0, correction=0) + x.z1.var(0, correction=0)) / 2).detach().clamp_min(eps)
    out = []
    for k, mask in enumerate(x.masks):
        alone = [j == k for j in range(len(x.masks))]
        own = [i for i in range(len(x.z0)) if x.kinds[x.kind[i]].tolist() == alone]
        if not own:
            out.append(0 * (x.z0.sum() + x.z1.sum() + mask.sum()))
            continue
        weight = torch.ones(len(own), dtype=x.z0.dtype) if weights is None else weights[own]
        ratio = (weight[:, None] * (x.z0[own] - x.z1[own]).square()).sum(0) / weight.sum() / (2 * spread)
        out.append((torch.relu(1 - mask.abs()) * torch.relu(1 - (ratio + eps).sqrt())).mean())
    return torch.stack(out)


def pair_weights(x, granularity):
    """Sensitivity weighs pairs of a kind by their certainty among the batch, but not per dimension."""
    if granularity in (None, "dimension"):
        return None
    weights = []
    for i in range(len(x.z0)):
        every = torch.stack([1 / variance_of(x, granularity, j, int(x.kind[i])) for j in range(len(x.z0))])
        weights.append((every[i] / every.mean()).detach().sum())
    return torch.stack(weights)


# ---- ours beside them


def ours(name, *positional, **options):
    def call(x, **more):
        return getattr(MF, name)(*(getattr(x, p) for p in positional), kinds=x.kinds, kind=x.kind, **options, **more)

    return call


def ours_uncertain(granularity, **options):
    def call(x, **more):
        doubt = {"log_variance": x.log_variance[granularity], "granularity": granularity}
        pairs = {"kinds": x.kinds, "kind": x.kind}
        return MF.uncertainty_invariance(x.z0, x.z1, x.masks, **pairs, **doubt, **options, **more)

    return call


def ours_sup_con(x, **more):
    return MF.subspace_sup_con(
        x.z0, classes(len(x.z0)), x.masks, kinds=x.kinds, kind=x.kind, temperature=T, reduction="none", **more
    )


VIEWS = ("z0", "z1", "masks")
# Ours, the reference, and the granularity of the log-variance that they take.
FUNCTIONS = {
    "distance": (ours("masked_distance", *VIEWS), per_pair(lambda a, b, m: (m * (a - b)).square().sum()), None),
    "cosine": (ours("masked_cosine_similarity", *VIEWS), per_pair(cosine), None),
    "info_nce": (ours("subspace_info_nce", *VIEWS, temperature=T, reduction="none"), info_nce, None),
    "nt_xent": (ours("subspace_nt_xent", *VIEWS, temperature=T, reduction="none"), nt_xent, None),
    "sup_con": (ours_sup_con, sup_con, None),
    "sigmoid": (ours("subspace_sigmoid", *VIEWS, scale=1 / T, bias=-2.0, reduction="none"), sigmoid, None),
    "barlow_twins": (ours("subspace_barlow_twins", *VIEWS), barlow_twins, None),
    "invariance": (
        ours("uncertainty_invariance", *VIEWS),
        per_pair(lambda a, b, m: (m * (a - b)).square().mean()),
        None,
    ),
    "sensitivity": (ours("subspace_sensitivity", *VIEWS), sensitivity, None),
}
for _granularity in WIDTHS:
    for _distance in ("squared", "cosine") if _granularity != "dimension" else ("squared",):
        for _normalize in (False, True):
            _options = {"distance": _distance, "normalize": _normalize}
            FUNCTIONS[f"{_distance} by {_granularity}{' normalised' * _normalize}"] = (
                ours_uncertain(_granularity, **_options),
                uncertain(_granularity, **_options),
                _granularity,
            )
MEANS = ["distance", "cosine", "info_nce", "nt_xent", "sup_con", "sigmoid", "invariance"]
MEANS += [name for name in FUNCTIONS if " by " in name]
PER_PAIR = MEANS


def asks_all(name, kinds):
    """Whether the function wants every augmentation to differ in some kind of pair."""
    return name == "sensitivity" and not kinds.any(0).all()


def as_list(value):
    return list(value) if isinstance(value, tuple) else [value]


def value_and_gradients(value, leaves):
    outputs = as_list(value)
    upstream = [torch.arange(1.0, out.numel() + 1, dtype=torch.float64).reshape(out.shape).to(out) for out in outputs]
    gradients = torch.autograd.grad(outputs, leaves, upstream, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in outputs], list(gradients)


def assert_same(ours, reference, leaves, exact_leaves, **tolerance):
    got, wanted = value_and_gradients(ours, leaves), value_and_gradients(reference, exact_leaves)
    for part, exact in zip(got, wanted, strict=True):
        torch.testing.assert_close([x.double() for x in part], [x.double() for x in exact], **tolerance)


# ---- the mask of a kind


@pytest.mark.parametrize("table", TABLES)
def test_the_mask_of_a_kind_is_the_product_with_its_gradients(table):
    kinds = table_of(table)
    x = make(kinds)
    wanted = torch.stack([mask_of(x, s) for s in range(len(kinds))])
    assert_same(masks_of_kinds(x.masks, kinds), wanted, [x.masks], [x.masks], rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(lambda m: masks_of_kinds(m, kinds), x.masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_zeros_and_ones_stay_exact(dtype):
    masks = torch.tensor([[0, 1, 0, 1, 0.3, 1e-30], [0, 0, 1, 1, 1, 1e-30]], dtype=dtype, requires_grad=True)
    kinds = torch.tensor([[True, False], [False, True], [True, True]])
    product = masks_of_kinds(masks, kinds)
    assert torch.equal(product[:2], masks)
    assert torch.equal(product[2, :5], torch.tensor([0, 0, 0, 1, 0.3], dtype=dtype))
    (gradient,) = torch.autograd.grad(product[2].sum(), masks)  # of two zeros neither can open alone
    assert torch.equal(gradient, masks.detach().flip(0))


def test_what_does_not_differ_does_not_reach_the_mask_of_a_kind():
    masks = torch.tensor([[math.nan, math.inf], [2.0, 3.0]], requires_grad=True)
    product = masks_of_kinds(masks, torch.tensor([[False, True]]))
    assert product.tolist() == [[2.0, 3.0]]
    assert torch.autograd.grad(product.sum(), masks)[0].tolist() == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_product_of_half_masks_is_not_rounded(dtype):
    kinds = torch.ones(1, 8).bool()
    z0, z1 = torch.randn(2, 4, D).to(dtype)
    masks = (torch.rand(8, D) * 0.2 + 0.1).to(dtype)  # their product is beyond half precision
    got = MF.masked_distance(z0, z1, masks, kinds=kinds, kind=torch.zeros(4, dtype=torch.long))
    wanted = (masks.double().prod(0) * (z0.double() - z1.double())).square().sum(1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)


# ---- every function on any table


@pytest.mark.parametrize("backend", ["eager", "chunked"])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_equals_the_formula_of_each_pair(name, table, backend):
    kinds = table_of(table)
    if asks_all(name, kinds):
        pytest.skip("an augmentation never differs")
    function, reference, granularity = FUNCTIONS[name]
    x = make(kinds)
    leaves = leaves_of(x, granularity)
    assert_same(function(x, backend=backend), reference(x), leaves, leaves, rtol=1e-8, atol=1e-9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities under the interpreter
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "cosine by" not in name])
def test_triton_equals_the_formula_of_each_pair(name):
    pytest.importorskip("triton")
    function, reference, granularity = FUNCTIONS[name]
    x = make(table_of("mixed"), dtype=torch.float32)
    exact = in_float64(x)
    got, wanted = function(x, backend="triton"), reference(exact)
    assert all(out.dtype == torch.float32 for out in as_list(got))
    assert_same(got, wanted, leaves_of(x, granularity), leaves_of(exact, granularity), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("backend", ["eager", "chunked"])
@pytest.mark.parametrize("name", MEANS)
def test_the_mean_is_that_over_pairs(name, backend):
    function, reference, granularity = FUNCTIONS[name]
    x = make(table_of("mixed"))
    leaves = leaves_of(x, granularity)
    options = {"reduction": "mean", "backend": backend}
    if " by " in name or name in ("distance", "cosine", "invariance"):
        got = function(x, **options)
    elif name == "sup_con":
        got = MF.subspace_sup_con(x.z0, classes(N), x.masks, kinds=x.kinds, kind=x.kind, temperature=T, **options)
    elif name == "sigmoid":
        got = ours("subspace_sigmoid", *VIEWS, scale=1 / T, bias=-2.0)(x, **options)
    else:
        got = ours(f"subspace_{name}", *VIEWS, temperature=T)(x, **options)
    assert_same(got, reference(x).mean(), leaves, leaves, rtol=1e-8, atol=1e-9)


tables = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k).filter(any), min_size=1, max_size=6)
)


@given(rows=tables, n=st.integers(2, 6), d=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_any_table_equals_the_formula_of_each_pair(rows, n, d, seed):
    x = make(torch.tensor(rows), n=2 * n, d=d, seed=seed)
    for name, (function, reference, _) in FUNCTIONS.items():
        if asks_all(name, x.kinds):
            continue
        for backend in ("eager", "chunked"):
            torch.testing.assert_close(
                as_list(function(x, backend=backend)), as_list(reference(x)), rtol=1e-8, atol=1e-9, msg=name
            )


# ---- every loss on any table


def plain_moments(z, mask=1.0):
    z = z * mask
    c = torch.cov(z.T)
    return torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean(), (c - torch.diag(c.diagonal())).square().sum() / z.shape[1]


def vicreg_terms(x, granularity, scope):
    seen = x.masks if scope == "subspace" else [1.0]
    moments = [[plain_moments(z, mask) for mask in seen] for z in (x.z0, x.z1)]
    hinge, covariance = (
        [sum(m[i] for m in view) / len(seen) for view in moments]  # over masks
        for i in (0, 1)
    )
    invariance = uncertain(granularity, normalize=True) if granularity else FUNCTIONS["invariance"][1]
    return {
        "invariance": (25.0, invariance(x).mean()),
        "variance": (25.0, sum(hinge) / 2),
        "covariance": (1.0, sum(covariance)),
        "sensitivity": (10.0, sensitivity(x, pair_weights(x, granularity)).sum()),
    }


def barlow_terms(x, granularity):
    invariance, redundancy = barlow_twins(x)
    return {"invariance": (1.0, invariance.mean()), "redundancy": (5e-3, redundancy.mean())}


def invariance_terms(distance, normalize):
    def terms(x, granularity):
        if granularity is None:
            formula = per_pair(
                lambda a, b, m: 1 - cosine(a, b, m) if distance == "cosine" else F.mse_loss(m * a, m * b)
            )
            return {"invariance": (1.0, formula(x).mean())}
        return {"invariance": (1.0, uncertain(granularity, distance, normalize)(x).mean())}

    return terms


def with_sensitivity(name, formula, weight, sign=1):
    def terms(x, granularity):
        return {name: (1.0, sign * formula(x).mean()), "sensitivity": (weight, sensitivity(x).sum())}

    return terms


def sigmoid_loss():
    loss = SubspaceSigmoidLoss(bias=-2.0).double()
    nn.init.constant_(loss.log_scale, math.log(1 / T))  # in float64, and not rounded before
    return loss


LOSSES = {
    "vicreg": (SubspaceVICRegLoss(), lambda x, g: vicreg_terms(x, g, "embedding")),
    "vicreg in subspaces": (SubspaceVICRegLoss(scope="subspace"), lambda x, g: vicreg_terms(x, g, "subspace")),
    "nt_xent": (SubspaceNTXentLoss(T), with_sensitivity("nt_xent", nt_xent, 3.0)),
    "cosine": (
        SubspaceCosineLoss(sensitivity_param=2.0),
        with_sensitivity("negative_cosine", per_pair(cosine), 2.0, -1),
    ),
    "sigmoid": (sigmoid_loss(), with_sensitivity("sigmoid", sigmoid, 3.0)),
    "barlow": (SubspaceBarlowTwinsLoss(), barlow_terms),
    "likelihood": (UncertaintyInvarianceLoss(), invariance_terms("squared", False)),
    "normalised": (UncertaintyInvarianceLoss(normalize=True), invariance_terms("squared", True)),
    "likelihood of cosines": (UncertaintyInvarianceLoss(distance="cosine"), invariance_terms("cosine", False)),
}


def on(loss, backend):
    loss.backend = backend
    return loss


def output(x, granularity=None):
    return SubspaceOutput(
        x.z0, x.masks, x.log_variance[granularity] if granularity else None, x.kinds, granularity=granularity
    )


@pytest.mark.parametrize("backend", ["eager", "chunked"])
@pytest.mark.parametrize("granularity", [None, "sample", "subspace", "dimension"])
@pytest.mark.parametrize("table", ["mixed", "all but one", "every set"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_equals_its_terms_pair_by_pair(name, table, granularity, backend):
    loss, terms = LOSSES[name]
    if name == "likelihood of cosines" and granularity == "dimension":
        pytest.skip("a cosine has no variance per dimension")
    x = make(table_of(table))
    value, parts = on(loss, backend)(output(x, granularity), x.z1, kind=x.kind, return_components=True)
    wanted = terms(x, granularity)
    assert parts.keys() == wanted.keys()
    for term in parts:
        torch.testing.assert_close(parts[term], wanted[term][1].detach(), rtol=1e-8, atol=1e-9, msg=term)
    leaves = leaves_of(x, granularity)
    assert_same(value, sum(weight * term for weight, term in wanted.values()), leaves, leaves, rtol=1e-8, atol=1e-9)
    if granularity is None:
        assert torch.equal(loss(x.z0, x.z1, masks=x.masks, kinds=x.kinds, kind=x.kind), value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["vicreg", "nt_xent", "cosine", "barlow", "likelihood"])
def test_every_loss_in_triton_equals_its_terms_pair_by_pair(name):
    pytest.importorskip("triton")
    loss, terms = LOSSES[name]
    x = make(table_of("mixed"), dtype=torch.float32)
    exact = in_float64(x)
    value = on(loss, "triton")(output(x, "subspace"), x.z1, kind=x.kind)
    wanted = sum(weight * term for weight, term in terms(exact, "subspace").values())
    assert_same(value, wanted, leaves_of(x, "subspace"), leaves_of(exact, "subspace"), rtol=2e-4, atol=2e-4)


# ---- what kinds stand for


def call(loss, x, kinds, kind, granularity="subspace"):
    out = output(x, granularity)._replace(kinds=kinds)
    value = loss(out, x.z1, kind=kind)
    return [value, *torch.autograd.grad(value, leaves_of(x, granularity), allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("backend", ["eager", "chunked"])
@pytest.mark.parametrize("name", LOSSES)
def test_one_at_a_time_is_what_there_is_without_a_table(name, backend):
    x = make(torch.eye(K).bool())
    loss = on(LOSSES[name][0], backend)
    torch.testing.assert_close(call(loss, x, x.kinds, x.kind), call(loss, x, None, x.kind), rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:kind. got None")
@pytest.mark.parametrize("table", ["mixed", "all"])
@pytest.mark.parametrize("name", LOSSES)
def test_without_kind_every_mask_counts_alone_whatever_the_table(name, table):
    x = make(table_of(table))
    loss = on(LOSSES[name][0], "auto")
    with_table = call(loss, x, x.kinds, None)
    assert all(map(torch.equal, with_table, call(loss, x, None, None)))
    alone = [loss(output(x)._replace(masks=mask[None], kinds=None), x.z1) for mask in x.masks]
    plain = loss(output(x), x.z1)
    torch.testing.assert_close(plain, torch.stack(alone).mean())


@pytest.mark.parametrize("name", ["distance", "cosine", "info_nce", "nt_xent", "sup_con", "sigmoid", "invariance"])
def test_without_kind_a_function_gives_every_mask_alone(name):
    function, _, _ = FUNCTIONS[name]
    x = make(table_of("mixed"))
    x.kind = None
    all_masks = function(x)
    assert all_masks.shape == (N, K)
    for k in range(K):
        x.kinds, x.kind = None, torch.full((N,), k)
        torch.testing.assert_close(all_masks[:, k], function(x))


@given(rows=tables, seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_rows_of_the_table_may_stand_in_any_order(rows, seed):
    torch.manual_seed(seed)
    x = make(torch.tensor(rows), seed=seed)
    order = torch.randperm(len(rows))
    moved = SimpleNamespace(**{**vars(x), "kinds": x.kinds[order], "kind": order.argsort()[x.kind]})
    for name, (function, _, _) in FUNCTIONS.items():
        if asks_all(name, x.kinds):
            continue
        base, got = as_list(function(x)), as_list(function(moved))
        if name == "barlow_twins":
            base[0] = base[0][order]
        torch.testing.assert_close(got, base, msg=name)


@given(rows=tables, seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_augmentations_may_stand_in_any_order(rows, seed):
    torch.manual_seed(seed)
    x = make(torch.tensor(rows), seed=seed)
    order = torch.randperm(x.kinds.shape[1])
    variances = {**x.log_variance, "subspace": x.log_variance["subspace"][:, order]}
    changes = {"kinds": x.kinds[:, order], "masks": x.masks[order], "log_variance": variances}
    moved = SimpleNamespace(**{**vars(x), **changes})
    for name, (function, _, _) in FUNCTIONS.items():
        if asks_all(name, x.kinds):
            continue
        base, got = as_list(function(x)), as_list(function(moved))
        if name in ("barlow_twins", "sensitivity"):
            base[-1] = base[-1][order]
        torch.testing.assert_close(got, base, msg=name)


@given(rows=tables, seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_a_kind_written_twice_is_one_kind(rows, seed):
    torch.manual_seed(seed)
    x = make(torch.tensor(rows), seed=seed)
    second = torch.rand(N) < 0.5
    twice = SimpleNamespace(
        **{**vars(x), "kinds": x.kinds.repeat(2, 1), "kind": torch.where(second, x.kind + len(rows), x.kind)}
    )
    for name in [*PER_PAIR, "sensitivity"]:
        if not asks_all(name, x.kinds):
            torch.testing.assert_close(FUNCTIONS[name][0](twice), FUNCTIONS[name][0](x), msg=name)


@given(seed=st.integers(0, 10**6), k=st.integers(2, 5))
@settings(deadline=None, max_examples=20)
def test_the_more_differs_the_less_must_agree(seed, k):
    """For masks from 0 to 1: what must agree of a pair shrinks with every augmentation that differs in it."""
    x = make(torch.ones(k, k).tril().bool(), seed=seed)
    masks = x.masks / 1.2
    per_kind = [
        MF.masked_distance(x.z0, x.z1, masks, kinds=x.kinds, kind=torch.full((N,), s)) for s in range(len(x.kinds))
    ]
    for fewer, more in itertools.pairwise(per_kind):
        assert (more <= fewer + 1e-12).all()


def test_the_variance_of_a_kind_is_the_sum_of_what_differs():
    x = make(table_of("every set"))
    lv = x.log_variance["subspace"]
    doubt = {"log_variance": lv, "granularity": "subspace"}
    same = MF.uncertainty_invariance(x.z0, x.z0, torch.ones_like(x.masks), kinds=x.kinds, kind=x.kind, **doubt)
    summed = (lv.exp() * x.kinds[x.kind]).sum(1)
    torch.testing.assert_close(same, summed.log() / 2)  # identical views leave the price alone
    out = torch.full_like(lv, 200.0).masked_fill(x.kinds[x.kind], -200.0)  # what does not differ is not looked at
    doubt["log_variance"] = out
    same = MF.uncertainty_invariance(x.z0, x.z0, torch.ones_like(x.masks), kinds=x.kinds, kind=x.kind, **doubt)
    torch.testing.assert_close(same, (x.kinds[x.kind].sum(1).double().log() - 200) / 2)


# ---- what masks hold never changes which terms apply


@pytest.mark.parametrize("table", ["one at a time", "mixed", "every set"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_masks_hold_never_changes_which_terms_apply(name, table):
    x = make(table_of(table))
    loss, masks = on(LOSSES[name][0], "auto"), x.masks.detach()
    closed, within = masks.clone(), masks.clone().clamp(max=0.9)
    closed[1] = 0
    within[0] = within.amin(0) / 2
    held = {
        "as they are": masks,
        "permuted": masks[:, torch.randperm(D)],
        "one closed": closed,
        "all closed": 0 * masks,
        "one within all others": within,
        "all alike": masks[:1].expand(K, D),
        "all open": torch.ones_like(masks),
        "negative": -masks,
    }
    terms = {}
    for state, value in held.items():
        _, parts = loss(x.z0, x.z1, masks=value, kinds=x.kinds, kind=x.kind, return_components=True)
        assert all(part.isfinite() for part in parts.values()), state
        terms[state] = tuple(parts)
        if "sensitivity" in parts:
            x.masks = value
            torch.testing.assert_close(parts["sensitivity"], sensitivity(x).sum().detach(), msg=state)
    assert len(set(terms.values())) == 1


def test_a_mask_within_all_others_is_still_asked_for_sensitivity():
    x = make(table_of("mixed"))
    z1 = x.z0 + 0.1 * (x.z1 - x.z0)  # pairs near enough that all of them are asked to change
    masks = (x.masks.detach() / 1.3).clamp(max=0.9)
    masks[1] = masks.amin(0) / 2
    value = MF.subspace_sensitivity(x.z0, z1, masks, kinds=x.kinds, kind=x.kind)
    assert value.gt(0).all()
    assert value[1] > value[0]
    assert value[1] > value[2]


# ---- refusals

Z, M, TABLE, KIND = torch.randn(N, D), torch.rand(K, D), table_of("mixed"), torch.arange(N) % 4
BOUNDARIES = {
    "masked_distance": MF.masked_distance,
    "masked_cosine_similarity": MF.masked_cosine_similarity,
    "subspace_info_nce": lambda *x, **o: MF.subspace_info_nce(*x, temperature=T, **o),
    "subspace_nt_xent": lambda *x, **o: MF.subspace_nt_xent(*x, temperature=T, **o),
    "subspace_sup_con": lambda z0, z1, m, **o: MF.subspace_sup_con(z0, classes(N), m, temperature=T, **o),
    "subspace_sigmoid": lambda *x, **o: MF.subspace_sigmoid(*x, scale=1 / T, bias=-2.0, **o),
    "subspace_barlow_twins": MF.subspace_barlow_twins,
    "uncertainty_invariance": MF.uncertainty_invariance,
    "subspace_sensitivity": MF.subspace_sensitivity,
    **{
        loss.__name__: lambda z0, z1, m, loss=loss, **o: loss()(z0, z1, masks=m, **o)
        for loss in (
            SubspaceVICRegLoss,
            SubspaceNTXentLoss,
            SubspaceCosineLoss,
            SubspaceBarlowTwinsLoss,
            SubspaceSigmoidLoss,
            UncertaintyInvarianceLoss,
        )
    },
}
NOTHING = torch.cat([TABLE, torch.zeros(1, K).bool()])
REFUSED = {
    "another width": (TABLE[:, :2], KIND, ValueError, r"kinds: got shape \(4, 2\), wanted \(S, 3\)"),
    "one axis": (TABLE[0], KIND, ValueError, r"kinds: got shape \(3,\), wanted \(S, 3\)"),
    "no row": (TABLE[:0], KIND, ValueError, r"kinds: got shape \(0, 3\), wanted \(S, 3\).*S >= 1"),
    "a list": (TABLE.tolist(), KIND, TypeError, "kinds: got list, wanted a boolean tensor"),
    "numbers": (TABLE.float(), KIND, TypeError, "kinds: got dtype torch.float32, wanted torch.bool"),
    "integers": (TABLE.long(), KIND, TypeError, "kinds: got dtype torch.int64, wanted torch.bool"),
    "a row of False": (NOTHING, KIND, ValueError, "kinds: got row 4 all False"),
    "elsewhere": (TABLE.to("meta"), KIND, ValueError, "kinds: got device meta, wanted cpu"),
    "kind too high": (TABLE, KIND + 1, ValueError, "kind: got indices from 1 to 4, wanted 0 to 3 for S=4"),
    "kind too high for few rows": (TABLE[:2], KIND, ValueError, "kind: got indices from 0 to 3, wanted 0 to 1 for S=2"),
    "kind too high without a table": (None, KIND, ValueError, "kind: got indices from 0 to 3, wanted 0 to 2 for S=3"),
    "kind negative": (TABLE, KIND - 1, ValueError, "kind: got indices from -1"),
    "kind of another length": (TABLE, KIND[:2], ValueError, r"kind: got shape \(2,\), wanted \(8,\)"),
    "kind of two axes": (TABLE, KIND[:, None], ValueError, r"kind: got shape \(8, 1\), wanted \(8,\)"),
    "kind as a table": (TABLE, TABLE[KIND], TypeError, "kind: got dtype torch.bool, wanted torch.int64"),
    "kind of int32": (TABLE, KIND.int(), TypeError, "kind: got dtype torch.int32, wanted torch.int64"),
    "kind as a list": (TABLE, KIND.tolist(), TypeError, "kind: got list, wanted an int64 tensor"),
    "kind elsewhere": (TABLE, KIND.to("meta"), ValueError, "kind: got device meta, wanted cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_bad_tables_and_kinds_are_named(boundary, case):
    kinds, kind, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        BOUNDARIES[boundary](Z, Z.flip(0), M, kinds=kinds, kind=kind)


@pytest.mark.parametrize("case", ["another width", "no row", "numbers", "a row of False", "elsewhere"])
@pytest.mark.parametrize("boundary", [name for name in BOUNDARIES if name != "subspace_sensitivity"])
def test_a_bad_table_is_refused_without_kind_too(boundary, case):
    kinds, _, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        BOUNDARIES[boundary](Z, Z.flip(0), M, kinds=kinds)


@pytest.mark.parametrize("boundary", ["subspace_sensitivity", "SubspaceVICRegLoss", "SubspaceNTXentLoss"])
def test_an_augmentation_that_never_differs_is_refused_by_sensitivity(boundary):
    kinds = torch.tensor([[True, False, False], [True, False, True]])
    words = r"kinds: got augmentations \[1\] that differ in no kind of pair"
    with pytest.raises(ValueError, match=words):
        BOUNDARIES[boundary](Z, Z.flip(0), M, kinds=kinds, kind=KIND % 2)
    SubspaceNTXentLoss(sensitivity_param=0.0)(Z, Z.flip(0), masks=M, kinds=kinds, kind=KIND % 2)


def test_kinds_are_refused_under_compile_where_it_costs_nothing():
    compiled = torch.compile(MF.masked_distance, fullgraph=True, backend="aot_eager")
    compiled(Z, Z, M, kinds=TABLE, kind=KIND)
    with pytest.raises(RuntimeError, match="kind: got an index out of range, wanted a row of the table"):
        compiled(Z, Z, M, kinds=TABLE, kind=KIND + 1)
    compiled = torch.compile(MF.subspace_sensitivity, fullgraph=True, backend="aot_eager")
    compiled(Z, Z.flip(0), M, kinds=TABLE, kind=KIND)
    with pytest.raises(RuntimeError, match="kinds: got an augmentation that differs in no kind of pair"):
        compiled(Z, Z.flip(0), M, kinds=TABLE & torch.tensor([True, False, True]), kind=KIND)


# ---- through a head


def head(**options):
    torch.manual_seed(1)
    projector = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, D))
    return MaskedSubspaceHead(projector, ["crop", "color", "blur"], **options)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()])
def test_a_head_carries_its_table_and_a_loss_reads_it(loss):
    on(loss, "auto")
    one, h0, h1 = head(kinds=TABLE), torch.randn(N, 16), torch.randn(N, 16)
    out0, out1 = one(h0), one(h1)
    assert torch.equal(out0.kinds, TABLE)
    value = loss(out0, out1, kind=KIND)
    plain = loss(out0.embedding, out1.embedding, masks=out0.masks, kinds=TABLE, kind=KIND)
    assert torch.equal(value, plain)
    assert torch.equal(loss(out0.embedding, out1, kind=KIND), plain)
    assert torch.equal(loss(out0, out1.embedding, kind=KIND), plain)
    for views in ((out0, out1), (out0, out1.embedding), (out0.embedding, out1)):
        with pytest.raises(ValueError, match="kinds: got a table beside a head's output, which carries its own"):
            loss(*views, kinds=TABLE, kind=KIND)


def test_two_heads_with_tables_of_other_shapes_are_refused():
    out0, out1 = head(kinds=TABLE)(torch.randn(N, 16)), head(kinds=TABLE[:2])(torch.randn(N, 16))
    with pytest.raises(ValueError, match=r"out1.kinds: got shape \(2, 3\), wanted \(4, 3\), that of out0.kinds"):
        SubspaceNTXentLoss()(out0, out1, kind=KIND)


@pytest.mark.parametrize("granularity", [None, "sample", "subspace", "dimension"])
def test_a_chunk_is_what_two_calls_give(granularity):
    one, h = head(kinds=TABLE, uncertainty=granularity), torch.randn(2 * N, 16)
    chunks = one(h).chunk(2)
    assert len(chunks) == 2
    for chunk, part in zip(chunks, h.chunk(2), strict=True):
        alone = one(part)
        torch.testing.assert_close(chunk.embedding, alone.embedding)
        assert torch.equal(chunk.masks, alone.masks)
        assert torch.equal(chunk.kinds, alone.kinds)
        assert chunk.granularity == alone.granularity == granularity
        if granularity is None:
            assert chunk.log_variance is None
        else:
            torch.testing.assert_close(chunk.log_variance, alone.log_variance)
    torch.testing.assert_close(
        SubspaceVICRegLoss()(*chunks, kind=KIND), SubspaceVICRegLoss()(*(one(x) for x in h.chunk(2)), kind=KIND)
    )


def test_uneven_chunks_keep_log_variances_beside_their_samples():
    out = SubspaceOutput(torch.arange(10.0).reshape(5, 2), M[:, :2], torch.arange(5.0)[:, None], None, "sample")
    chunks = out.chunk(2)
    assert [len(c.embedding) for c in chunks] == [3, 2]
    assert all(torch.equal(c.embedding[:, :1], 2 * c.log_variance) for c in chunks)


# ---- numbers at their ends


@pytest.mark.parametrize("size", [1e-5, 1e-12, 1.0])
@pytest.mark.parametrize("kinds", [None, TABLE], ids=["alone", "mixed"])
@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_tiny_pairs_that_are_alike_have_no_mismatch(size, kinds, distance):
    """Nor have tiny pairs that are opposite a small one: the mismatch is relative, whatever the scale."""
    z = torch.randn(N, D)
    z = size * (z - z.mean(0))

    def mismatch(z0, z1):
        log_variance = torch.zeros(N, K, requires_grad=True)
        value = MF.uncertainty_invariance(
            z0, z1, torch.ones(K, D), kinds=kinds, kind=KIND % 3, log_variance=log_variance, granularity="subspace",
            normalize=True, distance=distance,
        )  # fmt: skip
        return 1 - torch.autograd.grad(value.sum(), log_variance)[0][torch.arange(N), KIND % 3]

    assert mismatch(z, z.clone()).eq(0).all()
    torch.testing.assert_close(mismatch(z, -z), torch.full((N,), 2.0))


def doubtful(by, granularity, alike, backend, **options):
    """The value and its gradients where log-variances are far from 0, in float32."""
    if backend == "triton":
        pytest.importorskip("triton")
    x = make(TABLE, dtype=torch.float32)
    lv = torch.tensor(by).repeat(N // len(by))[:, None].repeat(1, WIDTHS[granularity](K, D)).requires_grad_()
    leaves = [x.z0, x.z0.detach().clone().requires_grad_() if alike else x.z1, x.masks, lv]
    doubt = {"log_variance": lv, "granularity": granularity, "backend": backend}
    value = MF.uncertainty_invariance(*leaves[:3], kinds=TABLE, **doubt, **options)
    return value, *torch.autograd.grad(value.sum(), leaves)


extremes = pytest.mark.parametrize("kind", [None, KIND], ids=["alone", "mixed"])
backends = pytest.mark.parametrize("backend", ["eager", "chunked", "triton"])


@extremes
@backends
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"reduction": "mean"}], ids=str)
@pytest.mark.parametrize("granularity", WIDTHS)
@pytest.mark.parametrize("by", [(-80.0,), (80.0,), (-80.0, 80.0)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_far_variances_are_finite(by, granularity, options, alike, kind, backend):
    assert all(x.isfinite().all() for x in doubtful(by, granularity, alike, backend, kind=kind, **options))


@extremes
@backends
@pytest.mark.parametrize("granularity", WIDTHS)
@pytest.mark.parametrize("by", [(-90.0,), (90.0,), (-90.0, 90.0)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_variances_beyond_float32_give_no_nan(by, granularity, kind, backend):
    """``exp(90)`` does not fit: what is apart may cost infinitely much, and what is alike costs its doubt alone."""
    value, g_z0, g_z1, _, g_variance = doubtful(by, granularity, False, backend, kind=kind)
    assert not any(x.isnan().any() for x in (value, g_z0, g_z1, g_variance))
    value, *gradients = doubtful(by, granularity, True, backend, kind=kind)
    assert value.isfinite().all()
    if granularity == "dimension":
        assert all(x.isfinite().all() for x in gradients)
    value = doubtful(by, granularity, True, backend, kind=kind, reduction="mean")[0]
    assert value.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_log_variances_are_combined_in_float32(dtype):
    a, b = torch.randn(2, N, K).mul(3).to(dtype)
    got = MF.combine_log_variance(a, b)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), torch.logaddexp(a.double(), b.double()), rtol=1e-6, atol=1e-6)
    z0, z1 = torch.randn(2, N, D).to(dtype)
    loss = UncertaintyInvarianceLoss()
    halves = [SubspaceOutput(z, M, lv, TABLE, "subspace") for z, lv in ((z0, a), (z1, b))]
    wide = [SubspaceOutput(z.double(), M.double(), lv.double(), TABLE, "subspace") for z, lv in ((z0, a), (z1, b))]
    torch.testing.assert_close(loss(*halves, kind=KIND).double(), loss(*wide, kind=KIND), rtol=1e-5, atol=1e-6)
