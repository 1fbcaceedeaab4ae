"""Binary masks: exact zeros and ones of fixed coverage, and a gradient all the same."""

import copy
import io

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from mast_ops import BinaryMasks, MaskedSubspaceHead
from mast_ops.checkpoints import load_heads


def wanted_open(coverage: float, dim: int) -> int:
    return max(1, min(round(coverage * dim), dim - 1))


def weighing(weight: object, **options: float) -> BinaryMasks:
    """Masks with this weight, in float64."""
    weight = torch.as_tensor(weight, dtype=torch.float64)
    masks = BinaryMasks(*weight.shape, **options)
    masks.weight = nn.Parameter(weight)
    return masks


@given(
    coverage=st.floats(0.01, 0.99), std=st.floats(1e-3, 1e3), dim=st.integers(1, 300), k=st.integers(1, 5),
    seed=st.integers(0, 999), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_entries_are_zero_or_one_and_as_many_open_as_it_says(coverage, std, dim, k, seed, dtype):
    torch.manual_seed(seed)
    module = BinaryMasks(k, dim, coverage=coverage, std=std).to(dtype)
    assert module.num_open == wanted_open(coverage, dim)
    for _ in range(2):
        masks = module()
        assert masks.dtype == dtype
        assert masks.eq(0).logical_or(masks.eq(1)).all()
        assert masks.sum(1).eq(module.num_open).all()
        with torch.no_grad():  # wherever training takes the weights
            module.weight.copy_(torch.randn_like(module.weight) * std)


@given(dim=st.integers(1, 60), coverage=st.floats(0.05, 0.95), values=st.integers(1, 3), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_the_largest_weights_are_open_and_ties_are_broken(dim, coverage, values, seed):
    g = torch.Generator().manual_seed(seed)
    module = weighing(torch.randint(values, (3, dim), generator=g), coverage=coverage)
    masks = module()
    assert masks.sum(1).eq(wanted_open(coverage, dim)).all()
    for mask, weight in zip(masks, module.weight, strict=True):
        closed = weight[mask == 0]
        assert closed.numel() == 0 or weight[mask == 1].min() >= closed.max()
    masks.sum().backward()
    assert module.weight.grad.isfinite().all()


@pytest.mark.parametrize("dim", [2, 4, 10])
def test_one_dimension_is_closed_however_few_there_are(dim):
    """Rounding left nothing to close, so that masks had no effect, up to D = 10 at the default."""
    masks = BinaryMasks(2, dim)()
    assert masks.sum(1).tolist() == [dim - 1] * 2
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("coverage", [0.01, 0.5, 0.99])
def test_one_dimension_stays_open(coverage):
    module = BinaryMasks(3, 1, coverage=coverage)
    assert module().eq(1).all()
    module().sum().backward()
    assert module.weight.grad.isfinite().all()


@example(dim=2, k=1, closed=1, seed=230)  # where noise brings the two close
@given(dim=st.integers(2, 3000), k=st.integers(1, 8), closed=st.integers(1, 300), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_rows_start_with_closed_entries_of_their_own_where_there_is_room(dim, k, closed, seed):
    """With thousands of entries the tails of what starts open and of what starts closed reach across one another."""
    closed = max(1, min(closed, dim // k, dim - 1))
    torch.manual_seed(seed)
    module = BinaryMasks(k, dim, coverage=1 - closed / dim)
    times_closed = (1 - module()).sum(0)
    assert times_closed.sum() == k * closed
    if k * closed <= dim:
        assert times_closed.max() == 1
    margin = 1 if dim >= 50 else 0  # few are as noise has them
    assert module.weight[module() == 0].mean() < module.weight[module() == 1].mean() - margin


def test_the_gradient_is_that_of_the_sigmoid_around_the_edge():
    weight = torch.randn(3, 9, dtype=torch.float64)
    upstream = torch.randn(3, 9, dtype=torch.float64)
    for coverage, temperature in ((0.4, 1.0), (0.7, 0.3), (0.99, 2.0)):
        module = weighing(weight, coverage=coverage, temperature=temperature)
        (got,) = torch.autograd.grad((module() * upstream).sum(), module.weight)
        for k in range(3):
            falling = sorted(weight[k].tolist(), reverse=True)
            around = falling[module.num_open - 1 : module.num_open + 1]  # one alone where nothing is closed
            s = 1 / (1 + torch.exp(-(weight[k] - sum(around) / len(around)) / temperature))
            torch.testing.assert_close(got[k], upstream[k] * s * (1 - s) / temperature)


def test_entries_change_sides_under_training():
    module = BinaryMasks(2, 12, coverage=0.5)
    wanted = 1 - module().detach()  # the very opposite of how they start
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (module() - wanted).square().sum().backward()
        optimizer.step()
    assert torch.equal(module(), wanted)


@pytest.mark.parametrize("place", [0, 5, 11])
def test_nan_in_a_weight_is_seen_in_the_masks(place):
    for coverage in (0.1, 0.5, 0.9):
        module = BinaryMasks(2, 12, coverage=coverage)
        with torch.no_grad():
            module.weight[1, place] = torch.nan
        masks = module()
        assert masks[1, place].isnan()
        assert masks[0].isfinite().all()


def test_it_compiles_whole():
    module = BinaryMasks(3, 24, coverage=0.6)
    got = torch.compile(module, fullgraph=True)()
    wanted = module()
    assert torch.equal(got, wanted)
    upstream = torch.randn(3, 24)
    gradients = [torch.autograd.grad(x, module.weight, upstream)[0] for x in (got, wanted)]
    torch.testing.assert_close(*gradients)


def test_it_is_a_function_of_its_weight_alone():
    module = BinaryMasks(2, 10, coverage=0.5)
    other = BinaryMasks(2, 10, coverage=0.5)
    assert torch.equal(functional_call(module, {"weight": other.weight}, ()), other())
    assert torch.equal(module.eval()(), module.train()())
    shift = {"weight": module.weight + 3.0}
    assert torch.equal(functional_call(module, shift, ()), module())


def test_selected_rows_keep_their_masks_and_new_ones_start_with_closed_entries():
    module = BinaryMasks(3, 400, coverage=0.75)
    chosen = module.select([2, None, 0])
    assert torch.equal(chosen()[[0, 2]], module()[[2, 0]])
    new, mask = chosen.weight[1], chosen()[1]
    assert mask.sum() == 300
    assert new[mask == 0].mean() < new[mask == 1].mean() - 4  # as in a module of its own, not just its lowest quarter
    assert chosen.settings() == module.settings() == {"coverage": 0.75, "temperature": 1.0}


def head(**options: float) -> MaskedSubspaceHead:
    return MaskedSubspaceHead(nn.Linear(4, 20), ["crop", "color"], masks=BinaryMasks(2, 20, **options))


def test_it_goes_through_a_state_dict_a_copy_and_a_checkpoint(tmp_path):
    one = head(coverage=0.4, temperature=0.5)
    twin = head(coverage=0.4, temperature=0.5)
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (twin, copy.deepcopy(one)):
        assert torch.equal(other.masks(), one.masks())
    torch.save(one.state_dict(), tmp_path / "model.pt")
    (found,) = load_heads(tmp_path / "model.pt").values()
    assert found.parameterization == "binary"
    assert found.is_known
    assert found.settings == {"coverage": 0.4, "temperature": 0.5}
    assert torch.equal(found.masks, one.masks())
    with pytest.raises(ValueError, match=r"got masks of .*0\.4.*, wanted .*0\.6.*; nothing was loaded"):
        head(coverage=0.6, temperature=0.5).load_state_dict(one.state_dict())


def test_half_precision_and_meta_devices():
    module = BinaryMasks(2, 10, coverage=0.5)
    assert module.half().weight.dtype == torch.float32
    empty = copy.deepcopy(module).to("meta")
    assert empty().shape == (2, 10)
    empty.to_empty(device="cpu").reset_parameters()  # as FSDP starts a model
    assert empty().sum(1).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coverage": 0.0}, "coverage: got 0.0, wanted a number strictly between 0 and 1"),
        ({"coverage": 1.0}, "coverage: got 1.0"),
        ({"coverage": float("nan")}, "coverage: got nan"),
        ({"temperature": 0.0}, "temperature: got 0.0"),
        ({"std": -1.0}, "std: got -1.0"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        BinaryMasks(2, 4, **options)
