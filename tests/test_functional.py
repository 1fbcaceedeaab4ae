"""Every function against a float64 reference written subspace by subspace, and against its invariants."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import mast_ops.functional as MF

SHAPES = [(1, 1, 1), (2, 7, 3), (7, 1, 15), (7, 128, 64), (2, 1000, 3), (7, 7, 1)]
T = 0.3


def make(n, d, k, dtype=torch.float64, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    z0 = torch.randn(n, d, generator=g, dtype=torch.float64)
    z1 = torch.randn(n, d, generator=g, dtype=torch.float64)
    masks = torch.rand(k, d, generator=g, dtype=torch.float64) + 0.05
    kind = torch.randint(k, (n,), generator=g)
    return z0.to(device, dtype), z1.to(device, dtype), masks.to(device, dtype), kind.to(device)


# ---- references: one subspace at a time, on z * m_k


def stack(per_mask, masks):
    return torch.stack([per_mask(m) for m in masks], dim=-1)


def ref_distance(z0, z1, masks):
    return stack(lambda m: (z0 * m - z1 * m).square().sum(1), masks)


def ref_cosine(z0, z1, masks):
    return stack(lambda m: F.cosine_similarity(z0 * m, z1 * m, dim=1), masks)


def ref_info_nce(z0, z1, masks, t=T):
    def one(m):
        logits = F.normalize(z0 * m, dim=1) @ F.normalize(z1 * m, dim=1).T / t
        return F.cross_entropy(logits, torch.arange(len(z0), device=z0.device), reduction="none")

    return stack(one, masks)


def ref_nt_xent(z0, z1, masks, t=T):
    n = len(z0)

    def one(m):
        z = F.normalize(torch.cat([z0, z1]) * m, dim=1)
        logits = z @ z.T / t
        logits.fill_diagonal_(-math.inf)
        target = torch.cat([torch.arange(n, 2 * n), torch.arange(n)]).to(z.device)
        both = F.cross_entropy(logits, target, reduction="none")
        return (both[:n] + both[n:]) / 2

    return stack(one, masks)


def ref_variance(z, masks, eps=1e-4):
    return stack(lambda m: torch.relu(1 - ((z * m).var(0) + eps).sqrt()).mean(), masks)


def ref_covariance(z, masks):
    def one(m):
        c = torch.cov((z * m).T).reshape(z.shape[1], z.shape[1])
        return (c - torch.diag(c.diagonal())).square().sum() / z.shape[1]

    return stack(one, masks)


def ref_barlow(z0, z1, masks):
    a = F.batch_norm(z0, None, None, training=True)
    b = F.batch_norm(z1, None, None, training=True)

    def terms(m):
        c = (a * m).T @ (b * m) / len(a)
        plain = a.T @ b / len(a)
        on = ((plain.diagonal() - 1).square() * m.square()).sum()
        return on, (c - torch.diag(c.diagonal())).square().sum()

    pairs = [terms(m) for m in masks]
    return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])


def ref_uncertainty(z0, z1, masks, log_variance=None, granularity=None, distance="squared", normalize=False):
    n, _ = z0.shape

    def entry(i, k):
        m = masks[k]
        if distance == "cosine":
            gap = 1 - F.cosine_similarity((z0[i] * m)[None], (z1[i] * m)[None])[0]
        else:
            gap = (m * (z0[i] - z1[i])).square()
        if log_variance is None:
            return gap.mean()
        column = {"sample": slice(0, 1), "subspace": slice(k, k + 1), "dimension": slice(None)}[granularity]
        lv = log_variance[i, column]
        if normalize and granularity != "dimension":
            centre = (z0.sum(0) + z1.sum(0)) / (2 * n)
            a, b = (m * (z[i] - centre) for z in (z0, z1))
            mismatch = ((a - b) @ (a - b) / (a @ a + b @ b)).detach()
            weight = (1 / lv.exp() / (1 / log_variance[:, column].exp()).mean()).detach()
            return (weight * gap.mean() + mismatch / lv.exp() + lv).sum()
        scale = 1 / (-log_variance[:, column]).exp().mean(0) if normalize else 0.5
        price = scale * lv if distance == "cosine" else scale * lv * m.square().clamp(max=1)
        return (gap * scale / lv.exp() + price).mean()

    return torch.stack([torch.stack([entry(i, k) for k in range(len(masks))]) for i in range(n)])


def gather(all_k, kind):
    return all_k[torch.arange(len(kind)), kind]


PAIR_REFS = {
    "distance": (lambda a, b, m, s=None: MF.masked_distance(a, b, m, kind=s), ref_distance),
    "cosine": (lambda a, b, m, s=None: MF.masked_cosine_similarity(a, b, m, kind=s), ref_cosine),
    "info_nce": (
        lambda a, b, m, s=None: MF.subspace_info_nce(a, b, m, temperature=T, kind=s, reduction="none"),
        ref_info_nce,
    ),
    "nt_xent": (
        lambda a, b, m, s=None: MF.subspace_nt_xent(a, b, m, temperature=T, kind=s, reduction="none"),
        ref_nt_xent,
    ),
    "invariance": (lambda a, b, m, s=None: MF.uncertainty_invariance(a, b, m, kind=s), ref_uncertainty),
}
NEEDS_TWO = {
    "variance": (lambda a, b, m: MF.subspace_variance(a, m), lambda a, b, m: ref_variance(a, m)),
    "covariance": (lambda a, b, m: MF.subspace_covariance(a, m), lambda a, b, m: ref_covariance(a, m)),
    "barlow_invariance": (lambda a, b, m: MF.subspace_barlow_twins(a, b, m)[0], lambda *x: ref_barlow(*x)[0]),
    "barlow_redundancy": (lambda a, b, m: MF.subspace_barlow_twins(a, b, m)[1], lambda *x: ref_barlow(*x)[1]),
}
ALL_PAIRS = {**PAIR_REFS, **NEEDS_TWO}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ALL_PAIRS)
def test_equals_reference(name, shape, device):
    if name in NEEDS_TWO and shape[0] < 2:
        pytest.skip("a variance needs two samples")
    ours, reference = ALL_PAIRS[name]
    z0, z1, masks, _ = make(*shape, device=device)
    got, wanted = ours(z0, z1, masks), reference(z0, z1, masks)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("granularity", "distance"),
    [("sample", "squared"), ("subspace", "squared"), ("dimension", "squared"), ("sample", "cosine"),
     ("subspace", "cosine")],
)  # fmt: skip
def test_uncertainty_equals_reference(granularity, distance, normalize):
    z0, z1, masks, kind = make(5, 7, 3)
    lv = torch.randn(5, {"sample": 1, "subspace": 3, "dimension": 7}[granularity], dtype=torch.float64)
    options = {"log_variance": lv, "granularity": granularity, "distance": distance, "normalize": normalize}
    got = MF.uncertainty_invariance(z0, z1, masks, **options)
    wanted = ref_uncertainty(z0, z1, masks, lv, granularity, distance, normalize)
    torch.testing.assert_close(got, wanted)
    own = MF.uncertainty_invariance(z0, z1, masks, kind=kind, **options)
    torch.testing.assert_close(own, gather(wanted, kind))


@pytest.mark.parametrize("factorised", [False, True])
@pytest.mark.parametrize("backend", ["eager", "chunked", "compile"])
@pytest.mark.parametrize(
    ("granularity", "distance"),
    [("sample", "squared"), ("subspace", "squared"), ("sample", "cosine"), ("subspace", "cosine")],
)
def test_normalised_uncertainty_has_the_gradients_of_its_reference(
    granularity, distance, backend, factorised, monkeypatch
):
    """Weights and mismatch are constants: the embedding learns from the distance, the prediction from the mismatch."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # Inductor: in test_backend.py
    z0, z1, masks, kind = make(5, 7, 3)
    lv = torch.randn(5, {"sample": 1, "subspace": 3}[granularity], dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (z0, z1, masks, lv)]
    options = {"distance": distance, "normalize": True}
    wanted = ref_uncertainty(*leaves, granularity, **options)
    wanted = gather(wanted, kind) if factorised else wanted
    options |= {"granularity": granularity, "kind": kind if factorised else None, "backend": backend}
    got = MF.uncertainty_invariance(z0, z1, masks, log_variance=lv, **options)
    upstream = torch.rand_like(wanted)
    gradients = [torch.autograd.grad(x, leaves, upstream) for x in (got, wanted)]
    torch.testing.assert_close(*gradients)
    mean = MF.uncertainty_invariance(z0, z1, masks, log_variance=lv, **options, reduction="mean")
    torch.testing.assert_close(mean, wanted.mean())


