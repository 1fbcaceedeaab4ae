"""Sensitivity outside of masks, against a float64 reference in plain loops, and what must never happen to it."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mast_ops.functional as MF
from mast_ops import SubspaceOutput, SubspaceVICRegLoss

EPS = 1e-4
SHAPES = [(2, 1, 1), (2, 7, 3), (9, 1, 4), (9, 33, 3), (40, 5, 15), (7, 4, 12)]


def make(n, d, k, dtype=torch.float64, seed=0, device="cpu"):
    """Views that agree more in some dimensions than in others, masks on either side of 1, kinds and weights."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    z0 = normal(n, d) * (0.5 + torch.rand(d, generator=g, dtype=torch.float64))
    z1 = z0 + normal(n, d) * torch.rand(d, generator=g, dtype=torch.float64)
    masks = torch.rand(k, d, generator=g, dtype=torch.float64) * 1.2
    masks[(masks - 1).abs() < 0.02] = 0.9  # off the hinge, where half precision falls on either side
    kind = torch.randint(k, (n,), generator=g)
    weight = torch.rand(n, generator=g, dtype=torch.float64) + 0.1
    return *(x.to(device, dtype) for x in (z0, z1, masks)), kind.to(device), weight.to(device, dtype)


def variance_of(z):
    mean = sum(z) / len(z)
    return sum((row - mean) ** 2 for row in z) / len(z)


def reference(z0, z1, masks, kind, weight=None, eps=EPS, kinds=None):
    kinds = torch.eye(len(masks), dtype=torch.bool) if kinds is None else kinds
    spread = ((variance_of(z0) + variance_of(z1)) / 2).detach()
    out = []
    for k, mask in enumerate(masks):
        alone = [j == k for j in range(len(masks))]
        pairs = [i for i, own in enumerate(kind.tolist()) if kinds[own].tolist() == alone]
        weights = [1.0 if weight is None else float(weight[i]) for i in pairs]
        if sum(weights) == 0:
            out.append(0 * (mask.sum() + z0.sum() + z1.sum()))
            continue
        gap = sum(w * (z0[i] - z1[i]) ** 2 for w, i in zip(weights, pairs, strict=True)) / sum(weights)
        cost = 0
        for d in range(len(mask)):
            ratio = gap[d] / (2 * max(float(spread[d]), eps))
            cost = cost + max(1 - abs(mask[d]), 0 * mask[d]) * max(1 - (ratio + eps) ** 0.5, 0 * ratio)
        out.append(cost / len(mask))
    return torch.stack(out)


def value_and_gradients(function, z0, z1, masks, *rest, **options):
    leaves = [x.detach().clone().requires_grad_() for x in (z0, z1, masks)]
    value = function(*leaves, *rest, **options)
    upstream = torch.arange(1.0, len(value) + 1, dtype=value.dtype, device=value.device)
    return value.detach(), *torch.autograd.grad((value * upstream).sum(), leaves)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference_with_gradients(shape, weighted, device):
    z0, z1, masks, kind, weight = make(*shape, device=device)
    weight = weight if weighted else None
    got = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kind=kind, weight=weight)
    wanted = value_and_gradients(reference, z0, z1, masks, kind=kind, weight=weight)
    assert got[0].shape == (shape[2],)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_eps_is_under_the_root_and_below_the_variance(eps):
    z0, z1, masks, kind, weight = make(9, 6, 3)
    z0[:, 0], z1[:, 0] = 1.0, 1.0 + 1e-3
    got = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kind=kind, weight=weight, eps=eps)
    wanted = value_and_gradients(reference, z0, z1, masks, kind=kind, weight=weight, eps=eps)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck_while_the_spread_holds_still(weighted, monkeypatch):
    """The spread is a constant; finite differences would see it move."""
    z0, z1, masks, kind, weight = make(6, 5, 3, seed=1)
    spread = (z0.var(0, correction=0) + z1.var(0, correction=0)) / 2
    monkeypatch.setattr("mast_ops.functional.sensitivity.spread", lambda *_: spread)
    leaves = [x.requires_grad_() for x in (z0, z1, masks)]
    weight = weight if weighted else None
    assert torch.autograd.gradcheck(lambda *x: MF.subspace_sensitivity(*x, kind=kind, weight=weight), leaves)


