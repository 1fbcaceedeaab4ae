"""Losses: the plain ones at K = 1 with a mask of ones, the stated formulas otherwise."""

import copy

import pytest
import torch
import torch.nn.functional as F
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

N, D, K = 6, 8, 3
INDEX = torch.tensor([0, 1, 2, 2, 1, 0])
LOSSES = (
    UncertaintyInvarianceLoss,
    SubspaceVICRegLoss,
    SubspaceNTXentLoss,
    SubspaceCosineLoss,
    SubspaceBarlowTwinsLoss,
)


def views(requires_grad: bool = True):
    z0, z1 = torch.randn(2, N, D, dtype=torch.float64).unbind()
    return z0.clone().requires_grad_(requires_grad), z1.clone().requires_grad_(requires_grad)


def masks(k: int = K):
    return torch.rand(k, D, dtype=torch.float64)


def plain_vicreg(z0, z1):
    def off_diagonal(z):
        z = z - z.mean(0)
        c = z.T @ z / (N - 1)
        return c[~torch.eye(D, dtype=torch.bool)].pow(2).sum() / D

    hinge = [F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (z0, z1)]
    return 25 * F.mse_loss(z0, z1) + 25 * 0.5 * sum(hinge) + off_diagonal(z0) + off_diagonal(z1)


def plain_nt_xent(z0, z1):
    z = F.normalize(torch.cat([z0, z1]))
    logits = (z @ z.T / 0.5).masked_fill(torch.eye(2 * N, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * N).roll(N))