@given(
    scale=st.floats(1e-3, 1e6), shift=st.floats(-1e3, 1e3), seed=st.integers(0, 10**6),
    distance=st.sampled_from(["squared", "cosine"]),
)  # fmt: skip
@settings(deadline=None, max_examples=25)
def test_the_mismatch_ignores_scale_and_shift_and_is_from_0_to_2(scale, shift, seed, distance):
    """So that an embedding that shrinks, or has a mean, does not pass for certain: the gradient is 1 - r / v."""

    def mismatch(z0, z1):
        lv = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
        value = MF.uncertainty_invariance(
            z0, z1, masks, log_variance=lv, granularity="subspace", distance=distance, normalize=True
        )
        return 1 - torch.autograd.grad(value.sum(), lv)[0]

    torch.manual_seed(seed)
    z0, z1, masks, _ = make(6, 5, 3, seed=seed)
    z0, z1 = 10 * z0, 10 * z1
    base = mismatch(z0, z1)
    assert base.min() >= 0
    assert base.max() <= 2 + 1e-12
    by = shift * torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(mismatch(scale * z0, scale * z1), base, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mismatch(z0 + by, z1 + by), base, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mismatch(z0, z0), torch.zeros_like(base), atol=1e-9, rtol=0)
    torch.testing.assert_close(mismatch(z0 - z0.mean(0), z0.mean(0) - z0), torch.full_like(base, 2.0))