def test_weights_get_no_gradient():
    z0, z1, masks, kind, weight = make(6, 5, 3)
    weight.requires_grad_()
    value = MF.subspace_sensitivity(z0, z1, masks.requires_grad_(), kind=kind, weight=weight)
    assert torch.autograd.grad(value.sum(), (masks, weight), allow_unused=True)[1] is None


def test_absent_subspaces_cost_nothing():
    z0, z1, masks, _, weight = make(8, 5, 4)
    kind = torch.tensor([0, 2, 2, 0, 0, 2, 0, 2])
    value, _, _, g_masks = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kind=kind, weight=weight)
    assert (value == 0).tolist() == [False, True, False, True]
    assert g_masks[[1, 3]].eq(0).all()
    weight[kind == 2] = 0  # present, but none of them counts
    value, *gradients = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kind=kind, weight=weight)
    assert (value == 0).tolist() == [False, True, True, True]
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("entry", [1.0, 1.5, 1e6, -1.0, -3.0])
def test_masks_without_an_outside_cost_exactly_nothing(entry):
    z0, z1, masks, kind, weight = make(8, 5, 3)
    masks = torch.full_like(masks, entry)
    value, g_z0, g_z1, _ = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kind=kind, weight=weight)
    assert value.eq(0).all()
    assert g_z0.eq(0).all()
    assert g_z1.eq(0).all()


def test_exact_zeros_are_outside_and_can_open():
    z0, z1, _, _, _ = make(8, 6, 3)
    masks, kind = 1 - torch.eye(3, dtype=torch.float64).repeat(1, 2), torch.arange(8) % 3
    value, _, _, g_masks = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kind=kind)
    torch.testing.assert_close(value, reference(z0, z1, masks, kind=kind))
    assert value.gt(0).all()
    # Binary masks have exact zeros, from which a gradient must lead back.
    assert g_masks[masks == 0].le(0).all()
    assert (g_masks < 0).any(1).all()


KINDS = {
    "mixed": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]],
    "two at a time": [[1, 1, 0], [0, 1, 1], [1, 0, 1]],
    "some alone": [[1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]],
    "one alone in two rows": [[1, 0, 0], [1, 1, 1], [1, 0, 0]],
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("table", KINDS)
def test_pairs_in_which_one_augmentation_alone_differs_count(table, weighted, device):
    z0, z1, masks, _, weight = make(24, 6, 3, device=device)
    kinds = torch.tensor(KINDS[table], device=device).bool()
    options = {"kind": torch.arange(24, device=device) % len(kinds), "weight": weight if weighted else None}
    got = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kinds=kinds, **options)
    wanted = value_and_gradients(reference, z0, z1, masks, kinds=kinds, **options)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    alone = kinds[kinds.sum(1) == 1].any(0)
    assert torch.equal(got[0] > 0, alone)


def test_a_pair_in_which_several_differ_counts_nothing_but_in_the_spread():
    z0, z1, masks, _, _ = make(12, 5, 2)
    kinds, kind = torch.tensor([[True, False], [False, True], [True, True]]), torch.arange(12) % 3
    base = MF.subspace_sensitivity(z0, z1, masks, kinds=kinds, kind=kind)
    swapped = z1.clone()
    swapped[kind == 2] = z1[kind == 2].roll(1, 0)  # the same spread, other differences
    torch.testing.assert_close(MF.subspace_sensitivity(z0, swapped, masks, kinds=kinds, kind=kind), base)
    swapped[kind == 1] = z1[kind == 1].roll(1, 0)
    moved = MF.subspace_sensitivity(z0, swapped, masks, kinds=kinds, kind=kind)
    assert ((moved - base).abs() > 1e-3).tolist() == [False, True]


def test_a_mask_within_all_the_others_still_counts():
    """What masks hold never changes what is asked of them: closed masks have the largest outside."""
    z0, z1, masks, kind, _ = make(9, 5, 3)
    masks, kind = masks.clamp(max=0.9), torch.arange(9) % 3
    masks[1] = masks.amin(0) / 2
    value, _, _, g_masks = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kind=kind)
    torch.testing.assert_close(value, reference(z0, z1, masks, kind))
    assert value.gt(0).all()
    assert g_masks.lt(0).any(1).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backend", ["eager", "chunked"])
