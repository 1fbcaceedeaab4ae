"""Mask parameterisations: ranges, ends, and what each promises about collapse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from mast_ops import (
    AllocatedMasks,
    BinaryMasks,
    HardConcreteMasks,
    NormalizedMasks,
    ReLUMasks,
    SigmoidMasks,
    SoftplusMasks,
)

ALL = (SigmoidMasks, ReLUMasks, SoftplusMasks, HardConcreteMasks, NormalizedMasks, BinaryMasks)


def filled(kind, value, **kwargs):
    masks = kind(2, 5, **kwargs)
    with torch.no_grad():
        masks.weight.fill_(value)
    return masks


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 5)])
def test_shape_range_and_gradient(kind, shape):
    module = kind(*shape)
    masks = module()
    assert masks.shape == shape
    assert masks.min() >= 0
    if kind not in (ReLUMasks, SoftplusMasks):
        assert masks.max() <= 1
    masks.square().sum().backward()
    assert module.weight.grad.isfinite().all()


def test_ends():
    assert filled(ReLUMasks, -1.0)().eq(0).all()
    assert filled(ReLUMasks, 3.0)().eq(3).all()
    assert 0 < filled(SigmoidMasks, -9.0)().max() < 1e-3
    assert 0 < filled(SoftplusMasks, -9.0)().max() < 1e-3
    assert filled(HardConcreteMasks, -9.0).eval()().eq(0).all()
    assert filled(HardConcreteMasks, 9.0).eval()().eq(1).all()


def test_hard_concrete_samples_in_training_only_and_as_often_open_as_it_says():
    gates = filled(HardConcreteMasks, 0.3)
    samples = torch.stack([gates() for _ in range(4000)])
    assert (samples == 0).any()
    assert (samples == 1).any()
    frequency = (samples > 0).double().mean((0, 1, 2))
    torch.testing.assert_close(frequency, gates.open_probability()[0, 0].double(), atol=0.01, rtol=0)
    gates.eval()
    assert torch.equal(gates(), gates())


@given(coverage=st.floats(0.05, 0.95), std=st.floats(0.1, 20), seed=st.integers(0, 999), dim=st.integers(1, 200))
@settings(deadline=None, max_examples=40)
def test_normalized_masks_have_exactly_their_coverage(coverage, std, seed, dim):
    torch.manual_seed(seed)
    masks = NormalizedMasks(3, dim, coverage=coverage, std=std).double()()
    torch.testing.assert_close(masks.mean(1), torch.full((3,), coverage, dtype=torch.float64), atol=1e-5, rtol=0)


def test_normalized_masks_ignore_a_shift_and_have_the_implicit_gradient():
    module = NormalizedMasks(2, 6, coverage=0.3, std=1.0).double()
    weight = module.weight.detach().clone().requires_grad_()

    def masks(w):
        return functional_call(module, {"weight": w}, ())

    torch.testing.assert_close(masks(weight), masks(weight + 5), atol=1e-8, rtol=0)
    assert torch.autograd.gradcheck(masks, (weight,), atol=1e-4)


def test_an_invariance_alone_closes_sigmoid_masks_and_none_of_fixed_coverage():
    gap = torch.rand(16, 8)
    for kind, collapses in ((SigmoidMasks, True), (NormalizedMasks, False), (BinaryMasks, False)):
        module = kind(2, 8)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            (gap @ module().square().T).mean().backward()
            optimizer.step()
        assert (module().mean() < 0.05) == collapses


def test_hard_concrete_uniforms_are_uniform_and_independent():
    gates = HardConcreteMasks(64, 512)
    draws = torch.stack([gates._uniform().detach() for _ in range(8)]).double()
    assert draws.min() > 0
    assert draws.max() < 1
    n = draws.numel()
    assert abs(draws.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    counts = torch.histc(draws, 64, 0, 1)
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 64 + 5 * (2 * 64) ** 0.5  # chi-squared
    for axis in range(3):  # neighbours in draws, rows and columns, and twice as far
        for distance in (1, 2):
            a = draws.narrow(axis, 0, draws.shape[axis] - distance).flatten()
            b = draws.narrow(axis, distance, draws.shape[axis] - distance).flatten()
            assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / len(a) ** 0.5


def test_hard_concrete_draws_on_in_training_alone():
    gates = HardConcreteMasks(2, 32)
    first, second = gates(), gates()
    assert not torch.equal(first, second)
    gates.eval()
    assert torch.equal(gates(), gates())
    assert gates.draws == 2
    other = HardConcreteMasks(2, 32)
    assert not torch.equal(other._uniform(), HardConcreteMasks(2, 32)._uniform())  # two heads do not draw alike


def test_hard_concrete_draws_alike_when_compiled():
    gates = HardConcreteMasks(2, 32)
    state = {name: x.clone() for name, x in gates.state_dict().items()}
    wanted = [gates(), gates()]
    gates.load_state_dict(state)
    compiled = torch.compile(gates, fullgraph=True)
    for masks in wanted:
        torch.testing.assert_close(compiled(), masks)


@pytest.mark.parametrize("kind", ALL)
def test_selected_rows_are_a_copy_in_the_order_asked_for(kind):
    masks = kind(3, 16)
    chosen = masks.select([2, None, 0])
    assert torch.equal(chosen.weight[0], masks.weight[2])
    assert torch.equal(chosen.weight[2], masks.weight[0])
    assert chosen.weight[1].std() > 0
    assert chosen.settings() == masks.settings()
    with torch.no_grad():
        chosen.weight.zero_()
    assert masks.weight.abs().sum() > 0


@pytest.mark.parametrize(("rows", "words"), [([], "rows: got none"), ([3], "rows: got 3, wanted 0 to 2")])
def test_rows_that_are_not_there_are_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        SigmoidMasks(3, 4).select(rows)


DIALS = [
    (BinaryMasks, "coverage", [i / 40 + 0.3 for i in range(20)]),
    (BinaryMasks, "temperature", [0.1 + i for i in range(20)]),
    (NormalizedMasks, "coverage", [i / 40 + 0.3 for i in range(20)]),
    (HardConcreteMasks, "temperature", [0.1 + i for i in range(20)]),
]


@pytest.mark.parametrize(("kind", "name", "values"), DIALS)
def test_a_number_that_a_schedule_sets_does_not_compile_anew(kind, name, values):
    masks = kind(2, 40).eval()
    compiled = torch.compile(masks, fullgraph=True, backend="eager")
    torch._dynamo.reset()
    seen = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for value in values:
            setattr(masks, name, value)
            assert getattr(masks, name) == value
            got = compiled()
            assert torch.equal(got, masks())
            seen.append((compiled().square() * torch.rand(2, 40)).sum())
            masks.zero_grad()
            seen[-1].backward()
            assert masks.weight.grad.isfinite().all()
    if name == "coverage":
        torch.testing.assert_close(got.mean(1), torch.full((2,), values[-1]))


@pytest.mark.parametrize(("kind", "name", "values"), DIALS)
def test_it_acts_as_if_it_had_been_the_first(kind, name, values):
    fresh, changed = kind(2, 40, **{name: values[3]}), kind(2, 40)
    setattr(changed, name, values[3])
    changed.load_state_dict(fresh.state_dict())
    assert changed.settings() == fresh.settings()
    masks = fresh.eval()(), changed.eval()()
    assert torch.equal(*masks)
    assert torch.equal(*(torch.autograd.grad(x.square().sum(), m.weight)[0]
                         for x, m in zip(masks, (fresh, changed), strict=True)))  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "values"), DIALS)
def test_what_is_no_value_is_refused_and_the_old_one_stays(kind, name, values):
    masks = kind(2, 40, **{name: values[0]})
    for bad, error in (
        (float("nan"), ValueError),
        (0.0, ValueError),
        (True, TypeError),
        (torch.tensor(0.5), TypeError),
    ):
        with pytest.raises(error, match=f"^{name}: got"):
            setattr(masks, name, bad)
        assert getattr(masks, name) == values[0]


@pytest.mark.parametrize("kind", ALL)
def test_they_can_be_traced(kind):
    masks = kind(2, 12).eval()
    traced = torch.jit.trace(masks, ())
    with torch.no_grad():
        masks.weight.copy_(torch.randn(2, 12))
    torch.testing.assert_close(traced(), masks())


@pytest.mark.parametrize("kind", ALL)
def test_what_to_empty_leaves_is_started_anew(kind):
    with torch.device("meta"):
        masks = kind(2, 40)
    masks.to_empty(device="cpu")
    for state in masks.state_dict().values():
        state.fill_(7)  # whatever was in that memory
    masks.reset_parameters()
    fresh = kind(2, 40)
    assert masks.settings() == fresh.settings()
    assert 0 < masks.weight.std() < 10
    for name, buffer in fresh.named_buffers():
        assert torch.equal(masks.get_buffer(name), buffer)
    assert masks().isfinite().all()
    if kind in (BinaryMasks, NormalizedMasks):
        torch.testing.assert_close(masks().mean(1), fresh().mean(1))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((0, 4), {}, ValueError, "num_subspaces: got 0"),
        ((2.0, 4), {}, TypeError, r"num_subspaces: got 2\.0"),
        ((True, 4), {}, TypeError, "num_subspaces: got True"),
        ((2, "4"), {}, TypeError, "dim: got '4'"),
        ((2, 4), {"mean": float("nan")}, ValueError, "mean: got nan"),
        ((2, 4), {"mean": None}, TypeError, "mean: got None"),
        ((2, 4), {"std": float("inf")}, ValueError, "std: got inf"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, options, error, words):
    with pytest.raises(error, match=f"^{words}"):
        kind(*arguments, **options)


@pytest.mark.parametrize(
    ("stretch", "error"),
    [
        ((-0.1,), ValueError), ((-0.1, 1.1, 2.0), ValueError), ((-0.1, 0.9), ValueError), (None, TypeError),
        ((float("-inf"), 1.1), ValueError), ((-0.1, float("nan")), ValueError), ("ab", TypeError),
        ((-0.1, "2"), TypeError), ((-0.1, True), TypeError),
    ],
)  # fmt: skip
def test_a_stretch_that_is_none_is_refused(stretch, error):
    with pytest.raises(error, match=r"^stretch: got"):
        HardConcreteMasks(2, 4, stretch=stretch)


def test_a_stretch_may_follow_a_schedule_and_compiles_once():
    gates = HardConcreteMasks(2, 8).eval()
    gates.weight.data[0, 0] = -3.0
    compiled = torch.compile(gates, fullgraph=True, backend="eager")
    compiled()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for low in (-0.2, -0.3, -0.5):
            gates.stretch = (low, 1.1)
            wanted = (torch.sigmoid(gates.weight) * (1.1 - low) + low).clamp(0, 1)
            torch.testing.assert_close(compiled(), wanted)
            assert gates.stretch == (low, 1.1)
    with pytest.raises(ValueError, match="stretch: got"):
        gates.stretch = (0.0, 1.0)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(
    "kind", [SigmoidMasks, ReLUMasks, SoftplusMasks, BinaryMasks, HardConcreteMasks, NormalizedMasks, AllocatedMasks]
)
def test_weights_that_are_not_finite_show_in_the_masks(kind, bad):
    masks = kind(2, 8)
    masks.weight.data[0, 1] = bad
    for mode in (True, False):
        assert not masks.train(mode)()[0].isfinite().all()


@pytest.mark.parametrize(
    ("masks", "name", "value"),
    [
        (AllocatedMasks(2, 8), "coverage", 2.0),
        (AllocatedMasks(2, 8), "decay", 1.0),
        (AllocatedMasks(2, 8), "pool", torch.nan),
        (AllocatedMasks(2, 8), "gather_distributed", "no"),
        (SigmoidMasks(2, 8), "std", -1.0),
    ],
)
def test_attributes_that_are_set_later_are_checked(masks, name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name}: got"):
        setattr(masks, name, value)
