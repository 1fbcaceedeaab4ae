"""Masks allocated by what augmentations explain: the statistics, the choice, and how they reach the masks."""

import copy

import pytest
import torch
from explained import KINDS, D, head, pairs, plain

from mast_ops import (
    AllocatedMasks,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceOutput,
    SubspaceSigmoidLoss,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
    functional,
)
from mast_ops.losses._base import SubspaceLoss

LOSSES = (
    SubspaceVICRegLoss, SubspaceNTXentLoss, SubspaceCosineLoss, SubspaceBarlowTwinsLoss, SubspaceSigmoidLoss,
    UncertaintyInvarianceLoss,
)  # fmt: skip


def closed(masks: torch.Tensor) -> list[list[int]]:
    return [(row == 0).nonzero()[:, 0].tolist() for row in masks]


@pytest.mark.parametrize("backend", ["eager", "chunked"])
def test_explained_variance_is_the_plain_formula(backend):
    z0, z1, kind = pairs()
    weight = torch.rand(len(kind))
    got = functional.explained_variance(z0, z1, kind=kind, kinds=KINDS, weight=weight, backend=backend)
    torch.testing.assert_close(got, plain(z0, z1, kind, weight).float())
    none = torch.where(kind == 1, 3, kind)  # b differs alone in no pair
    got = functional.explained_variance(z0, z1, kind=none, kinds=KINDS, backend=backend)
    assert got[1].isnan().all()
    assert got[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"kinds": None}, TypeError, "kinds: got None, wanted a boolean tensor"),
        ({"kinds": KINDS[0]}, ValueError, r"kinds: got shape \(3,\), wanted"),
        ({"kinds": KINDS.float()}, TypeError, "kinds: got dtype torch.float32, wanted torch.bool"),
        ({"kind": None}, TypeError, "kind: got NoneType, wanted an int64 tensor"),
        ({"kind": torch.full((64,), 4)}, ValueError, "kind: got indices from 4 to 4, wanted 0 to 3"),
        ({"weight": -torch.ones(64)}, ValueError, "weight: got -1.0 among its entries"),
        ({"eps": 0.0}, ValueError, "eps: got 0.0"),
        ({"z1": torch.zeros(3, D)}, ValueError, "z1: got shape"),
    ],
)
def test_wrong_arguments_are_named(changes, error, words):
    z0, z1, kind = pairs()
    arguments = {"z0": z0, "z1": z1, "kind": kind, "kinds": KINDS} | changes
    with pytest.raises(error, match=words):
        functional.explained_variance(arguments.pop("z0"), arguments.pop("z1"), **arguments)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_tells_the_masks_of_its_pairs(loss):
    one = head()
    z0, z1, kind = pairs()
    assert closed(one.masks()) == [list(range(6))] * 3  # before anything is known, the pool
    loss()(one(z0.requires_grad_()), one(z1), kind=kind)
    assert closed(one.masks()) == [[0, 1], [2, 3], [4, 5]]
    torch.testing.assert_close(one.masks.explained, plain(z0.detach(), z1, kind, torch.ones(64)).float())
    assert one.masks.calls == 1
    assert one.masks.seen.tolist() == [1, 1, 1]


def test_a_loss_of_ones_own_does_too():
    class Mine(SubspaceLoss):
        def terms(self, pairs, run):
            return {"mine": (1.0, pairs.z0.mean())}

    one = head()
    z0, z1, kind = pairs()
    Mine()(one(z0), one(z1), kind=kind)
    assert one.masks.calls == 1


def test_the_first_views_masks_are_told_and_a_target_may_be_plain():
    online, target = head(), head()
    z0, z1, kind = pairs()
    SubspaceCosineLoss()(online(z0), target(z1).detach(), kind=kind)
    SubspaceCosineLoss()(online(z0), z1, kind=kind)
    SubspaceCosineLoss()(z1, online(z0), kind=kind)
    assert (online.masks.calls, target.masks.calls) == (3, 0)


@pytest.mark.filterwarnings("ignore:kind. got None")
@pytest.mark.parametrize("what", ["eval", "no gradients", "no kind"])
def test_nothing_is_told_outside_of_training_or_of_pairs_of_no_known_kind(what):
    one = head().train(what != "eval")
    z0, z1, kind = pairs()
    before = copy.deepcopy(one.state_dict())
    with torch.set_grad_enabled(what != "no gradients"):
        SubspaceVICRegLoss()(one(z0), one(z1), kind=None if what == "no kind" else kind)
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())


def test_weighted_pairs_count_by_their_weight():
    torch.manual_seed(0)
    z0, z1, kind = pairs()
    one = head()
    doubt = torch.randn(64, 1)
    outs = [SubspaceOutput(z, one.masks(), v, KINDS, "sample", one.masks) for z, v in ((z0, doubt), (z1, doubt))]
    SubspaceVICRegLoss()(*outs, kind=kind)
    torch.testing.assert_close(one.masks.explained, plain(z0, z1, kind, torch.exp(-doubt[:, 0])).float())


def test_the_running_mean_is_plain_at_first_and_then_decays_and_absent_rows_stay():
    masks = AllocatedMasks(2, 4, decay=0.5)
    rows = torch.tensor([1.0, 3.0, 5.0])
    for value in rows:
        masks.observe(value.expand(2, 4), torch.tensor([1.0, float(value == 3)]))
    assert masks.explained[:, 0].tolist() == [3.5, 3.0]  # (1 + 3) / 2, then half of the way to 5
    assert masks.seen.tolist() == [3, 1]
    masks.observe(torch.tensor([[torch.nan] * 4, [torch.inf, 0, 0, 0]]))
    assert masks.explained[:, 0].tolist() == [3.5, 3.0]
    assert masks.calls == 4