def test_an_offset_costs_no_digits(weighted, backend):
    """Of the embedding, which a network may well have: differences are taken before anything else."""
    z0, z1, masks, kind, weight = make(64, 8, 3, torch.float32)
    options = {"kind": kind, "backend": backend}
    views = [z + 100 for z in (z0, z1)]
    got = value_and_gradients(MF.subspace_sensitivity, *views, masks, weight=weight if weighted else None, **options)
    exact = [x.double() for x in (*views, masks)]
    wanted = value_and_gradients(
        MF.subspace_sensitivity, *exact, weight=weight.double() if weighted else None, **options
    )
    for g, w in zip(got, wanted, strict=True):
        assert (g.double() - w).norm() <= 1e-5 * w.norm()


def test_the_sign_of_a_mask_does_not_matter():
    z0, z1, masks, kind, weight = make(8, 5, 3)
    value, _, _, g_masks = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kind=kind, weight=weight)
    flipped, _, _, g_flipped = value_and_gradients(MF.subspace_sensitivity, z0, z1, -masks, kind=kind, weight=weight)
    torch.testing.assert_close(flipped, value)
    torch.testing.assert_close(g_flipped, -g_masks)


def test_the_gradient_asks_the_outside_to_change():
    z0 = torch.randn(64, 6, dtype=torch.float64)
    z1 = (z0 + 0.1 * torch.randn(64, 6)).requires_grad_()
    masks = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    kind = torch.zeros(64, dtype=torch.long)
    (gradient,) = torch.autograd.grad(MF.subspace_sensitivity(z0, z1, masks, kind=kind).sum(), z1)
    assert gradient[:, :3].eq(0).all()
    assert (gradient[:, 3:] * (z1 - z0)[:, 3:]).lt(0).all()  # a step against it widens every difference


# ---- invariants

drawn = given(
    n=st.integers(4, 12), d=st.integers(1, 8), k=st.integers(1, 5), seed=st.integers(0, 10**6), weighted=st.booleans()
)


def sensitivity(z0, z1, masks, kind, weight, weighted):
    return MF.subspace_sensitivity(z0, z1, masks, kind=kind, weight=weight if weighted else None)


@drawn
@settings(deadline=None, max_examples=40)
def test_permutations(n, d, k, seed, weighted):
    torch.manual_seed(seed)
    z0, z1, masks, kind, weight = make(n, d, k, seed=seed)
    base = sensitivity(z0, z1, masks, kind, weight, weighted)
    i, dims, subs = torch.randperm(n), torch.randperm(d), torch.randperm(k)
    for other in (
        sensitivity(z0[i], z1[i], masks, kind[i], weight[i], weighted),
        sensitivity(z0[:, dims], z1[:, dims], masks[:, dims], kind, weight, weighted),
        sensitivity(z1, z0, masks, kind, weight, weighted),
        sensitivity(z0, z1, masks[subs], subs.argsort()[kind], weight, weighted)[subs.argsort()],
    ):
        torch.testing.assert_close(other, base)


