"""Mask regularizers: stated ranges, what each counteracts, and that they compose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mast_ops import (
    HardConcreteMasks,
    MaskCoverage,
    MaskedSubspaceHead,
    MaskEntropy,
    MaskExpectedL0,
    MaskHoyer,
    MaskL1,
    MaskOverlap,
    SigmoidMasks,
)

ON_TENSORS = (MaskL1, MaskHoyer, MaskCoverage, MaskOverlap, MaskEntropy)


@given(seed=st.integers(0, 9999), k=st.integers(1, 8), d=st.integers(1, 40), closed=st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_ranges(seed, k, d, closed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(k, d, generator=generator) * (torch.rand(k, d, generator=generator) >= closed)
    for kind in ON_TENSORS:
        value = kind()(masks).item()
        assert -1e-5 <= value <= (0.5 if kind is MaskCoverage else 1) + 1e-5, kind
    torch.testing.assert_close(MaskHoyer()(3 * masks), MaskHoyer()(masks))
    torch.testing.assert_close(MaskOverlap()(masks * torch.arange(1, k + 1)[:, None]), MaskOverlap()(masks))


@pytest.mark.parametrize("kind", ON_TENSORS)
@pytest.mark.parametrize(
    "masks", [torch.zeros(3, 4), torch.ones(3, 4), torch.eye(4), torch.rand(1, 1), torch.rand(64, 3)]
)
def test_gradients_are_finite_at_the_ends(kind, masks):
    masks = masks.clone().requires_grad_()
    kind()(masks).backward()
    assert masks.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "sign"), [(MaskCoverage, -1), (MaskL1, 1)])
def test_coverage_opens_and_l1_closes(kind, sign):
    masks = torch.full((2, 4), 0.2, requires_grad=True)
    kind()(masks).backward()
    assert (masks.grad * sign > 0).all()


def test_they_add_and_scale():
    masks = torch.rand(3, 5)
    a, b, c = MaskL1(), MaskOverlap(), MaskEntropy()
    wanted = 2 * (a(masks) + 0.5 * b(masks)) + 0.1 * c(masks)
    total = 2 * (a + 0.5 * b) + c * 0.1
    torch.testing.assert_close(total(masks), wanted)
    assert isinstance(total, nn.Module)


@pytest.mark.parametrize("kind", ON_TENSORS)
def test_tensor_output_parameterisation_and_head_agree(kind):
    head = MaskedSubspaceHead(nn.Linear(4, 6), 3, masks="sigmoid")
    values = [kind()(x) for x in (head.masks(), head(torch.randn(2, 4)), head.masks, head)]
    assert all(torch.equal(value, values[0]) for value in values)


def test_expected_l0_closes_gates_and_takes_gates_alone():
    head = MaskedSubspaceHead(nn.Linear(4, 6), 3, masks="hard_concrete")
    value = MaskExpectedL0()(head)
    torch.testing.assert_close(value, head.masks.open_probability().mean())
    value.backward()
    assert (head.masks.weight.grad > 0).all()
    assert 0 <= MaskExpectedL0()(HardConcreteMasks(2, 3)) <= 1
    for other in (torch.rand(2, 3), SigmoidMasks(2, 3)):
        with pytest.raises(TypeError, match="wanted HardConcreteMasks"):
            MaskExpectedL0()(other)