def test_masks_are_renewed_when_it_is_due():
    masks = AllocatedMasks(2, 8, coverage=0.75, warmup=3, renew=2)
    seen = []
    for i in range(8):
        explained = torch.zeros(2, 8)
        explained[:, i % 4] = 10.0**i
        masks.observe(explained)
        seen.append(masks.weight.clone())
    changed = [i + 1 for i in range(8) if not torch.equal(seen[i], seen[i - 1] if i else torch.zeros(2, 8))]
    assert changed == [3, 5, 7]
    assert torch.equal(seen[-1], seen[-2])


def test_augmentations_that_are_alike_share_and_a_weak_one_gets_its_own():
    masks = AllocatedMasks(4, 16, coverage=1 - 2 / 16, warmup=1)
    torch.manual_seed(0)
    explained = 0.02 * torch.rand(4, 16)
    explained[0, :2] = explained[1, :2] = 0.8
    explained[1, :2] = 0.3
    explained[2, 2:4] = 0.9
    explained[3] = 0.01 * explained[:3].mean(0)  # what all others do, a hundredth
    explained[3, 4:6] = 0.01
    masks.observe(explained)
    assert closed(masks()) == [[0, 1], [0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("shape", "options", "num_closed", "num_pool"),
    [
        ((3, 128), {}, 6, 18), ((12, 16), {"coverage": 0.875}, 2, 8), ((2, 8), {}, 1, 2), ((1, 1), {}, 0, 0),
        ((4, 10), {"pool": 0.0, "coverage": 0.7}, 3, 3), ((12, 10), {"pool": 1.0, "coverage": 0.7}, 3, 10),
    ],
)  # fmt: skip
def test_how_much_is_closed(shape, options, num_closed, num_pool):
    masks = AllocatedMasks(*shape, warmup=1, **options)
    assert (masks.num_closed, masks.num_pool) == (num_closed, num_pool)
    assert (masks() == 0).sum(1).tolist() == [num_pool] * shape[0]
    masks.observe(torch.rand(shape))
    assert (masks() == 0).sum(1).tolist() == [num_closed] * shape[0]
    assert masks()[:, num_pool:].eq(1).all()
    assert not list(masks.parameters())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"coverage": 1.0}, ValueError, "coverage: got 1.0"), ({"pool": 1.5}, ValueError, "pool: got 1.5"),
        ({"warmup": 0}, ValueError, "warmup: got 0"), ({"renew": 1.5}, TypeError, "renew: got 1.5"),
        ({"decay": 1.0}, ValueError, "decay: got 1.0"),
        ({"gather_distributed": 1}, TypeError, "gather_distributed: got 1"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(options, error, words):
    with pytest.raises(error, match=f"^{words}"):
        AllocatedMasks(2, 8, **options)


def test_wrong_statistics_are_named():
    masks = AllocatedMasks(2, 8)
    with pytest.raises(ValueError, match=r"explained: got shape \(2, 7\), wanted \(2, 8\)"):
        masks.observe(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"weight: got shape \(8,\), wanted \(2,\)"):
        masks.observe(torch.zeros(2, 8), torch.ones(8))


def test_infinite_statistics_in_a_checkpoint_show():
    masks = AllocatedMasks(2, 8)
    masks.weight[0, 3] = torch.nan
    assert masks()[0, 3].isnan()


def test_statistics_go_with_their_rows():
    one = head()
    z0, z1, kind = pairs()
    SubspaceVICRegLoss()(one(z0), one(z1), kind=kind)
    other = one.with_subspaces(["c", "new", "a"], new=["new"])
    assert torch.equal(other.masks.explained[[0, 2]], one.masks.explained[[2, 0]])
    assert other.masks.seen.tolist() == [1, 0, 1]
    assert other.masks.calls == 1
    assert closed(other.masks()) == [[4, 5], list(range(6)), [0, 1]]
    assert not one.with_subspaces(["x"], new=["x"]).masks.calls


def test_memory_without_values_starts_anew():
    with torch.device("meta"):
        masks = AllocatedMasks(2, 40)
    masks.to_empty(device="cpu")
    for buffer in masks.buffers():
        buffer.fill_(7)
    masks.reset_parameters()
    assert all(not buffer.any() for buffer in masks.buffers())
    assert masks()[:, : masks.num_pool].eq(0).all()
    assert masks.bfloat16()().dtype == torch.float32


@pytest.mark.parametrize("whole_step", [True, False])
def test_compiled_steps_are_the_plain_ones(whole_step):
    one, loss = head(warmup=2), SubspaceVICRegLoss()
    other = copy.deepcopy(one)

    def step(model, criterion, z0, z1, kind):
        return criterion(model(z0), model(z1), kind=kind)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    model = other if whole_step else torch.compile(other, fullgraph=True, backend="eager")
    criterion = loss if whole_step else torch.compile(loss, fullgraph=True, backend="eager")
    for seed in range(3):
        z0, z1, kind = pairs(seed)
        z0.requires_grad_()
        wanted = step(one, loss, z0, z1, kind)
        got = (compiled if whole_step else step)(model, criterion, z0, z1, kind)
        torch.testing.assert_close(got, wanted)
        for name, buffer in one.masks.named_buffers():
            torch.testing.assert_close(other.masks.get_buffer(name), buffer)
    assert closed(other.masks()) == [[0, 1], [2, 3], [4, 5]]
