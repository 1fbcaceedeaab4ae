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
from mast_ops.functional import mask_coverage, mask_expected_l0
from mast_ops.regularizers import MaskRegularizerSum
from mast_ops.schedules import LinearSchedule

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


def test_a_floor_that_a_schedule_sets_does_not_compile_anew():
    regularizer, masks = MaskCoverage(0.5), torch.rand(3, 8)
    compiled = torch.compile(regularizer, fullgraph=True, backend="eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for floor in (i / 20 for i in range(21)):
            regularizer.floor = floor
            assert regularizer.floor == floor
            assert torch.equal(compiled(masks), torch.relu(torch.tensor(floor) - masks.mean(1)).mean())


def test_weights_that_are_set_by_hand_do_not_compile_anew():
    """One of them, or all; and a schedule may take a number's place, and leave it."""
    total, masks = MaskRegularizerSum([MaskL1(), MaskOverlap()], [1, 2.0]), torch.rand(3, 8)
    compiled = torch.compile(total, fullgraph=True, backend="eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i in range(20):
            total.weights[0] = i / 10
            assert total.weights == [i / 10, 2.0]
            torch.testing.assert_close(compiled(masks), i / 10 * MaskL1()(masks) + 2 * MaskOverlap()(masks))
        total.weights = [0, 3]
        torch.testing.assert_close(compiled(masks), 3 * MaskOverlap()(masks))
    total.weights[-1] = LinearSchedule(0.0, 1.0, 4)
    total.step()
    assert isinstance(total.weights[1], LinearSchedule)
    torch.testing.assert_close(total(masks.double()), 0.25 * MaskOverlap()(masks.double()))
    assert list(total.state_dict()) == ["factors.1.taken"]
    total.weights = (1.0, 0.5)
    assert total.state_dict() == {}
    with pytest.raises(ValueError, match=r"^weights: got 1 for 2 regularizers"):
        total.weights = [1.0]
    for weight, error in (("1", TypeError), (-1.0, ValueError), (None, TypeError)):
        with pytest.raises(error, match=r"^weights: got "):
            total.weights[0] = weight
        with pytest.raises(error, match=r"^weights: got "):
            total.weights = [2.0, weight]
    assert total.weights == [1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_floor_of_any_form_is_the_same(dtype):
    masks = torch.rand(3, 8).to(dtype)
    wanted = mask_coverage(masks, 0.7)
    assert wanted.dtype == torch.promote_types(dtype, torch.float32)
    for value in (MaskCoverage(0.7)(masks), mask_coverage(masks, torch.tensor(0.7, dtype=torch.float64))):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: MaskCoverage("0.5"), TypeError, "floor: got '0.5'"),
        (lambda: MaskCoverage(float("nan")), ValueError, "floor: got nan"),
        (lambda: mask_coverage(torch.rand(2, 3), torch.tensor(1.5)), ValueError, "floor: got 1.5"),
        (
            lambda: mask_coverage(torch.rand(2, 3), torch.rand(2)),
            TypeError,
            r"floor: got torch.float32 of shape \(2,\)",
        ),
        (lambda: mask_coverage(torch.rand(2, 3), torch.tensor(1)), TypeError, "floor: got torch.int64"),
        (lambda: MaskL1() + None, TypeError, "other: got None, wanted a regularizer"),
        (lambda: MaskL1() + 1.0, TypeError, r"other: got 1\.0"),
        (lambda: None * MaskL1(), TypeError, "weight: got None"),
        (lambda: True * MaskL1(), TypeError, "weight: got True"),
        (lambda: MaskL1() * MaskL1(), TypeError, "weight: got MaskL1"),
        (lambda: torch.tensor(0.1) * MaskL1(), TypeError, "weight: got Tensor"),
        (lambda: MaskRegularizerSum(MaskL1(), [1.0]), TypeError, "regularizers: got MaskL1"),
        (lambda: MaskRegularizerSum([MaskL1()], 1.0), TypeError, r"weights: got 1\.0"),
        (lambda: MaskRegularizerSum([None], [1.0]), TypeError, "regularizers: got None"),
        (lambda: MaskRegularizerSum([MaskL1()], [float("nan")]), ValueError, "weights: got nan"),
        (lambda: MaskL1()(None), TypeError, "masks: got NoneType"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()


def test_expected_l0_pays_nothing_beyond_its_ends():
    masks = torch.tensor([[-5.0, 3.0]], requires_grad=True)
    value = mask_expected_l0(masks)
    assert value == 0.5
    value.backward()
    assert not masks.grad.any()
    assert not mask_expected_l0(torch.tensor([[-torch.inf, 0.5]])).isfinite()
