"""Difficulty: the rank of a pair by a plain contrastive loss, what learns to predict it, and how it weighs pairs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mast_ops import (
    MaskedSubspaceHead,
    MultiViewLoss,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceOutput,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
    functional,
)
from mast_ops.analysis import spearman
from mast_ops.functional import uncertainty

N, K, D = 24, 3, 8
KINDS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.bool)
LOSSES = {
    "vicreg": (lambda **o: SubspaceVICRegLoss(sensitivity_param=0, **o), "invariance"),
    "nt_xent": (lambda **o: SubspaceNTXentLoss(sensitivity_param=0, **o), "nt_xent"),
    "memory bank": (lambda **o: SubspaceNTXentLoss(0.5, (32, D), sensitivity_param=0, **o), "nt_xent"),
    "cosine": (SubspaceCosineLoss, "negative_cosine"),
    "invariance": (UncertaintyInvarianceLoss, "invariance"),
    "invariance of cosines": (lambda **o: UncertaintyInvarianceLoss(distance="cosine", **o), "invariance"),
}


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(seed)
    z0, z1 = (torch.randn(N, D, generator=g, dtype=dtype) for _ in range(2))
    masks = (torch.rand(K, D, generator=g) > 0.3).to(dtype)
    masks[:, 0] = 1
    return z0, z0 + z1, masks, torch.arange(N) % len(KINDS)


def plain(z0, z1, masks, kind, temperature=0.2):
    """Rank of NT-Xent among pairs of the same kind."""
    losses = plain_losses(z0, z1, masks, kind, temperature)
    rank = torch.empty_like(losses)
    for i in range(N):
        same = losses[kind == kind[i]]
        rank[i] = ((same < losses[i]).sum() + 0.5) / len(same)
    return rank


def plain_losses(z0, z1, masks, kind, temperature=0.2):
    losses = torch.empty(N, dtype=torch.float64)
    for i in range(N):
        mask = masks[KINDS[kind[i]]].prod(0)
        views = F.normalize(torch.cat([z0, z1]).double() * mask, dim=1)
        both = []
        for anchor, positive in ((i, N + i), (N + i, i)):
            scores = views @ views[anchor] / temperature
            scores[anchor] = -torch.inf
            both.append(scores.logsumexp(0) - scores[positive])
        losses[i] = sum(both) / 2
    return losses


@pytest.mark.parametrize("backend", ["eager", "chunked"])
def test_difficulty_is_the_rank_of_the_plain_loss_among_pairs_of_a_kind(backend):
    z0, z1, masks, kind = inputs()
    got = functional.pair_difficulty(z0, z1, masks, kinds=KINDS, kind=kind, backend=backend)
    torch.testing.assert_close(got, plain(z0, z1, masks, kind))
    assert not functional.pair_difficulty(z0.requires_grad_(), z1, masks, kinds=KINDS, kind=kind).requires_grad


def test_without_kinds_every_subspace_has_ranks_of_its_own():
    z0, z1, masks, _ = inputs()
    got = functional.pair_difficulty(z0, z1, masks)
    assert got.shape == (N, K)
    for k in range(K):
        one = functional.pair_difficulty(z0, z1, masks[k : k + 1], kind=torch.zeros(N, dtype=torch.int64))
        torch.testing.assert_close(got[:, k], one)


def test_a_kind_that_is_alone_in_the_batch_or_absent():
    z0, z1, masks, _ = inputs()
    kind = torch.full((N,), 3)
    kind[5] = 1
    rank = functional.pair_difficulty(z0, z1, masks, kinds=KINDS, kind=kind)
    assert rank[5] == 0.5
    assert sorted(rank[kind == 3].tolist()) == pytest.approx([(i + 0.5) / (N - 1) for i in range(N - 1)])


def outputs(granularity: str, seed: int = 0):
    z0, z1, masks, kind = inputs(seed)
    g = torch.Generator().manual_seed(seed)
    width = {"sample": 1, "subspace": K, "dimension": D}[granularity]
    doubt = [torch.randn(N, width, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)]
    z0.requires_grad_()
    masks.requires_grad_()
    return (
        SubspaceOutput(z0, masks, doubt[0], KINDS, granularity),
        SubspaceOutput(z1.requires_grad_(), masks, doubt[1], KINDS, granularity),
        kind,
    )


def logit(out0, out1, kind):
    both = torch.logaddexp(out0.log_variance, out1.log_variance)
    if both.shape[1] == 1:
        return both[:, 0]
    return both.masked_fill(~KINDS[kind], -torch.inf).logsumexp(1)


@pytest.mark.parametrize("granularity", ["sample", "subspace"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_term_is_a_cross_entropy_that_trains_the_prediction_alone(loss, granularity):
    make, _ = LOSSES[loss]
    out0, out1, kind = outputs(granularity)
    torch.manual_seed(0)
    total, parts = make(difficulty_param=3.0)(out0, out1, kind=kind, return_components=True)
    rank = functional.pair_difficulty(out0.embedding, out1.embedding, out0.masks, kinds=KINDS, kind=kind)
    wanted = F.binary_cross_entropy_with_logits(logit(out0, out1, kind), rank)
    torch.testing.assert_close(parts["difficulty"], wanted.detach())
    doubt = [out0.log_variance, out1.log_variance]
    got = torch.autograd.grad(total, doubt)
    torch.testing.assert_close(got, torch.autograd.grad(3 * wanted, doubt))


@pytest.mark.parametrize("granularity", ["sample", "subspace"])
@pytest.mark.parametrize("loss", LOSSES)
def test_with_a_reference_the_harder_view_is_learned_and_pairs_count_alike(loss, granularity):
    make, name = LOSSES[loss]
    out0, out1, kind = outputs(granularity)
    reference = (0.2 * torch.randn(N, D, dtype=torch.float64) + out0.embedding.detach()).requires_grad_()
    torch.manual_seed(0)
    total, parts = make(difficulty_param=3.0)(out0, out1, kind=kind, reference=reference, return_components=True)
    torch.manual_seed(0)
    points = (out0.embedding, out1.embedding)
    _, alike = make()(*points, masks=out0.masks, kinds=KINDS, kind=kind, return_components=True)
    torch.testing.assert_close(parts[name], alike[name])
    wanted = harder_view(out0, out1, reference)
    torch.testing.assert_close(parts["difficulty"], wanted.detach())
    doubt = [out0.log_variance, out1.log_variance]
    assert torch.autograd.grad(total, reference, retain_graph=True, allow_unused=True) == (None,)
    torch.testing.assert_close(torch.autograd.grad(total, doubt), torch.autograd.grad(3 * wanted, doubt))


def harder_view(out0, out1, reference):
    """By the plain loss of each beside the reference, where all masks are open."""
    of_all = torch.full((N,), 3)
    loss0, loss1 = (
        plain_losses(out.embedding.detach(), reference.detach(), out.masks.detach(), of_all) for out in (out0, out1)
    )
    logit = out0.log_variance.logsumexp(1) - out1.log_variance.logsumexp(1)
    return torch.where(loss0 > loss1, F.softplus(-logit), F.softplus(logit)).mean()


def test_more_views_and_a_target_with_its_predictions_variance_have_a_reference():
    out0, out1, kind = outputs("subspace")
    reference = out1._replace(embedding=out0.embedding + 0.2 * torch.randn(N, D, dtype=torch.float64))
    target = out1._replace(embedding=torch.randn(N, D, dtype=torch.float64))
    criterion, views = SubspaceCosineLoss(difficulty_param=1.0), [out0, out1, target]
    _, parts = MultiViewLoss(criterion)(views, kind=kind, reference=reference, return_components=True)
    pairs = [(out0, out1), (out0, target), (out1, target)]
    wanted = torch.stack([harder_view(*pair, reference.embedding) for pair in pairs]).mean()
    torch.testing.assert_close(parts["difficulty"], wanted.detach())


def test_of_two_views_that_are_alike_either_may_be_the_harder():
    out0, _, kind = outputs("sample")
    criterion = SubspaceCosineLoss(difficulty_param=1.0)
    out1 = out0._replace(log_variance=out0.log_variance + 1)
    _, parts = criterion(out0, out1, kind=kind, reference=torch.randn_like(out0.embedding), return_components=True)
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(parts["difficulty"], (F.softplus(one) + F.softplus(-one)) / 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_count_by_the_inverse_of_their_variance(loss):
    """A pair's share of the term is what the term gains when the pair alone counts."""
    make, name = LOSSES[loss]
    out0, out1, kind = outputs("sample")

    def term(doubt, param):
        torch.manual_seed(0)  # of the bank
        criterion = make(difficulty_param=param).double()
        first = out0._replace(log_variance=doubt.requires_grad_())
        return criterion(first, out1._replace(log_variance=None, granularity=None), kind=kind, return_components=True)

    flat = term(torch.full((N, 1), 1.3, dtype=torch.float64), 1.0)[1][name]
    losses = [term(_alone(i), 1.0)[1][name] for i in range(N)]
    torch.testing.assert_close(torch.stack(losses).mean(), flat)
    doubt = torch.randn(N, 1, dtype=torch.float64)
    weight = torch.exp(-doubt[:, 0]).detach() / torch.exp(-doubt).mean()
    torch.testing.assert_close(term(doubt, 1.0)[1][name], (weight * torch.stack(losses)).mean().detach())