@given(
    n=st.integers(4, 12), d=st.integers(1, 8), k=st.integers(1, 5), seed=st.integers(0, 10**6), weighted=st.booleans(),
    scale=st.floats(0.1, 1e6), shift=st.floats(-1e3, 1e3),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_neither_scale_nor_shift_of_both_views_matters(n, d, k, seed, weighted, scale, shift):
    torch.manual_seed(seed)
    z0, z1, masks, kind, weight = make(n, d, k, seed=seed)
    z0, z1 = 10 * z0, 10 * z1
    smallest = torch.stack([z0.var(0, correction=0), z1.var(0, correction=0)]).mean(0).min()
    assume(smallest * min(scale, 1) ** 2 > EPS)  # or the floor of the variance shows
    base = sensitivity(z0, z1, masks, kind, weight, weighted)
    moved = sensitivity(scale * z0, scale * z1, masks, kind, weight, weighted)
    torch.testing.assert_close(moved, base, rtol=1e-6, atol=1e-9)
    by = shift * torch.randn(d, dtype=torch.float64)
    torch.testing.assert_close(sensitivity(z0 + by, z1 + by, masks, kind, weight, weighted), base, rtol=1e-6, atol=1e-9)


@drawn
@settings(deadline=None, max_examples=40)
def test_range_masks_and_weights(n, d, k, seed, weighted):
    torch.manual_seed(seed)
    z0, z1, masks, kind, weight = make(n, d, k, seed=seed)
    base = sensitivity(z0, z1, masks, kind, weight, weighted)
    assert base.ge(0).all()
    assert base.le((1 - masks).clamp_min(0).mean(1) * (1 - EPS**0.5) + 1e-12).all()
    opened = sensitivity(z0, z1, masks + torch.rand_like(masks[:1]), kind, weight, weighted)
    assert opened.le(base + 1e-12).all()  # the smaller the outside, the less is asked of it
    factor = (torch.rand(k, dtype=torch.float64) + 0.1)[kind]  # within a kind all alike
    weight = weight if weighted else torch.ones_like(weight)
    torch.testing.assert_close(MF.subspace_sensitivity(z0, z1, masks, kind=kind, weight=weight * factor), base)


@given(
    where=st.sampled_from(["z0", "z1", "masks", "weight"]), bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    index=st.integers(0, 10**6), seed=st.integers(0, 10**6), weighted=st.booleans(), open_=st.booleans(),
    backend=st.sampled_from(["eager", "chunked"]),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_non_finite_input_never_hides(where, bad, index, seed, weighted, open_, backend):
    z0, z1, masks, _, weight = make(6, 5, 4, seed=seed)
    kind = torch.arange(6) % 3  # the last is absent
    masks = torch.ones_like(masks) if open_ else masks
    x = {"z0": z0, "z1": z1, "masks": masks, "weight": weight}[where]
    x.view(-1)[index % x.numel()] = math.inf if where == "weight" and bad == -math.inf else bad
    weight = weight if weighted or where == "weight" else None
    assert not MF.subspace_sensitivity(z0, z1, masks, kind=kind, weight=weight, backend=backend).mean().isfinite()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", ["constant", "zero", "identical", "zero masks", "opposite", "constant and apart"])
def test_degenerate_input_is_finite(case, weighted):
    z0, z1, masks, kind, weight = make(8, 5, 3, torch.float32)
    if case.startswith("constant"):
        z0, z1 = torch.ones_like(z0), torch.full_like(z1, 3.0 if case.endswith("apart") else 1.0)
    z0, z1 = {"zero": (0 * z0, 0 * z1), "identical": (z0, z0), "opposite": (z0, -z0)}.get(case, (z0, z1))
    masks = 0 * masks if case == "zero masks" else masks
    value, *gradients = value_and_gradients(
        MF.subspace_sensitivity, z0, z1, masks, kind=kind, weight=weight if weighted else None
    )
    for x in (value, *gradients):
        assert x.isfinite().all()
    if case in ("constant", "zero", "identical"):  # nothing outside changes: all of it is asked for
        present = torch.bincount(kind, minlength=3) > 0
        outside = (1 - masks).clamp_min(0).mean(1) * present
        torch.testing.assert_close(value, outside * (1 - EPS**0.5))


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e-3, 1e3, 1e15])
def test_huge_and_tiny_values_are_finite(scale):
    z0, z1, masks, kind, weight = make(16, 5, 3, torch.float32)
    for given_weight in (None, weight, weight * 1e-6, weight * 1e6):
        value, *gradients = value_and_gradients(
            MF.subspace_sensitivity, scale * z0, scale * z1, masks, kind=kind, weight=given_weight
        )
        for x in (value, *gradients):
            assert x.isfinite().all()
        if scale >= 1:
            expected = reference(*(x.double() for x in (z0, z1, masks)), kind, given_weight)
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)