def plain_barlow(z0, z1):
    a, b = (F.batch_norm(z, None, None, training=True) for z in (z0, z1))
    c = a.T @ b / N
    return (c.diagonal() - 1).pow(2).sum() + 5e-3 * c[~torch.eye(D, dtype=torch.bool)].pow(2).sum()


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (UncertaintyInvarianceLoss(), F.mse_loss),
        (UncertaintyInvarianceLoss(distance="cosine"), lambda a, b: (1 - F.cosine_similarity(a, b)).mean()),
        (SubspaceVICRegLoss(), plain_vicreg),
        (SubspaceVICRegLoss(scope="subspace"), plain_vicreg),
        (SubspaceNTXentLoss(), plain_nt_xent),
        (SubspaceCosineLoss(), lambda a, b: -F.cosine_similarity(a, b).mean()),
        (SubspaceBarlowTwinsLoss(), plain_barlow),
    ],
)
@pytest.mark.parametrize("kind", [None, torch.zeros(N, dtype=torch.long)])
def test_one_mask_of_ones_is_the_plain_loss(loss, plain, kind):
    z0, z1 = views()
    ours, theirs = loss(z0, z1, masks=torch.ones(1, D, dtype=torch.float64), kind=kind), plain(z0, z1)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for got, wanted in zip(torch.autograd.grad(ours, (z0, z1)), torch.autograd.grad(theirs, (z0, z1)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


def test_scope_of_the_statistics():
    z0, z1 = views()
    m = masks()
    inside = SubspaceVICRegLoss(lambda_param=0, scope="subspace")(z0, z1, masks=m)
    wanted = torch.stack([plain_vicreg(z0 * row, z1 * row) - 25 * F.mse_loss(z0 * row, z1 * row) for row in m]).mean()
    torch.testing.assert_close(inside, wanted)
    whole = SubspaceVICRegLoss(lambda_param=0)(z0, z1, masks=m)
    torch.testing.assert_close(whole, plain_vicreg(z0, z1) - 25 * F.mse_loss(z0, z1))


def test_without_uncertainty_it_is_the_masked_mean_squared_error():
    z0, z1 = views()
    m = masks()
    wanted = torch.stack([F.mse_loss(z0 * row, z1 * row) for row in m]).mean()
    torch.testing.assert_close(UncertaintyInvarianceLoss()(z0, z1, masks=m), wanted)
    own = m[INDEX]
    torch.testing.assert_close(UncertaintyInvarianceLoss()(z0, z1, masks=m, kind=INDEX), F.mse_loss(z0 * own, z1 * own))


@pytest.mark.parametrize("granularity", ["sample", "subspace", "dimension"])
@pytest.mark.parametrize("factorised", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_uncertainty_is_the_stated_formula(granularity, factorised, normalize):
    z0, z1 = views()
    m, width = masks(), {"sample": 1, "subspace": K, "dimension": D}[granularity]
    a, b = torch.randn(2, N, width, dtype=torch.float64).unbind()
    variance = a.exp() + b.exp()
    per_entry = torch.empty(N, K, D, dtype=torch.float64)
    for k in range(K):
        v = variance[:, k : k + 1] if granularity == "subspace" else variance
        gap = (z0 - z1) ** 2
        if not normalize:
            per_entry[:, k] = m[k] ** 2 * (gap / v + v.log()) / 2
        elif granularity == "dimension":  # the same, times twice the harmonic mean
            per_entry[:, k] = m[k] ** 2 * (gap / v + v.log()) / (1 / v).mean(0)
        else:  # relative, of centred views, for the prediction alone
            x, y = (m[k] * (z - torch.cat([z0, z1]).mean(0)) for z in (z0, z1))
            mismatch = ((x - y) ** 2).sum(1, True) / (x**2 + y**2).sum(1, True)
            per_entry[:, k] = m[k] ** 2 * gap / v / (1 / v).mean(0) + mismatch / v + v.log()
    wanted = per_entry.mean(2)[torch.arange(N), INDEX].mean() if factorised else per_entry.mean()
    loss = UncertaintyInvarianceLoss(normalize=normalize)
    out0, out1 = (SubspaceOutput(z, m, lv, granularity=granularity) for z, lv in ((z0, a), (z1, b)))
    ours = loss(out0, out1, kind=INDEX if factorised else None)
    torch.testing.assert_close(ours, wanted)


def test_a_view_without_variance_is_a_point():
    z0, z1 = views()
    m, a = masks(), torch.randn(N, 1, dtype=torch.float64)
    out0 = SubspaceOutput(z0, m, a, granularity="sample")
    alone = UncertaintyInvarianceLoss()(out0, z1)
    certain = SubspaceOutput(z1, m, torch.full_like(a, -torch.inf), granularity="sample")
    beside_zero = UncertaintyInvarianceLoss()(out0, certain)
    torch.testing.assert_close(alone, beside_zero)


def test_an_ambiguous_pair_weighs_less():
    z0, z1 = views()
    m = masks()
    log_variance = torch.zeros(N, 1, dtype=torch.float64)
    log_variance[0] = 3.0
    out = SubspaceOutput(z0, m, log_variance, granularity="sample")
    for normalize in (False, True):
        (gradient,) = torch.autograd.grad(UncertaintyInvarianceLoss(normalize=normalize)(out, z1), z0)
        weight = gradient / torch.autograd.grad(UncertaintyInvarianceLoss()(z0, z1, masks=m), z0)[0]
        assert (weight[0] < 0.1 * weight[1:].min()).all()
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [None, INDEX])
def test_tensors_outputs_and_components_agree(loss, kind):
    z0, z1 = views()
    m, criterion = masks(), loss()
    plain, parts = criterion(z0, z1, masks=m, kind=kind, return_components=True)
    for views_ in ((SubspaceOutput(z0, m), SubspaceOutput(z1, m)), (SubspaceOutput(z0, m), z1)):
        assert torch.equal(criterion(*views_, kind=kind), plain)
    weights = {
        "variance": 25.0,
        "covariance": 1.0,
        "redundancy": 5e-3,
        "invariance": 25.0 if loss is SubspaceVICRegLoss else 1.0,
        "sensitivity": criterion.sensitivity_param,
    }
    torch.testing.assert_close(sum(weights.get(name, 1.0) * value for name, value in parts.items()), plain)
    assert not any(value.requires_grad for value in parts.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_sensitivity_is_there_with_kinds_and_a_positive_weight_alone(loss):
    z0, z1 = views()
    m, criterion = masks(), loss()
    parts = criterion(z0, z1, masks=m, kind=INDEX, return_components=True)[1]
    assert ("sensitivity" in parts) == (criterion.sensitivity_param > 0)
    criterion.sensitivity_param = 3.0
    value, parts = criterion(z0, z1, masks=m, kind=INDEX, return_components=True)
    torch.testing.assert_close(parts["sensitivity"], MF.subspace_sensitivity(z0, z1, m, kind=INDEX).sum().detach())
    assert parts["sensitivity"] > 0
    assert "sensitivity" not in criterion(z0, z1, masks=m, return_components=True)[1]
    criterion.sensitivity_param = 0.0
    without, others = criterion(z0, z1, masks=m, kind=INDEX, return_components=True)
    assert others.keys() == parts.keys() - {"sensitivity"}
    torch.testing.assert_close(value, without + 3 * parts["sensitivity"])


@pytest.mark.parametrize("loss", LOSSES)
def test_masks_of_ones_have_no_sensitivity(loss):
    """Neither in the value nor in the views' gradients, for any number of subspaces; masks may feel which way to go."""
    z0, z1 = views()
    values = []
    for weight in (0.0, 5.0):
        criterion = loss()
        criterion.sensitivity_param = weight
        value = criterion(z0, z1, masks=torch.ones(K, D, dtype=torch.float64), kind=INDEX)
        values.append([value, *torch.autograd.grad(value, (z0, z1))])
    torch.testing.assert_close(*values, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [SubspaceVICRegLoss, SubspaceNTXentLoss, SubspaceCosineLoss])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(loss, weight):
    with pytest.raises(ValueError, match=f"sensitivity_param: got {weight}, wanted a finite number >= 0"):
        loss(sensitivity_param=weight)


def test_a_learned_temperature_gets_a_gradient():
    temperature = nn.Parameter(torch.tensor(0.2))
    criterion = SubspaceNTXentLoss(temperature)
    criterion(torch.randn(N, D), torch.randn(N, D), masks=torch.rand(K, D)).backward()
    assert [p is temperature for p in criterion.parameters()] == [True]
    assert temperature.grad.abs() > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("uncertainty", [None, "sample", "subspace", "dimension"])
def test_a_few_steps_lower_it(loss, uncertainty):
    torch.manual_seed(0)
    projector = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, D))
    head = MaskedSubspaceHead(projector, K, kinds=torch.eye(K).bool(), uncertainty=uncertainty)
    criterion, optimizer = loss(), torch.optim.Adam(head.parameters(), lr=1e-2)
    h = torch.randn(N, 8)
    h0, h1 = h + 0.1 * torch.randn(N, 8), h + 0.1 * torch.randn(N, 8)
    values = []
    for _ in range(30):
        value = criterion(head(h0), head(h1), kind=INDEX)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    z0, z1, m = torch.randn(N, D).to(dtype), torch.randn(N, D).to(dtype), torch.rand(K, D)
    wanted = loss()(z0.float(), z1.float(), masks=m)
    with torch.autocast("cpu", dtype=dtype):
        value = loss()(z0, z1, masks=m)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, wanted)