@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_factorised_is_gather_of_all(shape, seed):
    z0, z1, masks, kind = make(*shape, seed=seed)
    for name, (function, _) in PAIR_REFS.items():
        wanted = gather(function(z0, z1, masks), kind)
        torch.testing.assert_close(function(z0, z1, masks, kind), wanted, msg=lambda m, name=name: f"{name}: {m}")
    for function in (MF.subspace_info_nce, MF.subspace_nt_xent):
        torch.testing.assert_close(
            function(z0, z1, masks, temperature=T, kind=kind),
            function(z0, z1, masks, temperature=T, kind=kind, reduction="none").mean(),
        )
        torch.testing.assert_close(
            function(z0, z1, masks, temperature=T), function(z0, z1, masks, temperature=T, reduction="none").mean()
        )


def test_barlow_twins_factorised():
    z0, z1, masks, kind = make(9, 5, 3)
    whole, redundancy = MF.subspace_barlow_twins(z0, z1, masks)
    one, same = MF.subspace_barlow_twins(z0, z1, masks, kind=torch.full((9,), 1))
    torch.testing.assert_close(one, torch.stack([0 * whole[1], 3 * whole[1], 0 * whole[1]]))
    torch.testing.assert_close(same, redundancy)
    a, b = (F.batch_norm(z, None, None, training=True) for z in (z0, z1))
    got, _ = MF.subspace_barlow_twins(z0, z1, masks, kind=kind)
    for k in range(3):
        own = kind == k
        diagonal = (a[own] * b[own]).mean(0) if own.any() else torch.zeros(5, dtype=a.dtype)
        wanted = ((diagonal - 1).square() * masks[k].square()).sum() * own.sum() * 3 / 9
        torch.testing.assert_close(got[k], wanted)