# ---- precision and backends


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, weighted, device):
    z0, z1, masks, kind, weight = make(32, 24, 3, dtype, device=device)
    weight = weight if weighted else None
    exact = [None if x is None else x.double() for x in (z0, z1, masks, weight)]
    wanted = value_and_gradients(reference, *exact[:3], kind=kind, weight=exact[3])
    for masks_, weight_ in ((masks, weight), (masks.float(), None if weight is None else weight.float())):
        got = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks_, kind=kind, weight=weight_)
        assert got[0].dtype == torch.float32
        assert [g.dtype for g in got[1:]] == [dtype, dtype, masks_.dtype]
        torch.testing.assert_close(got[0].double(), wanted[0], rtol=1e-4, atol=1e-5)
        for g, w in zip(got[1:], wanted[1:], strict=True):
            eps = torch.finfo(g.dtype).eps  # their own rounding
            torch.testing.assert_close(g.double(), w, rtol=2 * eps, atol=2 * eps * float(w.abs().max()) + 1e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_autocast_changes_nothing(weighted, device):
    z0, z1, masks, kind, weight = make(16, 24, 3, torch.float32, device=device)
    weight = weight if weighted else None
    leaves = [x.requires_grad_() for x in (z0, z1, masks)]
    outside = MF.subspace_sensitivity(*leaves, kind=kind, weight=weight)
    with torch.autocast(device.type, torch.bfloat16):
        inside = MF.subspace_sensitivity(*leaves, kind=kind, weight=weight)
    assert torch.equal(inside, outside)
    gradients = [torch.autograd.grad(x.sum(), leaves) for x in (inside, outside)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backend", ["eager", "chunked", "compile", "triton"])
def test_every_backend_gives_the_same(backend, weighted):
    z0, z1, masks, kind, weight = make(12, 7, 3, torch.float32 if backend == "triton" else torch.float64)
    if backend == "triton":
        pytest.importorskip("triton")
    weight = weight if weighted else None
    got = value_and_gradients(MF.subspace_sensitivity, z0, z1, masks, kind=kind, weight=weight, backend=backend)
    exact = [None if x is None else x.double() for x in (z0, z1, masks, weight)]
    wanted = value_and_gradients(reference, *exact[:3], kind=kind, weight=exact[3])
    loose = {"rtol": 1e-4, "atol": 1e-5} if backend == "triton" else {}
    torch.testing.assert_close([x.double() for x in got], list(wanted), **loose)


def test_it_compiles_whole_with_any_batch():
    def call(z0, z1, masks, kind, weight):
        return MF.subspace_sensitivity(z0, z1, masks, kind=kind, weight=weight)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (9, 14):
        arguments = make(n, 6, 3, seed=n)
        got, wanted = value_and_gradients(compiled, *arguments), value_and_gradients(call, *arguments)
        torch.testing.assert_close(got, wanted)


def test_a_negative_weight_is_refused_under_compile():
    z0, z1, masks, kind, weight = make(9, 6, 3)
    compiled = torch.compile(MF.subspace_sensitivity, fullgraph=True, backend="aot_eager")
    compiled(z0, z1, masks, kind=kind, weight=weight)
    with pytest.raises(RuntimeError, match="weight: got a negative entry, wanted numbers >= 0"):
        compiled(z0, z1, masks, kind=kind, weight=-weight)


# ---- refusals

Z0, Z1, M, INDEX, W = make(6, 5, 3, torch.float32)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"z0": Z0[:1], "z1": Z1[:1], "kind": INDEX[:1]},
            ValueError,
            r"z0: got N=1 sample\(s\), wanted at least 2",
        ),
        ({"z0": Z0[:0], "z1": Z1[:0], "kind": INDEX[:0]}, ValueError, "z0: got an empty tensor"),
        ({"z1": Z1[:, :2]}, ValueError, "z1: got shape"),
        ({"z1": Z1.double()}, ValueError, "z1: got dtype"),
        ({"masks": M[:, :2]}, ValueError, r"masks: got \(3, 2\), wanted \(K, 5\)"),
        ({"masks": M.double()}, TypeError, "masks: got dtype torch.float64"),
        ({"kind": None}, TypeError, "kind: got NoneType, wanted an int64 tensor"),
        ({"kind": INDEX + 3}, ValueError, "kind: got indices from .*, wanted 0 to 2"),
        ({"kind": INDEX[:2]}, ValueError, r"kind: got shape \(2,\), wanted \(6,\)"),
        (
            {"kinds": torch.tensor([[True, False, True], [False, False, True]]), "kind": INDEX.clamp_max(1)},
            ValueError,
            r"kinds: got augmentations \[1\] that differ in no kind of pair",
        ),
        ({"kinds": torch.eye(3)}, TypeError, "kinds: got dtype torch.float32, wanted torch.bool"),
        ({"weight": W[:2]}, ValueError, r"weight: got shape \(2,\), wanted \(6,\), one per sample"),
        ({"weight": W[:, None]}, ValueError, r"weight: got shape \(6, 1\), wanted \(6,\)"),
        ({"weight": [1.0] * 6}, TypeError, r"weight: got list, wanted a tensor of shape \(N,\)"),
        ({"weight": W.double()}, TypeError, "weight: got dtype torch.float64, wanted float16, bfloat16 or float32"),
        ({"weight": INDEX}, TypeError, "weight: got dtype torch.int64, wanted float16, bfloat16 or float32"),
        ({"weight": W.to("meta")}, ValueError, "weight: got device meta, wanted cpu"),
        ({"weight": -W}, ValueError, r"weight: got -\d.* among its entries, wanted numbers >= 0"),
        ({"eps": 0.0}, ValueError, "eps: got 0.0, wanted a finite number > 0"),
        ({"eps": math.nan}, ValueError, "eps: got nan"),
        ({"backend": "cuda"}, ValueError, "backend: got 'cuda'"),
    ],
)
def test_bad_arguments_are_named(changes, error, words):
    with pytest.raises(error, match=words):
        MF.subspace_sensitivity(**{"z0": Z0, "z1": Z1, "masks": M, "kind": INDEX, **changes})