DIALS = [
    (SubspaceNTXentLoss, "temperature"),
    (SubspaceCosineLoss, "eps"),
    *((SubspaceVICRegLoss, name) for name in ("lambda_param", "mu_param", "nu_param", "eps")),
    (SubspaceBarlowTwinsLoss, "lambda_param"),
    *((loss, "sensitivity_param") for loss in (*LOSSES, SubspaceSigmoidLoss)),
]


@pytest.mark.parametrize(("loss", "name"), DIALS)
def test_what_a_schedule_sets_does_not_compile_anew(loss, name):
    criterion = loss()
    z0, z1, m = torch.randn(N, D), torch.randn(N, D), torch.rand(K, D)
    torch._dynamo.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(12):
            value = 0.05 * (1 + step)
            setattr(criterion, name, value)
            assert getattr(criterion, name) == value
            got, parts = compiled(z0, z1, masks=m, kind=INDEX, return_components=True)
            assert got.dtype == torch.float32
            fresh = loss()
            setattr(fresh, name, value)
            torch.testing.assert_close(got, fresh(z0, z1, masks=m, kind=INDEX))
            assert ("sensitivity" in parts) == (criterion.sensitivity_param > 0)
    with pytest.raises(ValueError, match=f"^{name}: got -1.0, wanted"):
        setattr(criterion, name, -1.0)