def _alone(i: int) -> torch.Tensor:
    doubt = torch.full((N, 1), 60.0, dtype=torch.float64)
    doubt[i] = 0
    return doubt


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_prediction_there_is_nothing_to_train_and_pairs_count_alike(loss):
    make, _ = LOSSES[loss]
    out0, out1, kind = (x._replace(log_variance=None, granularity=None) if isinstance(x, tuple) else x
                        for x in outputs("sample"))  # fmt: skip
    values = []
    for param in (0.0, 1.0):
        torch.manual_seed(0)
        value, parts = make(difficulty_param=param).double()(out0, out1, kind=kind, return_components=True)
        assert "difficulty" not in parts
        values.append(value)
    assert torch.equal(*values)


def test_it_compiles():
    out0, out1, kind = outputs("subspace")
    criterion = SubspaceNTXentLoss(sensitivity_param=0, difficulty_param=1.0, backend="eager")
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(out0, out1, kind=kind), criterion(out0, out1, kind=kind))


@pytest.mark.filterwarnings("ignore:kind. got None")
@pytest.mark.parametrize("loss", LOSSES)
def test_it_goes_without_kinds(loss):
    out0, out1, _ = outputs("subspace")
    LOSSES[loss][0](difficulty_param=1.0)(out0, out1).backward()
    assert out0.log_variance.grad.abs().min() > 0


