"""The mean of a loss over pairs of views, against the loss itself called for each pair."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from mast_ops import (
    FactorizedViews,
    MaskedSubspaceHead,
    MultiViewLoss,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceSigmoidLoss,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
)

N, D = 12, 6
LOSSES = {
    "vicreg": lambda: SubspaceVICRegLoss(sensitivity_param=1.0, difficulty_param=1.0),
    "nt_xent": lambda: SubspaceNTXentLoss(temperature=0.2),
    "cosine": SubspaceCosineLoss,
    "barlow_twins": SubspaceBarlowTwinsLoss,
    "sigmoid": SubspaceSigmoidLoss,
    "uncertainty": UncertaintyInvarianceLoss,
}


def drawn(x: Tensor) -> Tensor:
    return x + torch.rand(len(x), 1, 1, 1)


def make_views(num_local: int = 0) -> FactorizedViews:
    local = {"crop": lambda x: drawn(x)[..., :1, :]} if num_local else None
    options = {"num_views": 2 if num_local else 3, "num_local_views": num_local, "local_augmentations": local}
    return FactorizedViews({"crop": drawn, "color": drawn, "blur": drawn}, batched=True, **options)


def make_outs(views: FactorizedViews, **options):
    torch.manual_seed(1)
    head = MaskedSubspaceHead(nn.Linear(5, D), views, input_dim=5, **options).double()
    num = views.num_views + views.num_local_views
    kind = torch.arange(N) % views._num_drawn
    return head, [head(h) for h in torch.randn(num, N, 5, dtype=torch.float64)], kind


def mean(values):
    return torch.stack(list(values)).mean()


@pytest.mark.parametrize("num_local", [0, 2])
@pytest.mark.parametrize("has_targets", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_mean_over_pairs(name, has_targets, num_local):
    views = make_views(num_local)
    _, outs, kind = make_outs(views, uncertainty="subspace")
    criterion = LOSSES[name]().double()
    num_global = views.num_views
    targets = [out.detach()._replace(embedding=out.embedding.detach() + 1) for out in outs[:num_global]]
    if has_targets:
        chosen = [(i, j) for i in range(len(outs)) for j in range(num_global) if i != j]
    else:
        chosen = [(i, j) for i, j in itertools.combinations(range(len(outs)), 2) if i < num_global]
    others = targets if has_targets else outs
    found = [
        criterion(
            outs[i],
            others[j],
            kind=kind if max(i, j) < num_global else views.local_kinds[kind],
            return_components=True,
        )
        for i, j in chosen
    ]
    given = (outs, targets) if has_targets else (outs,)
    loss, terms = MultiViewLoss(criterion, views)(*given, kind=kind, return_components=True)
    torch.testing.assert_close(loss, mean(value for value, _ in found), rtol=1e-12, atol=0)
    assert terms.keys() == found[0][1].keys()
    for key, value in terms.items():
        torch.testing.assert_close(value, mean(each[key] for _, each in found), rtol=1e-12, atol=1e-15)
        assert not value.requires_grad
    embeddings = [out.embedding for out in outs]
    ours = torch.autograd.grad(loss, embeddings, retain_graph=True)
    theirs = torch.autograd.grad(mean(value for value, _ in found), embeddings)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_two_views_give_the_loss_itself():
    z = torch.randn(2, N, D, dtype=torch.float64)
    masks, kind = torch.rand(3, D, dtype=torch.float64), torch.arange(N) % 3
    loss = SubspaceVICRegLoss()
    assert torch.equal(MultiViewLoss(loss)(list(z), masks=masks, kind=kind), loss(*z, masks=masks, kind=kind))


def test_samples_of_the_sigmoid_loss_are_passed_on():
    z, sample = torch.randn(3, N, D, dtype=torch.float64), torch.arange(N) // 2
    loss, masks = SubspaceSigmoidLoss().double(), torch.ones(2, D, dtype=torch.float64)
    options = {"masks": masks, "sample": sample}
    expected = mean(loss(a, b, **options) for a, b in itertools.combinations(z, 2))
    torch.testing.assert_close(MultiViewLoss(loss)(list(z), **options), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("has_targets", [False, True])
def test_memory_bank_takes_one_embedding_of_an_image_and_after_all_pairs(has_targets):
    z = torch.randn(4, N, D, requires_grad=True)
    masks = torch.ones(1, D)
    loss = MultiViewLoss(SubspaceNTXentLoss(memory_bank_size=(3 * N, D)))
    bank = loss.criterion.memory_bank
    plain = copy.deepcopy(loss.criterion)
    seconds = (z + 1).detach() if has_targets else z
    found = loss(list(z), *([list(seconds)] if has_targets else []), masks=masks)
    pairs = itertools.permutations(range(4), 2) if has_targets else itertools.combinations(range(4), 2)
    z, seconds = z.detach(), seconds.detach()  # the bank then stays as it was
    expected = mean(plain(z[i], seconds[j], masks=masks) for i, j in pairs)
    torch.testing.assert_close(found.detach(), expected)
    assert int(bank.position) == N
    assert torch.equal(bank.bank[:N], seconds[1])


def test_allocated_masks_are_told_once_of_all_pairs():
    views = make_views()
    head, outs, kind = make_outs(views, masks="allocated")
    told = []
    head.masks.observe = lambda explained, weight, gathered: told.append((explained, weight))
    loss = SubspaceVICRegLoss()
    for out0, out1 in itertools.combinations(outs, 2):
        loss(out0, out1, kind=kind)
    explained, weight = (torch.stack(each) for each in zip(*told, strict=True))
    told.clear()
    MultiViewLoss(loss, views)(outs, kind=kind)
    ((ours, ours_weight),) = told
    torch.testing.assert_close(ours, (explained * weight[..., None]).sum(0) / weight.sum(0)[:, None])
    torch.testing.assert_close(ours_weight, weight.sum(0))


def test_it_compiles_whole():
    views = make_views(1)
    _, outs, kind = make_outs(views)
    loss = MultiViewLoss(UncertaintyInvarianceLoss(), views).double()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(outs, kind=kind), loss(outs, kind=kind))


def test_nothing_of_the_views_is_in_the_checkpoint():
    assert MultiViewLoss(SubspaceVICRegLoss(), make_views(1)).state_dict() == {}


Z = [torch.randn(N, D) for _ in range(4)]
MASKS = {"masks": torch.ones(3, D)}


@pytest.mark.parametrize(
    ("make", "args", "options", "error", "match"),
    [
        (lambda: MultiViewLoss(nn.MSELoss()), (), {}, TypeError, "criterion: got MSELoss"),
        (lambda: MultiViewLoss(SubspaceVICRegLoss(), 3), (), {}, TypeError, "views: got 3, wanted FactorizedViews"),
        (lambda: MultiViewLoss(SubspaceVICRegLoss()), (Z[:1],), MASKS, ValueError, "outs: got 1, wanted two or more"),
        (lambda: MultiViewLoss(SubspaceVICRegLoss()), (Z[0],), MASKS, TypeError, "outs: got Tensor, wanted a list"),
        (
            lambda: MultiViewLoss(SubspaceVICRegLoss()),
            (MaskedSubspaceHead(nn.Linear(D, D), 3)(Z[0]),),
            {},
            TypeError,
            "outs: got SubspaceOutput, wanted a list",
        ),
        (lambda: MultiViewLoss(SubspaceVICRegLoss(), make_views()), (Z,), MASKS, ValueError, "outs: got 4, wanted 3"),
        (
            lambda: MultiViewLoss(SubspaceVICRegLoss(), make_views(2)),
            (Z, Z),
            MASKS,
            ValueError,
            "targets: got 4, wanted 2, one for each of the global views",
        ),
        (
            lambda: MultiViewLoss(SubspaceVICRegLoss(), make_views(2)),
            (Z,),
            MASKS | {"kind": torch.full((N,), 9)},
            ValueError,
            "kind: got indices from 9 to 9",
        ),
        (
            lambda: MultiViewLoss(SubspaceCosineLoss()),
            (Z,),
            MASKS | {"sample": torch.arange(N)},
            TypeError,
            "sample: got some",
        ),
        (
            lambda: MultiViewLoss(SubspaceVICRegLoss()),
            (Z,),
            MASKS | {"return_components": 1},
            TypeError,
            "return_components: got",
        ),
    ],
)
def test_bad_arguments_are_named(make, args, options, error, match):
    with pytest.raises(error, match=match):
        make()(*args, **options)


def test_the_table_of_local_views_outlives_to_empty():
    views = make_views(2)
    wanted, criterion = views.local_kinds.clone(), MultiViewLoss(SubspaceVICRegLoss(), views)
    criterion.local_kinds.fill_(77)  # whatever was in that memory
    criterion.to_empty(device="cpu")
    assert criterion.local_kinds.equal(wanted)
