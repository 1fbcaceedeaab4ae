"""What a person would write in place of a list, a number or a head's output: accepted, or refused in words."""

import collections

import numpy as np
import pytest
import torch
from torch import nn

from mast_ops import (
    AllocatedMasks,
    BinaryMasks,
    FactorizedViews,
    HardConcreteMasks,
    MaskedSubspaceHead,
    MaskL1,
    MaskOverlap,
    MultiViewLoss,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceFeatures,
    SubspaceNTXentLoss,
    SubspaceOutput,
    SubspaceSigmoidLoss,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
    subspace_metrics,
)
from mast_ops.kinds import kinds_of

LOSSES = (
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceSigmoidLoss,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
)
NAMES = ("crop", "color", "blur")


def head(**options) -> MaskedSubspaceHead:
    return MaskedSubspaceHead(nn.Linear(8, 6), NAMES, **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("place", ["out0", "out1"])
def test_a_plain_tuple_is_told_from_an_output(loss, place):
    """It may be an output that lost its name, or a slice of one, which holds every sample: so it is not guessed."""
    out = head(uncertainty="subspace")(torch.randn(8, 8))
    for plain in (tuple(out), out[:5], out[2:]):
        views = (plain, out) if place == "out0" else (out, plain)
        with pytest.raises(
            TypeError, match=rf"^{place}: got a plain tuple of {len(plain)}, wanted .*SubspaceOutput.*split"
        ):
            loss()(*views)
    assert torch.equal(loss()(SubspaceOutput(*tuple(out)), out), loss()(out, out))


@pytest.mark.parametrize("uncertainty", [None, "sample", "subspace", "dimension"])
def test_both_views_in_one_pass_come_apart_again(uncertainty):
    one, (x0, x1) = head(uncertainty=uncertainty), torch.randn(2, 5, 8)
    both = one(torch.cat([x0, x1]))
    wanted = SubspaceVICRegLoss()(one(x0), one(x1))
    for parts in (both.chunk(2), both.split(5), both.split([5, 5])):
        assert all(isinstance(part, SubspaceOutput) for part in parts)
        torch.testing.assert_close(SubspaceVICRegLoss()(*parts), wanted)
    assert [len(part.embedding) for part in both.split([7, 3])] == [7, 3]


@pytest.mark.parametrize(
    "names",
    [dict.fromkeys(NAMES).keys(), dict.fromkeys(NAMES), np.array(NAMES), iter(NAMES),
     nn.ModuleDict({name: nn.Identity() for name in NAMES})],
    ids=["keys", "a dictionary", "an array", "an iterator", "modules"],
)  # fmt: skip
def test_names_come_in_any_order_that_is_one(names):
    assert MaskedSubspaceHead(nn.Linear(8, 6), names).subspaces == NAMES


def test_new_names_too():
    new = {"noise": 1}.keys()
    assert head().with_subspaces(["crop", "noise"], new=new).subspaces == ("crop", "noise")
    assert head().with_subspaces(["crop", "noise"], new=(name for name in new)).subspaces == ("crop", "noise")


def test_augmentations_that_are_modules():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand(())

    views = FactorizedViews(nn.ModuleDict({name: Noise() for name in NAMES}))
    assert views.augmentations == NAMES
    assert views(torch.rand(3, 4, 4)).view0.shape == (3, 4, 4)


def test_numbers_of_numpy():
    masks = BinaryMasks(np.int64(3), np.int32(6), coverage=np.float32(0.5))
    one = MaskedSubspaceHead(nn.Linear(8, 6), np.int64(3), masks=masks, input_dim=np.int64(8), output_dim=np.int16(6))
    out = one(torch.randn(4, 8))
    assert one.features(out, free_of=np.int64(1)).equal(one.features(out, free_of=1))
    assert SubspaceNTXentLoss(np.float32(0.5))(out, out).equal(SubspaceNTXentLoss(0.5)(out, out))
    assert masks.select(range(2))().equal(masks.select([np.int64(0), np.int64(1)])())
    assert SubspaceNTXentLoss(memory_bank_size=np.int64(0)).memory_bank is None
    with pytest.raises(ValueError, match=r"^memory_bank_size: got np.int64\(4\), wanted 0 or \(4, D\)"):
        SubspaceNTXentLoss(memory_bank_size=np.int64(4))
    assert kinds_of(np.float32(0.5), 3)[0].equal(kinds_of(0.5, 3)[0])
    assert len(out.chunk(np.int64(2), dim=np.int64(0))) == 2
    with pytest.raises(TypeError, match=r"^gather_distributed: got np.True_, wanted True or False"):
        SubspaceVICRegLoss(gather_distributed=np.True_)


def test_a_table_of_pandas():
    table = pytest.importorskip("pandas").DataFrame(np.eye(3, dtype=bool), columns=NAMES)
    assert kinds_of(table, 3)[0].equal(torch.eye(3, dtype=torch.bool))


ORDERS = {
    "an array": np.array,
    "keys": lambda entries: dict.fromkeys(entries).keys(),
    "a dictionary": dict.fromkeys,
    "values": lambda entries: dict(enumerate(entries)).values(),
    "a generator": lambda entries: (entry for entry in entries),
    "a deque": collections.deque,
}


@pytest.mark.parametrize("order", ORDERS)
def test_whatever_has_an_order_is_a_list(order):
    make, one, x = ORDERS[order], head(), torch.randn(4, 8)
    out = one(x)
    for names in (("crop", "blur"), (0, 2)):
        assert one.features(out, free_of=make(names)).equal(one.features(out, free_of=[0, 2]))
    assert SubspaceFeatures(nn.Identity(), one, keeping=make(["crop"]))(x).shape == (4, 1)
    for masks in (one.masks, AllocatedMasks(3, 6)):
        assert masks.select(make([2, 0]))().equal(masks.select([2, 0])())
    assert HardConcreteMasks(2, 3, stretch=make([-0.5, 1.5])).stretch == (-0.5, 1.5)
    assert SubspaceNTXentLoss(memory_bank_size=make([5, 6])).memory_bank.bank.shape == (5, 6)
    assert [len(part.embedding) for part in out.split(make([3, 1]))] == [3, 1]
    if order not in ("an array", "keys", "a dictionary"):
        loss = MultiViewLoss(SubspaceVICRegLoss())
        assert loss(make([out, one(2 * x), one(3 * x)])).equal(loss([out, one(2 * x), one(3 * x)]))


def test_names_that_are_multiplied_may_come_in_a_set():
    one, x = head(), torch.randn(4, 8)
    assert one.features(one(x), free_of={"blur", "crop"}).equal(one.features(one(x), free_of=["crop", "blur"]))
    assert one.features(one(x), free_of=torch.tensor([0, 2])).equal(one.features(one(x), free_of=["crop", "blur"]))
    with pytest.raises(TypeError, match=r"^subspaces: got frozenset, wanted a sequence"):
        MaskedSubspaceHead(nn.Linear(8, 6), frozenset(NAMES))
    with pytest.raises(TypeError, match=r"^subspaces: got ndarray, wanted a sequence"):
        MaskedSubspaceHead(nn.Linear(8, 6), np.array("crop"))


@pytest.mark.parametrize("index", [torch.tensor([0, 1]), torch.rand(4) > 0.5, np.array([0, 1]), [0, 1], "embedding"])
def test_samples_of_an_output_are_not_taken_by_an_index(index):
    out = head()(torch.randn(4, 8))
    with pytest.raises(TypeError, match=r"^index: got .* for a SubspaceOutput, wanted .*_replace\(embedding="):
        out[index]
    assert out[0] is out.embedding
    assert out[-1] is out.knows_kinds


@pytest.mark.parametrize("product", [lambda x: x * 2, lambda x: 2 * x, lambda x: torch.ones(1) * x])
def test_an_output_is_no_factor(product):
    with pytest.raises(TypeError, match=r"^mul: got a SubspaceOutput, wanted a tensor"):
        product(head()(torch.randn(4, 8)))


def test_a_sum_of_regularizers():
    masks = torch.rand(3, 6)
    torch.testing.assert_close(sum([MaskL1(), MaskOverlap()])(masks), MaskL1()(masks) + MaskOverlap()(masks))
    with pytest.raises(TypeError, match=r"^other: got 2, wanted a regularizer"):
        2 + MaskL1()


def test_names_with_hyphens_keep_their_values_apart():
    out = SubspaceOutput(torch.randn(4, 6), torch.rand(4, 6))
    values = subspace_metrics(out, ["a-b", "c", "a", "b-c"])
    assert len([name for name in values if name.startswith("overlap/")]) == 6
    assert {"overlap/'a-b'-c", "overlap/a-'b-c'", "overlap/c-a"} <= values.keys()
