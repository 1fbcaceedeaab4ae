"""NT-Xent with a memory bank: MoCo's loss inside subspaces, equal to lightly's with one mask of ones."""

import copy

import pytest
import torch
from lightly.loss import NTXentLoss
from torch.nn.functional import cross_entropy, normalize

from mast_ops import MaskedSubspaceHead, SubspaceNTXentLoss


def views(n: int, d: int):
    return (torch.randn(n, d, dtype=torch.float64, requires_grad=True) for _ in range(2))


def plain(z0, z1, bank, masks, temperature):
    """Every mask alone, by what MoCo's authors write."""
    losses = []
    for mask in masks:
        q, k, negatives = (normalize(mask * z, dim=1) for z in (z0, z1, bank))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], dim=1) / temperature
        losses.append(cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.int64)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("size", [1, 5, 64])
def test_lightly_has_the_same_values_gradients_and_bank(size):
    torch.manual_seed(0)
    theirs = NTXentLoss(temperature=0.3, memory_bank_size=(size, 7))
    ours = SubspaceNTXentLoss(temperature=0.3, memory_bank_size=(size, 7))
    theirs.memory_bank.bank, ours.memory_bank.bank = (
        normalize(ours.memory_bank.bank.double(), dim=1) for _ in range(2)
    )
    masks = torch.ones(1, 7, dtype=torch.float64)
    for _ in range(3 if size == 64 else 1):  # theirs forgets what goes over the end, and does not wrap
        z0, z1 = views(3, 7)
        wanted = theirs(z0, z1)
        got = ours(z0, z1, masks=masks)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        grads = [torch.autograd.grad(loss, (z0, z1)) for loss in (got, wanted)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)
        if size == 64:
            kept, other = (normalize(x.memory_bank.bank, dim=1) for x in (ours, theirs))
            torch.testing.assert_close(kept, other)


@pytest.mark.parametrize("backend", ["eager", "chunked"])
@pytest.mark.parametrize("with_kind", [False, True])
def test_every_mask_sees_the_bank_through_itself(backend, with_kind):
    torch.manual_seed(0)
    loss = SubspaceNTXentLoss(0.2, (9, 6), backend=backend, sensitivity_param=0.0).double()
    bank = loss.memory_bank.bank.clone()
    z0, z1 = views(5, 6)
    masks = torch.rand(3, 6, dtype=torch.float64).requires_grad_()
    kind = torch.tensor([0, 2, 1, 0, 2]) if with_kind else None
    got = loss(z0, z1, masks=masks, kind=kind)
    if kind is None:
        wanted = plain(z0, z1, bank, masks, 0.2)
    else:
        wanted = torch.stack(
            [plain(z0[i : i + 1], z1[i : i + 1], bank, masks[[k]], 0.2) for i, k in enumerate(kind.tolist())]
        ).mean()
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad(x, (z0, z1, masks)) for x in (got, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


def test_batches_enter_in_turn_wrap_and_of_a_large_one_the_last():
    loss = SubspaceNTXentLoss(0.2, (5, 2))
    batches = torch.arange(1, 27, dtype=torch.float32).view(13, 2)
    masks = torch.ones(1, 2)
    for part in batches[:6].split(3):
        loss(part.clone().requires_grad_(), part, masks=masks)
    assert torch.equal(loss.memory_bank.bank, batches[[5, 1, 2, 3, 4]])
    loss(batches[6:].clone().requires_grad_(), batches[6:], masks=masks)
    assert torch.equal(loss.memory_bank.bank.sort(0).values, batches[8:])
    before = loss.memory_bank.bank.clone()
    loss(batches[:3], batches[:3], masks=masks)  # nothing is trained: a validation set
    assert torch.equal(loss.memory_bank.bank, before)


def test_what_is_not_finite_shows_at_once_and_is_not_kept():
    torch.manual_seed(0)
    loss = SubspaceNTXentLoss(0.2, (6, 4))
    z0, z1 = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    broken = z1.detach().clone()
    broken[1, 2] = torch.nan
    assert loss(z0, broken, masks=torch.ones(2, 4)).isnan()
    assert loss.memory_bank.bank.isfinite().all()
    assert loss(z0, z1, masks=torch.ones(2, 4)).isfinite()


def test_it_resumes_exactly_trains_a_head_and_compiles_without_a_break():
    torch.manual_seed(0)
    head = MaskedSubspaceHead(torch.nn.Linear(6, 8), ["crop", "color"])
    loss = SubspaceNTXentLoss(0.2, (16, 8), sensitivity_param=0.0)
    x0, x1 = torch.randn(2, 5, 6).unbind()
    compiled = copy.deepcopy(loss)
    step = torch.compile(lambda a, b: compiled(head(a), head(b)), fullgraph=True, backend="aot_eager")
    for _ in range(4):
        value = loss(head(x0), head(x1))
        torch.testing.assert_close(step(x0, x1), value)
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    torch.testing.assert_close(compiled.memory_bank.bank, loss.memory_bank.bank)
    other = SubspaceNTXentLoss(0.2, (16, 8), sensitivity_param=0.0)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(head(x0), head(x1)), loss(head(x0), head(x1)))
    assert torch.equal(other.memory_bank.bank, loss.memory_bank.bank)


@pytest.mark.parametrize("size", [4096, True, (3,), (3, 0), (-1, 4), (2.0, 4), "8", None])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises((ValueError, TypeError), match="memory_bank_size"):
        SubspaceNTXentLoss(0.2, size)


def test_no_bank_by_default_as_in_lightly_and_widths_must_agree():
    with pytest.raises(ValueError, match=r"memory_bank_size: got 64, wanted 0 or \(64, D\)"):
        SubspaceNTXentLoss(memory_bank_size=64)
    assert SubspaceNTXentLoss().memory_bank is SubspaceNTXentLoss(memory_bank_size=(0, 8)).memory_bank is None
    with pytest.raises(ValueError, match=r"memory_bank_size: got \(4, 3\) on cpu, wanted \(4, 2\)"):
        SubspaceNTXentLoss(0.2, (4, 3))(torch.eye(2), torch.eye(2), masks=torch.ones(1, 2))
    with pytest.raises(ValueError, match="gather_distributed: got True beside a memory bank"):
        SubspaceNTXentLoss(0.2, (4, 3), gather_distributed=True)