def test_a_head_learns_how_far_views_are_from_a_reference_on_either_side():
    torch.manual_seed(0)
    head = MaskedSubspaceHead(nn.Linear(D, D), K, uncertainty="sample", kinds=KINDS)
    criterion, optimizer = SubspaceNTXentLoss(difficulty_param=1.0), torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(40):
        reference = torch.randn(128, D)
        strengths = 2 * torch.rand(2, 128) - 1
        views = [reference + 2 * strength.abs()[:, None] * torch.randn(128, D) for strength in strengths]
        for view, strength in zip(views, strengths, strict=True):
            view[:, 0] = 3 * strength  # a mark, and what it marks
        with torch.no_grad():
            embedded = head(reference)
        loss = criterion(*map(head, views), kind=torch.full((128,), 3), reference=embedded)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    doubt = head(views[0]).log_variance[:, 0]
    assert spearman(doubt, strengths[0].abs()) > 0.8
    assert abs(spearman(doubt, strengths[0])) < 0.3


def test_a_reference_that_makes_no_sense_is_refused():
    out0, out1, kind = outputs("sample")
    z, criterion = out1.embedding.detach(), SubspaceVICRegLoss(difficulty_param=1.0)
    with pytest.raises(ValueError, match="reference: got one for SubspaceVICRegLoss with difficulty_param 0, wanted"):
        SubspaceVICRegLoss()(out0, out1, kind=kind, reference=z)
    with pytest.raises(ValueError, match="reference: got one for SubspaceBarlowTwinsLoss with difficulty_param 0"):
        MultiViewLoss(SubspaceBarlowTwinsLoss())([out0, out1], kind=kind, reference=z)
    with pytest.raises(ValueError, match="reference: got one beside out1 without a predicted variance, wanted"):
        criterion(out0, z, kind=kind, reference=z)
    for wrong, error, message in (
        (z[:-1], ValueError, r"reference: got shape \(23, 8\), wanted \(24, 8\), that of out0"),
        (z.float(), ValueError, "reference: got dtype torch.float32, wanted torch.float64 beside out0"),
        (z.long(), TypeError, "reference: got dtype torch.int64"),
        ("nearly as it is", TypeError, "reference: got str, wanted a tensor"),
        (tuple(out1), TypeError, "reference: got tuple, wanted a tensor"),
        (out1._replace(masks=out1.masks[:2]), ValueError, r"reference.masks: got shape \(2, 8\)"),
        (z[:, 0], ValueError, r"reference: got shape \(24,\), wanted"),
    ):
        with pytest.raises(error, match=message):
            criterion(out0, out1, kind=kind, reference=wrong)


