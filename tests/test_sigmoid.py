"""The pairwise sigmoid: every backend against the formula in float64, and against open_clip's loss."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.case import Inputs
from benchmarks.memory import measure
from mast_ops import SubspaceSigmoidLoss
from mast_ops.functional import subspace_sigmoid

KINDS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
BACKENDS = ["eager", "chunked", "triton"]


def make(n=9, c=9, d=12, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    z0, z1 = (torch.randn(size, d, generator=g, dtype=torch.float64).to(dtype) for size in (n, c))
    masks = torch.rand(3, d, generator=g, dtype=torch.float64) * (torch.rand(3, d, generator=g) < 0.7)
    scalars = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return z0, z1, masks.to(wide), *(x.to(wide) for x in scalars)


def reference(z0, z1, masks, scale, bias, sample0, sample1):
    """One number at a time."""
    rows = []
    for i in range(len(z0)):
        row = []
        for mask in masks if masks.dim() == 2 else [masks[i]]:
            total = 0.0
            for j in range(len(z1)):
                cosine = F.cosine_similarity(mask * z0[i], mask * z1[j], dim=0, eps=1e-12)
                sign = 1 if sample0[i] == sample1[j] else -1
                total = total - F.logsigmoid(sign * (scale * cosine + bias))
            row.append(total)
        rows.append(torch.stack(row))
    return torch.stack(rows).squeeze(1) if masks.dim() == 3 else torch.stack(rows)


def mask_of(kind, masks):
    return torch.stack([masks[KINDS[k]].prod(0) for k in kind.tolist()])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("of_kinds", [False, True])
def test_every_backend_is_the_formula_with_its_gradients(backend, of_kinds):
    dtype = torch.float32 if backend == "triton" else torch.float64
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if backend == "triton" else {"rtol": 1e-9, "atol": 1e-10}
    z0, z1, masks, scale, bias = make(8, 11)
    sample0, sample1, kind = torch.arange(8) % 4, torch.arange(11) % 4, torch.arange(8) % 5
    results = []
    for cast in (torch.float64, dtype):
        leaves = [x.to(cast).detach().requires_grad_() for x in (z0, z1, masks, scale, bias)]
        if len(results) == 0:
            seen = mask_of(kind, leaves[2])[:, None] if of_kinds else leaves[2]
            value = torch.stack(
                [reference(leaves[0][i : i + 1], leaves[1], seen[i] if of_kinds else seen, *leaves[3:],
                           sample0[i : i + 1], sample1)[0] for i in range(8)]
            )  # fmt: skip
            value = value.squeeze(1) if of_kinds else value
        else:
            options = {"kinds": KINDS, "kind": kind} if of_kinds else {}
            value = subspace_sigmoid(
                *leaves[:3], scale=leaves[3], bias=leaves[4], sample0=sample0, sample1=sample1, reduction="none",
                backend=backend, **options,
            )  # fmt: skip
            mean = subspace_sigmoid(
                *leaves[:3], scale=leaves[3], bias=leaves[4], sample0=sample0, sample1=sample1, backend=backend,
                **options,
            )  # fmt: skip
            torch.testing.assert_close(mean, value.mean())
            both = (torch.autograd.grad(x, leaves, retain_graph=True) for x in (mean, value.mean()))
            torch.testing.assert_close(*both, **tolerance)
        upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=cast).view_as(value)
        gradients = torch.autograd.grad((value * upstream).sum(), leaves)
        results.append([x.double() for x in (value.detach(), *gradients)])
    torch.testing.assert_close(results[1], results[0], **tolerance)


def test_one_mask_of_ones_is_open_clips_loss():
    from open_clip.loss import SigLipLoss

    z0, z1, *_ = make(16, 16, dtype=torch.float32)
    leaves = [F.normalize(z, dim=1).requires_grad_() for z in (z0, z1)]
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    ours = SubspaceSigmoidLoss()
    values = ours(*leaves, masks=torch.ones(1, 12)), SigLipLoss()(*leaves, scale, bias)
    torch.testing.assert_close(*values)
    got = torch.autograd.grad(values[0], (*leaves, ours.bias, ours.log_scale))
    wanted = torch.autograd.grad(values[1], (*leaves, bias, scale))
    # Along an embedding of unit length ours has no slope: it normalises.
    along = [(g - (g * z).sum(1, keepdim=True) * z) for g, z in zip(wanted, leaves, strict=False)]
    torch.testing.assert_close(got, (*along, wanted[2], wanted[3] * 10), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_scores_keep_what_is_left_of_them(backend):
    """A positive at 100 loses exp(-100), a negative at 100 loses 100: neither overflows, nor cancels."""
    z = torch.eye(2)
    far = subspace_sigmoid(z, z, torch.ones(1, 2), scale=20.0, bias=0.0, reduction="none", backend=backend)
    torch.testing.assert_close(far[:, 0], torch.full((2,), 2.061e-9 + 0.693147), rtol=1e-5, atol=0)
    alone = subspace_sigmoid(z[:1], z[:1], torch.ones(1, 2), scale=30.0, bias=0.0, reduction="none", backend=backend)
    torch.testing.assert_close(alone, torch.full((1, 1), 9.3576e-14), rtol=1e-3, atol=0)
    apart = {"sample0": torch.tensor([0]), "sample1": torch.tensor([1])}
    lost = subspace_sigmoid(z[:1], z[:1], torch.ones(1, 2), scale=200.0, bias=0.0, backend=backend, **apart)
    torch.testing.assert_close(lost, torch.tensor(200.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", [0, 1])
def test_a_nan_is_seen_where_every_mask_is_closed(backend, where):
    z = [torch.randn(6, 8), torch.randn(6, 8)]
    z[where][2, 3] = torch.nan
    masks = torch.ones(2, 8)
    masks[:, 3] = 0
    assert subspace_sigmoid(*z, masks, scale=10.0, bias=-1.0, backend=backend).isnan()


def test_compiles_whole():
    criterion = SubspaceSigmoidLoss(backend="chunked")
    z0, z1, masks, *_ = make(dtype=torch.float32)
    kind = torch.arange(9) % 5
    wanted = criterion(z0, z1, masks=masks, kinds=KINDS, kind=kind)
    got = torch.compile(criterion, fullgraph=True, backend="aot_eager")(z0, z1, masks=masks, kinds=KINDS, kind=kind)
    torch.testing.assert_close(got, wanted)


def test_operators_are_registered_as_torch_asks():
    z0, z1, masks, scale, bias = (x.requires_grad_() for x in make(5, 6))
    sample0, sample1 = torch.arange(5), torch.arange(6)
    for row in (None, torch.arange(5) % 3):
        flat = (z0, z1, masks, scale, bias, sample0, sample1, row, "chunked")
        torch.library.opcheck(torch.ops.mast_ops.sigmoid.default, flat)
        torch.library.opcheck(torch.ops.mast_ops.sigmoid_mean.default, flat)


def test_no_matrix_of_all_scores_is_held():
    n, k = 2048, 4
    z0, z1, masks = torch.randn(n, 16), torch.randn(n, 16), torch.rand(k, 16)
    inputs = Inputs((z0.requires_grad_(), z1.requires_grad_()), (masks,))

    def loss(z0, z1, masks):
        return subspace_sigmoid(z0, z1, masks, scale=5.0, bias=-5.0, backend="chunked")

    assert measure(loss, inputs)["peak"] < 4 * n * n  # one matrix of float32 scores; four are asked for


def test_what_has_no_meaning_is_refused():
    z, masks = torch.randn(4, 3), torch.ones(1, 3)
    with pytest.raises(ValueError, match="bias: got nan"):
        SubspaceSigmoidLoss(bias=float("nan"))
    with pytest.raises(ValueError, match="scale: got 0"):
        SubspaceSigmoidLoss(scale=0)
    with pytest.raises(ValueError, match=r"sample: got shape \(2,\)"):
        SubspaceSigmoidLoss()(z, z, masks=masks, sample=torch.arange(2))
    with pytest.raises(ValueError, match="scale: got a"):
        subspace_sigmoid(z, z, masks, scale=torch.ones(2), bias=0.0)


def test_what_to_empty_leaves_is_started_anew():
    with torch.device("meta"):
        criterion = SubspaceSigmoidLoss(scale=5.0, bias=-3.0)
    criterion.to_empty(device="cpu")
    for parameter in criterion.parameters():
        parameter.data.fill_(1234.0)  # whatever was in that memory
    criterion.reset_parameters()
    assert criterion.log_scale.exp().item() == pytest.approx(5.0)
    assert criterion.bias.item() == -3.0