@pytest.mark.parametrize("loss", LOSSES)
def test_any_number_of_kinds_is_compiled_once_more_at_most(loss):
    """Nine would be refused: what reads a number of kinds must not be compiled for each."""
    criterion = loss()
    torch._dynamo.reset()
    graphs = []
    compiled = torch.compile(criterion, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    z0, z1 = torch.randn(N, D), torch.randn(N, D)
    for k in range(2, 14):
        masks, kind = torch.rand(k, D), torch.arange(N) % k
        torch.testing.assert_close(compiled(z0, z1, masks=masks, kind=kind), criterion(z0, z1, masks=masks, kind=kind))
    assert len(graphs) <= 2


def test_a_temperature_changes_its_kind():
    z, m = torch.randn(N, D), torch.rand(K, D)
    criterion = SubspaceNTXentLoss(0.2)
    wanted = criterion(z, z, masks=m)
    criterion.temperature = torch.tensor(0.2)
    assert criterion.temperature.equal(torch.tensor(0.2))
    torch.testing.assert_close(criterion(z, z, masks=m), wanted)
    criterion.temperature = learned = nn.Parameter(torch.tensor(0.2))
    assert criterion.temperature is learned
    assert criterion.state_dict().keys() == {"temperature"}
    torch.testing.assert_close(criterion(z, z, masks=m), wanted)
    assert copy.deepcopy(criterion).temperature.equal(learned)
    del criterion.temperature
    criterion.temperature = 0.4
    assert (criterion.temperature, list(criterion.parameters())) == (0.4, [])
    for wrong in (nn.Parameter(torch.tensor(-1.0)), torch.tensor(-1.0), -1.0):
        with pytest.raises(ValueError, match=r"^temperature: got -1\.0"):
            criterion.temperature = wrong


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_every_loss_compiles_whole(compiler):
    """Inductor takes seconds for each of them, and gets the one of most terms; every operator: in test_ops.py."""
    criteria = [loss() for loss in (LOSSES if compiler == "aot_eager" else [SubspaceVICRegLoss])]

    def total(z0, z1, m, kind):
        return sum(criterion(z0, z1, masks=m, kind=kind) for criterion in criteria)

    z0, z1 = views()
    m = masks()
    compiled = torch.compile(total, fullgraph=True, backend=compiler)(z0, z1, m, INDEX)
    torch.testing.assert_close(compiled, total(z0, z1, m, INDEX))
    got = torch.autograd.grad(compiled, z0)[0]
    torch.testing.assert_close(got, torch.autograd.grad(total(z0, z1, m, INDEX), z0)[0])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("granularity", ["sample", "subspace", "dimension"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", [None, INDEX])
def test_masks_that_grow_are_not_paid_for(loss, granularity, normalize, kind):
    """A certain prediction of views that agree is the cheapest there is, whatever unbounded masks do."""
    options = {"normalize": normalize} if loss in (UncertaintyInvarianceLoss, SubspaceVICRegLoss) else {}
    z, _ = views()
    width = {"sample": 1, "subspace": K, "dimension": D}[granularity]
    log_variance = torch.full((N, width), -8.0, dtype=torch.float64)

    def value(size):
        masks = torch.full((K, D), size, dtype=torch.float64)
        out = SubspaceOutput(z, masks, log_variance, granularity=granularity)
        return loss(**options)(out, z, kind=kind)

    for size in (3.0, 100.0):
        assert value(size) >= value(1.0) - 1e-9


def test_printed_a_loss_says_its_options_as_they_are():
    loss = SubspaceNTXentLoss(nn.Parameter(torch.tensor(0.07)), (8, 4))
    loss.sensitivity_param = 2.0
    assert "temperature=0.07, " in repr(loss)
    assert "sensitivity_param=2.0" in repr(loss)
    assert "MemoryBank(8, 4)" in repr(loss)


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        (SubspaceVICRegLoss, "scope", "embeding"),
        (SubspaceVICRegLoss, "normalize", "yes"),
        (SubspaceNTXentLoss, "backend", "tritn"),
        (SubspaceNTXentLoss, "gather_distributed", 1),
        (UncertaintyInvarianceLoss, "distance", "cos"),
    ],
)
def test_choices_and_flags_that_are_set_later_are_checked(loss, name, value):
    made = loss()
    kept = getattr(made, name)
    with pytest.raises((ValueError, TypeError), match=f"{name}: got"):
        setattr(made, name, value)
    assert getattr(made, name) == kept


def test_a_bank_goes_with_no_ranks_later_either():
    with pytest.raises(ValueError, match="gather_distributed: got True beside a memory bank"):
        SubspaceNTXentLoss(memory_bank_size=(4, 8)).gather_distributed = True


def test_a_learned_temperature_starts_anew():
    loss = SubspaceNTXentLoss(nn.Parameter(torch.tensor(0.3)))
    loss.to_empty(device="cpu").reset_parameters()
    assert loss.temperature.item() == pytest.approx(0.3)
    with torch.device("meta"):
        loss = SubspaceNTXentLoss(nn.Parameter(torch.tensor(0.3)))
    with pytest.raises(ValueError, match="temperature: got a parameter that was made on the meta device"):
        loss.to_empty(device="cpu").reset_parameters()