@given(n=st.integers(2, 8), d=st.integers(1, 8), k=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_permutations(n, d, k, seed):
    z0, z1, masks, _ = make(n, d, k, seed=seed)
    samples, dims, subs = torch.randperm(n), torch.randperm(d), torch.randperm(k)
    for name, (function, _) in ALL_PAIRS.items():
        base = function(z0, z1, masks)
        torch.testing.assert_close(function(z0[:, dims], z1[:, dims], masks[:, dims]), base)
        torch.testing.assert_close(function(z0, z1, masks[subs]), base[..., subs])
        wanted = base if name in NEEDS_TWO else base[samples]
        torch.testing.assert_close(function(z0[samples], z1[samples], masks), wanted)


@given(c=st.floats(0.1, 10), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_scale_laws(c, seed):
    z0, z1, masks, _ = make(6, 5, 3, seed=seed)
    distance = MF.masked_distance(z0, z1, masks)
    torch.testing.assert_close(MF.masked_distance(c * z0, c * z1, masks), c**2 * distance)
    torch.testing.assert_close(MF.masked_distance(z0, z1, c * masks), c**2 * distance)
    for name in ("cosine", "info_nce", "nt_xent"):
        function = PAIR_REFS[name][0]
        base = function(z0, z1, masks)
        torch.testing.assert_close(function(c * z0, z1, masks), base)
        torch.testing.assert_close(function(z0, c * z1, masks), base)
        torch.testing.assert_close(function(z0, z1, c * masks), base)
    covariance = MF.subspace_covariance(z0, masks)
    torch.testing.assert_close(MF.subspace_covariance(c * z0, masks), c**4 * covariance)
    torch.testing.assert_close(MF.subspace_covariance(z0, c * masks), c**4 * covariance)


# A rank has no gradient; that of explained variance holds the spread still, as sensitivity's does.
STATISTICS = ("explained_variance", "pair_difficulty")


def grad_cases():
    z0, z1, masks, kind = (x.requires_grad_() if x.is_floating_point() else x for x in make(4, 5, 3, seed=3))
    lv = [torch.randn(4, w, dtype=torch.float64, requires_grad=True) for w in (1, 3, 5)]
    t = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    views = (z0, z1, masks)
    cases = {
        "combine_log_variance": [(MF.combine_log_variance, (lv[1], lv[1].detach().flip(0).requires_grad_()))],
        "masked_distance": [], "masked_cosine_similarity": [], "subspace_barlow_twins": [],
        "subspace_info_nce": [], "subspace_nt_xent": [], "uncertainty_invariance": [],
        "subspace_variance": [(MF.subspace_variance, (z0, masks))],
        "subspace_covariance": [(MF.subspace_covariance, (z0, masks))],
        "subspace_moments": [(MF.subspace_moments, (z0, masks))],
        "subspace_sup_con": [], "subspace_sigmoid": [], "subspace_sensitivity": [
            # Views with the spread held still, which is a constant, are in test_sensitivity.py.
            (lambda m, w=w: MF.subspace_sensitivity(z0.detach(), z1.detach(), m, kind=kind, weight=w), (masks,))
            for w in (None, torch.rand(4, dtype=torch.float64))
        ],
    }  # fmt: skip
    for s in (None, kind):
        for name in ("masked_distance", "masked_cosine_similarity", "subspace_barlow_twins"):
            f = getattr(MF, name)
            cases[name].append((lambda a, b, m, f=f, s=s: f(a, b, m, kind=s), views))
        for name in ("subspace_info_nce", "subspace_nt_xent"):
            for r in ("none", "mean"):
                f = getattr(MF, name)
                cases[name].append(
                    (lambda a, b, m, t, f=f, s=s, r=r: f(a, b, m, temperature=t, kind=s, reduction=r), (*views, t))
                )
        b = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
        for r in ("none", "mean"):
            o = {"kind": s, "reduction": r}
            case = (lambda x, y, m, t, b, o=o: MF.subspace_sigmoid(x, y, m, scale=t, bias=b, **o), (*views, t, b))
            cases["subspace_sigmoid"].append(case)
        labels = torch.tensor([0, 1, 0, 1])
        for r in ("none", "mean"):
            f = MF.subspace_sup_con
            case = (
                lambda a, m, t, f=f, s=s, r=r, labels=labels: f(a, labels, m, temperature=t, kind=s, reduction=r),
                (z0, masks, t),
            )
            cases["subspace_sup_con"].append(case)
            f = MF.masked_distance
            cases["masked_distance"].append((lambda a, b, m, f=f, s=s, r=r: f(a, b, m, kind=s, reduction=r), views))
        f = MF.uncertainty_invariance
        for r in ("none", "mean"):
            case = (lambda a, b, m, f=f, s=s, r=r: f(a, b, m, kind=s, reduction=r), views)
            cases["uncertainty_invariance"].append(case)
        for v, granularity in zip(lv, ("sample", "subspace", "dimension"), strict=True):
            for distance in ("squared", "cosine") if granularity != "dimension" else ("squared",):
                o = {"kind": s, "granularity": granularity, "distance": distance}
                case = (lambda a, b, m, v, f=f, o=o: f(a, b, m, log_variance=v, **o), (*views, v))
                cases["uncertainty_invariance"].append(case)
    inner = (torch.rand(3, 5, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    for name in ("mask_coverage", "mask_entropy", "mask_expected_l0", "mask_hoyer", "mask_l1", "mask_overlap"):
        cases[name] = [(getattr(MF, name), (inner,))]
    return cases


def test_gradcheck_covers_every_function():
    assert sorted([*grad_cases(), *STATISTICS]) == sorted(MF.__all__)


def test_a_rank_has_no_gradient():
    z0, z1, masks, kind = (x.requires_grad_() if x.is_floating_point() else x for x in make(4, 5, 3, seed=3))
    assert not MF.pair_difficulty(z0, z1, masks, kind=kind).requires_grad


@pytest.mark.parametrize("name", [name for name in MF.__all__ if name not in STATISTICS])
def test_gradcheck(name):
    for function, arguments in grad_cases()[name]:
        assert torch.autograd.gradcheck(function, arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL_PAIRS)
def test_low_precision(name, dtype, device):
    ours, reference = ALL_PAIRS[name]
    z0, z1, masks, _ = make(16, 32, 3, dtype, device=device)
    exact = reference(z0.double(), z1.double(), masks.double())
    got = ours(z0, z1, masks)
    assert got.dtype == torch.float32
    ours_error = (got - exact).abs().max()
    eager_error = (reference(z0, z1, masks) - exact).abs().max()
    assert ours_error <= eager_error + 1e-4 * exact.abs().max()
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL_PAIRS)
def test_autocast_changes_nothing(name, device):
    z0, z1, masks, _ = make(8, 16, 3, torch.float32, device=device)
    outside = ALL_PAIRS[name][0](z0, z1, masks)
    with torch.autocast(device.type, torch.bfloat16):
        inside = ALL_PAIRS[name][0](z0, z1, masks)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_does_not_overflow(dtype):
    z0 = (torch.randn(4096, 8192) * 8).to(dtype)
    masks = torch.ones(2, 8192, dtype=dtype)
    z1 = z0.flip(0)
    distance = MF.masked_distance(z0, z1, masks)
    assert distance.isfinite().all()
    assert distance.max() > 65504  # float16's own end
    assert MF.masked_cosine_similarity(z0, z1, masks).isfinite().all()


@given(
    where=st.sampled_from(["z0", "z1", "masks", "log_variance"]), bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    index=st.integers(0, 10**6), seed=st.integers(0, 10**6), factorised=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_non_finite_input_never_hides(where, bad, index, seed, factorised):
    z0, z1, masks, _ = make(6, 5, 3, seed=seed)
    kind = torch.arange(6) % 2 if factorised else None  # no pair reads the last mask
    lv = torch.randn(6, 3, dtype=torch.float64)
    doubt = {"log_variance": lv, "granularity": "subspace", "kind": kind}
    if where == "log_variance":
        lv.view(-1)[index % lv.numel()] = math.nan  # with kinds a pair reads one column of three
        outputs = {"uncertainty": MF.uncertainty_invariance(z0, z1, masks, **doubt)}
        outputs["normalised"] = MF.uncertainty_invariance(z0, z1, masks, **doubt, normalize=True)
        outputs["combine"] = MF.combine_log_variance(lv, torch.zeros_like(lv))
    else:
        x = {"z0": z0, "z1": z1, "masks": masks}[where]
        x.view(-1)[index % x.numel()] = bad
        outputs = {name: f(z0, z1, masks, kind) for name, (f, _) in PAIR_REFS.items()}
        outputs["uncertainty"] = MF.uncertainty_invariance(z0, z1, masks, **doubt)
        outputs["cosine_lv"] = MF.uncertainty_invariance(z0, z1, masks, **doubt, distance="cosine")
        outputs["normalised"] = MF.uncertainty_invariance(z0, z1, masks, **doubt, normalize=True)
        outputs["difficulty"] = MF.pair_difficulty(z0, z1, masks, kind=kind)
        on, off = MF.subspace_barlow_twins(z0, z1, masks, kind=kind)
        outputs |= {"barlow_on": on, "barlow_off": off}
        if where != "z1":
            outputs["variance"] = MF.subspace_variance(z0, masks)
            outputs["covariance"] = MF.subspace_covariance(z0, masks)
        if where == "masks":
            for name in ("mask_coverage", "mask_entropy", "mask_expected_l0", "mask_hoyer", "mask_l1", "mask_overlap"):
                outputs[name] = getattr(MF, name)(masks)
    assert [name for name, out in outputs.items() if out.mean().isfinite()] == []


@pytest.mark.parametrize("case", ["zero masks", "identical views", "zero views", "D=1", "K=1", "K=64"])
@pytest.mark.parametrize("name", ALL_PAIRS)
def test_degenerate_input_is_finite(name, case):
    z0, z1, masks, _ = make(6, 1 if case == "D=1" else 5, {"K=1": 1, "K=64": 64}.get(case, 3), torch.float32)
    masks = torch.zeros_like(masks) if case == "zero masks" else masks
    if case == "zero views":
        z0, z1 = torch.zeros_like(z0), torch.zeros_like(z1)
    leaves = [x.requires_grad_() for x in (z0, z0.clone() if case == "identical views" else z1, masks)]
    out = ALL_PAIRS[name][0](*leaves)
    assert out.isfinite().all()
    for grad in torch.autograd.grad(out.sum(), leaves, allow_unused=True):
        assert grad is None or grad.isfinite().all()


BACKENDS = ["eager", "chunked"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e-15, 1e14, 1e18])
def test_a_cosine_of_any_size_has_all_of_its_gradient(size, backend):
    z0, z1, masks, _ = make(5, 4, 3, torch.float32)
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaves = [(size * z).to(dtype).requires_grad_() for z in (z0, z1)]
        value = MF.masked_cosine_similarity(*leaves, masks.to(dtype), eps=1e-19, backend=backend)
        grads.append([g.double() * size for g in torch.autograd.grad(value.sum(), leaves)])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_standardising_and_overlap_of_huge_numbers_keep_their_gradients():
    z0, z1, masks, _ = make(5, 4, 3, torch.float32)
    for function in (
        lambda z: MF.subspace_barlow_twins(z, z1.to(z.dtype), masks.to(z.dtype))[0].sum(),
        lambda z: MF.mask_overlap(z.abs()),
    ):
        grads = []
        for dtype in (torch.float32, torch.float64):
            z = (1e14 * z0).to(dtype).requires_grad_()
            grads.append(torch.autograd.grad(function(z), z)[0].double() * 1e14)
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [-95.0, 95.0])
@pytest.mark.parametrize("factorised", [False, True])
def test_weights_of_pairs_do_not_depend_on_the_unit_of_their_variance(shift, factorised, backend):
    """Not even where a float32 holds neither the variance nor its inverse."""
    z0, z1, masks, kind = make(5, 4, 3, torch.float32)
    log_variance = torch.randn(5, 4)

    def gradient(by):
        z = z0.clone().requires_grad_()
        value = MF.uncertainty_invariance(
            z, z1, masks, kind=kind if factorised else None, log_variance=log_variance + by, granularity="dimension",
            normalize=True, reduction="mean", backend=backend,
        )  # fmt: skip
        return torch.autograd.grad(value, z)[0]

    torch.testing.assert_close(gradient(shift), gradient(0), rtol=1e-4, atol=1e-6)


def test_no_pair_is_finite_relative_to_a_mean_that_is_not():
    z0, z1, masks, _ = make(5, 4, 3)
    z0[2, 1] = torch.nan
    doubt = {"log_variance": torch.zeros(5, 1, dtype=torch.float64), "granularity": "sample", "normalize": True}
    assert not MF.uncertainty_invariance(z0, z1, masks, distance="cosine", **doubt).isfinite().any()


@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
@pytest.mark.parametrize("log_variance", [-90.0, -100.0, -250.0])
@pytest.mark.parametrize(
    ("granularity", "distance"),
    [*((g, "squared") for g in ("sample", "subspace", "dimension")), ("sample", "cosine"), ("subspace", "cosine")],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, under Triton's interpreter
def test_identical_pairs_of_any_certainty_have_no_gradient(granularity, distance, log_variance, backend):
    """Not where one over the variance, or over the deviation, is beyond a float32."""
    if backend == "triton":
        pytest.importorskip("triton")
    z0, _, masks, _ = make(5, 4, 3, torch.float32)
    width = {"sample": 1, "subspace": 3, "dimension": 4}[granularity]
    leaves = [z0.requires_grad_(), masks.requires_grad_(), torch.full((5, width), log_variance).requires_grad_()]
    value = MF.uncertainty_invariance(
        leaves[0], z0.detach(), leaves[1], log_variance=leaves[2], granularity=granularity, distance=distance,
        backend=backend,
    )  # fmt: skip
    grads = torch.autograd.grad(value.sum(), leaves)
    price = log_variance / 2 * (masks.square().clamp_max(1).mean(1) if distance == "squared" else torch.ones(3))
    torch.testing.assert_close(value, price.expand(5, 3))
    assert not grads[0].any()
    assert grads[1].isfinite().all()
    assert grads[2].isfinite().all()
    assert grads[2].all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factorised", [False, True])
@pytest.mark.parametrize(
    ("near", "length"), [(1e-4, 1.0), (1e-3, 1.0), (0.1, 1.0), (1.0, 1.0), (1e-3, 3.0), (0.1, 1e4)]
)
def test_distances_by_cosine_keep_their_digits_where_views_are_near(near, length, factorised, backend):
    """One minus a cosine that is nearly one would keep none, and a small variance shows them."""
    z0, z1, masks, kind = make(6, 16, 3, torch.float32)
    z1 = length * (z0 + near * z1)
    z1[0] = z0[1] = 0
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in (z0, z1, masks)]
        value = MF.uncertainty_invariance(
            *leaves, kind=kind if factorised else None, distance="cosine", backend=backend
        )
        grads = torch.autograd.grad(value.sum(), leaves)
        seen = leaves[2][kind][:, None] if factorised else leaves[2]
        plain = 1 - F.cosine_similarity(seen * leaves[0][:, None], seen * leaves[1][:, None], dim=2)
        results.append((value.double(), *(g.double() for g in grads), plain.squeeze(1).double()))
    ours, exact = results
    torch.testing.assert_close(exact[0], exact[4], rtol=1e-6, atol=1e-12)
    if length == 1:  # of one minus a cosine the error would be eps over near squared: at 1e-4 no digit is left
        tolerance = {"rtol": 1e-6 / near + 1e-5, "atol": 1e-12}
        torch.testing.assert_close(ours[0], exact[0], **tolerance)
        for got, wanted in zip(ours[1:4], exact[1:4], strict=True):
            largest = float(wanted.abs().max())
            torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance["rtol"] * largest)
    else:
        torch.testing.assert_close(ours[0], exact[0], rtol=1e-5, atol=1e-6)


def test_small_temperature_is_finite():
    z0, z1, masks, _ = make(8, 6, 3, torch.float32)
    for function in (MF.subspace_info_nce, MF.subspace_nt_xent):
        z = z0.clone().requires_grad_()
        out = function(z, z1, masks, temperature=0.005)
        assert out.isfinite().all()
        assert torch.autograd.grad(out.sum(), z)[0].isfinite().all()


def test_single_row():
    z0, z1, masks, _ = make(1, 4, 3)
    for function in (MF.subspace_info_nce, MF.subspace_nt_xent):
        alone = function(z0, z1, masks, temperature=T, reduction="none")
        torch.testing.assert_close(alone, torch.zeros(1, 3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("factorised", [False, True])
def test_compile_fullgraph(factorised):
    z0, z1, masks, index = make(5, 6, 3, torch.float32)
    kind = index if factorised else None
    lv = torch.randn(5, 3)

    def everything(z0, z1, masks, lv):
        pairs = [f(z0, z1, masks, kind).mean() for f, _ in PAIR_REFS.values()]
        moments = [MF.subspace_variance(z0, masks).mean(), MF.subspace_covariance(z0, masks).mean()]
        barlow = [x.mean() for x in MF.subspace_barlow_twins(z0, z1, masks, kind=kind)]
        options = {"log_variance": MF.combine_log_variance(lv, -lv), "granularity": "subspace", "kind": kind}
        doubt = MF.uncertainty_invariance(z0, z1, masks, **options).mean()
        apart = MF.uncertainty_invariance(z0, z1, masks, **options, normalize=True).mean()
        regularizers = [MF.mask_l1, MF.mask_hoyer, MF.mask_expected_l0, MF.mask_coverage, MF.mask_overlap]
        return torch.stack([*pairs, *moments, *barlow, doubt, apart, *[r(masks) for r in regularizers]])

    leaves = [x.requires_grad_() for x in (z0, z1, masks, lv)]
    eager = everything(*leaves)
    # Inductor takes a minute: test_ops.py gives it the operators, test_losses.py the losses.
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    pairs = zip(torch.autograd.grad(compiled.sum(), leaves), torch.autograd.grad(eager.sum(), leaves), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "chunked", "triton"])
@pytest.mark.parametrize("normalize", [False, True])
def test_what_a_large_mask_does_not_count_leaves_no_rounding(normalize, backend):
    """Beyond 1 a mask's log-variances count no further: float32 has nothing to take back."""
    z0, log_variance = torch.randn(33, 5) + 5, 8 * torch.rand(33, 5) - 4
    z1 = z0 + 1e-3 * torch.randn(33, 5)
    options = {"granularity": "dimension", "normalize": normalize, "backend": backend}

    def gradient(dtype):
        masks = torch.linspace(20, 60, 10).view(2, 5).to(dtype).requires_grad_()
        own = options if dtype == torch.float32 else {**options, "backend": "eager"}
        loss = MF.uncertainty_invariance(z0.to(dtype), z1.to(dtype), masks, log_variance=log_variance.to(dtype), **own)
        return torch.autograd.grad(loss.sum(), masks)[0].double()

    torch.testing.assert_close(gradient(torch.float32), gradient(torch.float64), rtol=2e-4, atol=0.0)