def test_what_makes_no_sense_is_refused():
    out0, out1, kind = outputs("dimension")
    with pytest.raises(ValueError, match="granularity: got 'dimension' with difficulty_param"):
        SubspaceVICRegLoss(difficulty_param=1.0)(out0, out1, kind=kind)
    with pytest.raises(ValueError, match=r"difficulty_param: got -1"):
        SubspaceNTXentLoss(difficulty_param=-1.0)
    z0, z1, masks, _ = inputs()
    with pytest.raises(ValueError, match=r"temperature: got 0"):
        functional.pair_difficulty(z0, z1, masks, temperature=0.0)


@pytest.mark.parametrize(
    "loss",
    [
        SubspaceVICRegLoss(difficulty_param=1.0),
        SubspaceVICRegLoss(normalize=False),
        SubspaceNTXentLoss(difficulty_param=1.0),
        SubspaceCosineLoss(difficulty_param=1.0, sensitivity_param=1.0),
    ],
)
def test_weights_of_pairs_are_worked_out_once_in_a_call(loss, monkeypatch):
    """A term of single pairs and the sensitivity have them in common, and ranks are told their mean."""
    calls, mean = [], uncertainty._log_harmonic_mean
    monkeypatch.setattr(uncertainty, "_log_harmonic_mean", lambda *x: calls.append(x) or mean(*x))
    z0, z1, masks, kind = inputs()
    out = SubspaceOutput(z0, masks, torch.randn(N, K, dtype=z0.dtype), KINDS, "subspace")
    loss(out, z1, kind=kind)
    assert len(calls) == 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_has_no_rank_and_shows_in_a_reference(loss, bad):
    out0, out1, kind = outputs("sample")
    reference = out0.embedding.detach().clone()
    reference[1, 2] = bad
    assert functional.pair_difficulty(reference, out1.embedding.detach(), out0.masks.detach()).isnan().all()
    make, _ = LOSSES[loss]
    assert not make(difficulty_param=3.0)(out0, out1, kind=kind, reference=reference).isfinite()
