"""Half precision as training scripts have it: autocast, GradScaler, and whole models cast."""

from functools import partial

import pytest
import torch
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

HALVES = [torch.float16, torch.bfloat16]
LOSSES = {
    "nt-xent": lambda: SubspaceNTXentLoss(nn.Parameter(torch.tensor(0.2))),
    "vicreg": SubspaceVICRegLoss,
    "vicreg in subspaces": partial(SubspaceVICRegLoss, scope="subspace"),
    "barlow twins": SubspaceBarlowTwinsLoss,
    "cosine": partial(SubspaceCosineLoss, sensitivity_param=1.0),
    "invariance": UncertaintyInvarianceLoss,
    "normalised invariance": partial(UncertaintyInvarianceLoss, normalize=True),
    "sigmoid": SubspaceSigmoidLoss,
}

FUNCTIONS = {
    "distance": lambda z0, z1, m, kind: MF.masked_distance(z0, z1, m),
    "cosine": lambda z0, z1, m, kind: MF.masked_cosine_similarity(z0, z1, m, kind=kind),
    "info_nce": lambda z0, z1, m, kind: MF.subspace_info_nce(z0, z1, m, temperature=0.1, symmetric=True),
    "info_nce of samples": lambda z0, z1, m, kind: MF.subspace_info_nce(
        z0, z1, m, temperature=0.1, sample0=kind, sample1=kind
    ),
    "nt_xent": lambda z0, z1, m, kind: MF.subspace_nt_xent(z0, z1, m, temperature=0.1, kind=kind),
    "sup_con": lambda z0, z1, m, kind: MF.subspace_sup_con(z0, kind, m, temperature=0.1),
    "sigmoid": lambda z0, z1, m, kind: MF.subspace_sigmoid(z0, z1, m, scale=10.0, bias=-5.0),
    "moments": lambda z0, z1, m, kind: MF.subspace_moments(z0, m),
    "barlow_twins": lambda z0, z1, m, kind: MF.subspace_barlow_twins(z0, z1, m, kind=kind),
    "sensitivity": lambda z0, z1, m, kind: MF.subspace_sensitivity(z0, z1, m, kind=kind, weight=z1[:, 0].abs()),
    "invariance": lambda z0, z1, m, kind: MF.uncertainty_invariance(
        z0, z1, m, log_variance=z1[:, :1], granularity="sample"
    ),
}


def head(kinds=None, **options) -> MaskedSubspaceHead:
    torch.manual_seed(1)
    projector = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24))
    kinds = torch.eye(3, dtype=torch.bool) if kinds is None else kinds
    return MaskedSubspaceHead(projector, 3, kinds=kinds, uncertainty="subspace", **options)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(2, 32, 16, generator=g), torch.randint(3, (32,), generator=g)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kinds", [None, torch.cat([torch.eye(3), torch.ones(1, 3)]).bool()], ids=["alone", "mixed"])
