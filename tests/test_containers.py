"""What a person would write in place of a list, a number or a head's output: accepted, or refused in words."""

import numpy as np
import pytest
import torch
from torch import nn

from mast_ops import (
    BinaryMasks,
    FactorizedViews,
    MaskedSubspaceHead,
    MaskL1,
    MaskOverlap,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceOutput,
    SubspaceSigmoidLoss,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
    subspace_metrics,
)

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