# ---- in losses: what weighs its pairs


def sensitivity_in_vicreg(log_variance, granularity, kind, masks, kinds=None, **options):
    z0, z1, *_ = make(6, masks.shape[1], 3)
    out = SubspaceOutput(z0, masks, log_variance, kinds, granularity)
    _, parts = SubspaceVICRegLoss(**options)(out, z1, kind=kind, return_components=True)

    def alone(weight):
        return MF.subspace_sensitivity(z0, z1, masks, kinds=kinds, kind=kind, weight=weight).sum()

    return parts["sensitivity"], alone


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("granularity", ["sample", "subspace", "dimension"])
def test_predicted_uncertainty_weighs_pairs_but_not_per_dimension(granularity, normalize):
    masks, kind = torch.rand(3, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    width = {"sample": 1, "subspace": 3, "dimension": 5}[granularity]
    log_variance = torch.randn(6, width, dtype=torch.float64)
    got, alone = sensitivity_in_vicreg(log_variance, granularity, kind, masks, normalize=normalize)
    own = {"sample": log_variance[:, 0], "subspace": log_variance[torch.arange(6), kind.clamp_max(width - 1)]}
    weight = 1 / own[granularity].exp() if granularity in own else None
    torch.testing.assert_close(got, alone(weight))
    assert (got == alone(None)) == (granularity == "dimension")


def test_where_k_is_d_the_granularity_that_is_given_counts():
    masks, kind = torch.rand(3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    log_variance = torch.randn(6, 3, dtype=torch.float64)
    got, alone = sensitivity_in_vicreg(log_variance, "subspace", kind, masks)
    torch.testing.assert_close(got, alone(1 / log_variance[torch.arange(6), kind].exp()))
    got, alone = sensitivity_in_vicreg(log_variance, "dimension", kind, masks)
    torch.testing.assert_close(got, alone(None))


def test_with_kinds_a_pair_weighs_by_the_variance_of_its_kind():
    """Only pairs in which one augmentation differs count, and of those each mask's own log-variance."""
    masks, kind = torch.rand(3, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 0])
    kinds = torch.cat([torch.eye(3), torch.ones(1, 3)]).bool()
    log_variance = torch.randn(6, 3, dtype=torch.float64)
    got, alone = sensitivity_in_vicreg(log_variance, "subspace", kind, masks, kinds)
    torch.testing.assert_close(got, alone(1 / log_variance[torch.arange(6), kind.clamp_max(2)].exp()))
    assert got != alone(None)


def test_an_ambiguous_pair_does_not_pass_for_sensitivity():
    """Of two pairs one is far apart, and called ambiguous: what is left to count does not change, and costs more."""
    z0 = torch.randn(8, 4, dtype=torch.float64)
    z1 = z0 + 0.01 * torch.randn(8, 4)
    z1[0] = -3 * z0[0]
    masks, kind = torch.zeros(1, 4, dtype=torch.float64), torch.zeros(8, dtype=torch.long)
    costs = []
    for doubt in (-3.0, 0.0, 3.0):
        log_variance = torch.zeros(8, 1, dtype=torch.float64)
        log_variance[0] = doubt
        out = SubspaceOutput(z0, masks, log_variance, granularity="sample")
        costs.append(SubspaceVICRegLoss()(out, z1, kind=kind, return_components=True)[1]["sensitivity"])
    assert costs[0] < costs[1] < costs[2]


def test_weights_of_pairs_get_no_gradient_from_sensitivity():
    z0, z1, masks, kind, _ = make(6, 5, 3)
    log_variance = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    gradients = []
    for weight in (0.0, 7.0):
        loss = SubspaceVICRegLoss(sensitivity_param=weight)
        value = loss(SubspaceOutput(z0, masks, log_variance, granularity="subspace"), z1, kind=kind)
        gradients += torch.autograd.grad(value, log_variance)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