def test_autocast_leaves_masks_variances_and_losses_in_float32(name, dtype, kinds):
    one, loss = head(kinds=kinds), LOSSES[name]()
    x, kind = inputs()
    kind = kind if kinds is None else kind + (torch.arange(len(kind)) % 2) * (3 - kind)  # each second of all three
    with torch.autocast("cpu", dtype):
        out0, out1 = one(x[0]), one(x[1])
        value = loss(out0, out1, kind=kind)
    assert out0.embedding.dtype == dtype
    assert out0.masks.dtype == out0.log_variance.dtype == value.dtype == torch.float32
    value.backward()
    gradients = [p.grad for p in [*one.masks.parameters(), *loss.parameters()] if p.requires_grad]
    assert gradients
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_adds_no_error_to_that_of_the_embedding(name, dtype):
    """Against float64 on the same rounded embeddings, and the loss of float32 ones as the scale of what is lost."""
    g = torch.Generator().manual_seed(3)
    z = torch.randn(2, 64, 48, generator=g)
    z = torch.stack([z[0], z[0] + 0.3 * z[1]]).to(dtype)
    masks, log_variance = torch.rand(3, 48, generator=g), torch.randn(64, 3, generator=g)
    loss, exact = LOSSES[name](), LOSSES[name]().double()
    mixed, kind = torch.cat([torch.eye(3), torch.ones(1, 3)]).bool(), torch.randint(3, (64,), generator=g)
    for kinds, own in ((None, None), (None, kind), (mixed, 3 - kind)):
        got = loss(SubspaceOutput(z[0], masks, log_variance, kinds, "subspace"), z[1], kind=own)
        out = SubspaceOutput(z[0].double(), masks.double(), log_variance.double(), kinds, "subspace")
        wanted = exact(out, z[1].double(), kind=own)
        torch.testing.assert_close(got.double(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_scaled_run_skips_an_overflow_and_goes_on(name, dtype):
    one, loss = head(), LOSSES[name]()
    parameters = [*one.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
    x, kind = inputs()
    for step in range(4):
        before = [p.detach().clone() for p in parameters]
        scale = 1e38 if step == 1 else 1.0  # one batch whose loss overflows
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            value = loss(one(x[0]), one(x[1]), kind=kind) * scale
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        changed = any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        assert changed == (step != 1)
        assert all(p.isfinite().all() for p in parameters)
    assert scaler.get_scale() == 2.0**7


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_model_in_half_precision_keeps_its_masks(name, dtype):
    one = head().to(dtype)
    assert one.masks.weight.dtype == torch.float32
    assert one.projector[0].weight.dtype == dtype
    x, kind = inputs()
    loss = LOSSES[name]()
    value = loss(one(x[0].to(dtype)), one(x[1].to(dtype)), kind=kind)
    value.backward()
    assert value.isfinite()
    assert one.masks.weight.grad.dtype == torch.float32


KINDS = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("region", [None, *HALVES])
@pytest.mark.parametrize("dtypes", [(a, b) for a in KINDS for b in KINDS], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_views_of_any_two_dtypes_meet_in_float32(name, dtypes, region):
    """A prediction under autocast beside a target that is not, embeddings of the other half precision than autocast's,
    and a loss that is called inside or outside of it."""
    x, kind = inputs()
    z0, z1 = (z.to(dtype).requires_grad_() for z, dtype in zip(x, dtypes, strict=True))
    masks = torch.rand(3, 16)
    out0, out1 = (SubspaceOutput(z, masks, z[:, :3].detach(), granularity="subspace") for z in (z0, z1))
    loss = LOSSES[name]()
    with torch.autocast("cpu", region, enabled=region is not None):
        got = [loss(out0, out1, kind=kind), loss(z0, z1, masks=masks)]
    exact = [
        out._replace(embedding=out.embedding.float(), log_variance=out.log_variance.float()) for out in (out0, out1)
    ]
    wanted = [loss(*exact, kind=kind), loss(z0.float(), z1.float(), masks=masks)]
    torch.testing.assert_close(got, wanted)
    grads = [torch.autograd.grad(sum(values), (z0, z1)) for values in (got, wanted)]
    assert [g.dtype for g in grads[0]] == list(dtypes)
    torch.testing.assert_close(*grads, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_too(name):
    x, kind = inputs()
    masks = torch.rand(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        got = FUNCTIONS[name](x[0].half(), x[1], masks, kind)
    torch.testing.assert_close(got, FUNCTIONS[name](x[0].half().float(), x[1], masks, kind))


def test_masks_follow_every_other_change():
    one = head().double()
    assert one.masks.weight.dtype == torch.float64
    assert one.half().masks.weight.dtype == torch.float64
    assert one.float().masks.weight.dtype == torch.float32
    assert one.to("meta").masks.weight.device.type == "meta"
    assert one.to_empty(device="cpu").masks.weight.device.type == "cpu"
