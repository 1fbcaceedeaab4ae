"""Analysis: the invariants that define each measure, the exact small cases, and what is refused."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mast_ops.analysis import (
    closedness,
    closing_sets,
    mask_density,
    mask_overlap,
    open_dimensions,
    relations,
    spearman,
    uncertainty_by_group,
    uncertainty_by_strength,
)

NAN, INF = math.nan, math.inf
few = settings(max_examples=50, deadline=None)
# Zeros, signs and ties on purpose; sixteenths, so that sums and comparisons are exact.
values = st.sampled_from([0.0, 0.0, -0.5, 0.0625, 0.25, 0.5, 0.5, 1.0, 2.0, 16.0])
thresholds = st.sampled_from([0.0, 0.1, 0.5, 1.0])


@st.composite
def mask_tensors(draw):
    k, d = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    return torch.tensor(draw(st.lists(values, min_size=k * d, max_size=k * d))).reshape(k, d)


@st.composite
def pairs_with_ties(draw):
    n = draw(st.integers(2, 30))
    column = st.lists(st.integers(-4, 4).map(float), min_size=n, max_size=n)
    return torch.tensor(draw(column)), torch.tensor(draw(column))


def permutation(n, seed):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


# Open dimensions and density


def test_open_is_relative_to_the_row_and_inclusive():
    masks = torch.tensor([[4.0, 2.0, 1.9, 0.0], [0.01, -0.02, 0.0, 0.0]])
    assert open_dimensions(masks).tolist() == [[True, True, False, False], [True, True, False, False]]
    assert open_dimensions(masks, threshold=0.0).tolist() == [[True, True, True, False], [True, True, False, False]]
    assert open_dimensions(masks, threshold=1.0).tolist() == [[True, False, False, False], [False, True, False, False]]


@few
@given(mask_tensors(), thresholds)
def test_density_is_the_fraction_of_open_dimensions(masks, threshold):
    expected = [
        sum(abs(v) >= threshold * max(map(abs, row)) and v != 0 for v in row) / len(row) for row in masks.tolist()
    ]
    assert mask_density(masks, threshold=threshold).tolist() == pytest.approx(expected)
    assert open_dimensions(masks, threshold=threshold).double().mean(dim=1).tolist() == pytest.approx(expected)


@few
@given(mask_tensors(), st.integers(0, 9), st.sampled_from([0.125, -1.0, 1024.0]))
def test_density_ignores_scale_and_order(masks, seed, scale):
    density = mask_density(masks)
    assert torch.equal(mask_density(masks * scale), density)
    assert torch.equal(mask_density(masks[:, permutation(masks.shape[1], seed)]), density)
    rows = permutation(len(masks), seed)
    assert torch.equal(mask_density(masks[rows]), density[rows])


def test_density_of_zero_and_of_non_finite_rows():
    masks = torch.tensor([[0.0, 0.0], [NAN, 1.0], [INF, 1.0], [-INF, 0.0], [1.0, 0.0]])
    density = mask_density(masks)
    assert density[0] == 0
    assert density[1:4].isnan().all()
    assert density[4] == 0.5


def test_smallest_positive_row_is_open_and_not_zero():
    masks = torch.tensor([[1e-45, 0.0]])
    assert open_dimensions(masks).tolist() == [[True, False]]


# Overlap


@few
@given(mask_tensors(), st.integers(0, 9))
def test_overlap_is_a_symmetric_cosine(masks, seed):
    masks = masks.double()
    overlap = mask_overlap(masks)
    assert torch.equal(overlap, overlap.T)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    assert torch.equal(overlap.diagonal() == 1, masks.abs().sum(dim=1) > 0)
    a, b = masks.abs()[:, None], masks.abs()[None]
    torch.testing.assert_close(overlap, torch.nn.functional.cosine_similarity(a, b, dim=2), atol=1e-6, rtol=0)
    columns, rows = permutation(masks.shape[1], seed), permutation(len(masks), seed)
    torch.testing.assert_close(mask_overlap(masks[:, columns]), overlap, atol=1e-6, rtol=0)
    torch.testing.assert_close(mask_overlap(masks[rows]), overlap[rows][:, rows], atol=1e-6, rtol=0)


@few
@given(mask_tensors(), st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6))
def test_overlap_ignores_the_scale_of_each_row(masks, scales):
    scaled = masks * torch.tensor(scales[: len(masks)])[:, None]
    torch.testing.assert_close(mask_overlap(scaled), mask_overlap(masks), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7, 3.0])
def test_overlap_of_proportional_rows_is_one_and_no_more(scale):
    rows = torch.rand(16, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    overlap = mask_overlap(torch.cat([rows, rows * scale]))
    assert overlap.max() == 1
    assert torch.equal(overlap.diagonal(), torch.ones(32, dtype=torch.float64))
    assert torch.equal(overlap, overlap.T)
    torch.testing.assert_close(overlap[:16, 16:].diagonal(), torch.ones(16, dtype=torch.float64))


def test_overlap_extremes():
    masks = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0], [5.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(mask_overlap(masks), torch.tensor(expected))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_overlap_survives_values_whose_squares_do_not(scale):
    masks = torch.tensor([[3.0, 4.0], [4.0, 3.0]], dtype=torch.float64) * scale
    torch.testing.assert_close(mask_overlap(masks)[0, 1], torch.tensor(0.96, dtype=torch.float64))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_overlap_of_a_non_finite_row_is_nan_for_that_row_alone(bad):
    overlap = mask_overlap(torch.tensor([[1.0, 1.0], [bad, 1.0], [0.0, 0.0]]))
    assert overlap[1].isnan().all()
    assert overlap[:, 1].isnan().all()
    assert overlap[0, 0] == 1
    assert overlap[0, 2] == overlap[2, 2] == 0


def test_overlap_keeps_its_precision_under_autocast():
    masks = torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mask_overlap(masks)
    assert torch.equal(inside, mask_overlap(masks))


# What masks close


@few
@given(mask_tensors(), thresholds, st.integers(0, 9))
def test_closing_sets_count_every_dimension_once(masks, threshold, seed):
    closed = ~open_dimensions(masks, threshold=threshold)
    sets, dimensions = closing_sets(masks, threshold=threshold)
    assert dict(zip(map(tuple, sets.tolist()), dimensions.tolist(), strict=True)) == Counter(
        map(tuple, closed.T.tolist())
    )
    order = list(zip(sets.sum(dim=1).tolist(), (-dimensions).tolist(), strict=True))
    assert order == sorted(order)
    moved = closing_sets(masks[:, permutation(masks.shape[1], seed)], threshold=threshold)
    assert all(map(torch.equal, moved, (sets, dimensions)))


def test_closing_sets_of_ones_and_of_zeros():
    ones, zeros = closing_sets(torch.ones(2, 3)), closing_sets(torch.zeros(2, 3))
    assert (ones.sets.tolist(), ones.dimensions.tolist()) == ([[False, False]], [3])
    assert (zeros.sets.tolist(), zeros.dimensions.tolist()) == ([[True, True]], [3])


def test_closedness_is_relative_to_the_row_and_ignores_signs():
    masks = torch.tensor([[2.0, -4.0, 0.0], [1e-30, 0.0, 1e-30], [0.0, 0.0, 0.0], [INF, 1.0, 0.0]])
    expected = torch.tensor([[0.5, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [NAN, NAN, NAN]])
    torch.testing.assert_close(closedness(masks), expected, equal_nan=True)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("measure", [open_dimensions, closing_sets])
def test_results_that_cannot_hold_nan_refuse_it(measure, bad):
    with pytest.raises(ValueError, match="masks: got NaN or infinity"):
        measure(torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize("measure", [closedness, mask_density, mask_overlap, closing_sets, open_dimensions])
@pytest.mark.parametrize(
    ("masks", "error", "says"),
    [
        ([[1.0]], TypeError, "masks: got list"),
        (torch.ones(3), ValueError, r"masks: got shape \(3,\)"),
        (torch.ones(2, 3, dtype=torch.long), TypeError, "masks: got dtype torch.int64"),
        (torch.ones(0, 3), ValueError, "masks: got an empty tensor"),
    ],
)
def test_bad_masks(measure, masks, error, says):
    with pytest.raises(error, match=says):
        measure(masks)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, NAN])
@pytest.mark.parametrize("measure", [mask_density, closing_sets, open_dimensions])
def test_bad_threshold(measure, threshold):
    with pytest.raises(ValueError, match="threshold: got"):
        measure(torch.ones(2, 3), threshold=threshold)


# Uncertainty


@few
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-8, 8)), min_size=1, max_size=40))
def test_group_means_and_counts(samples):
    group, values = (torch.tensor(column) for column in zip(*samples, strict=True))
    result = uncertainty_by_group(values.float(), group, 6)
    for g in range(6):
        members = [v for where, v in samples if where == g]
        assert result.samples[g] == len(members)
        expected = sum(members) / len(members) if members else NAN
        assert result.log_variance[g].item() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_log_variance_stays_in_its_group_and_bin(bad):
    log_variance = torch.tensor([1.0, bad, 3.0])
    by_group = uncertainty_by_group(log_variance, torch.tensor([0, 1, 0]), 2)
    assert by_group.log_variance[0] == 2
    assert not by_group.log_variance[1].isfinite()
    by_bin = uncertainty_by_strength(log_variance, torch.tensor([0.0, 1.0, 0.1]), bins=2)
    assert by_bin.log_variance[0] == 2
    assert not by_bin.log_variance[1].isfinite()
    assert by_bin.samples.tolist() == [2, 1]


@few
@given(pairs_with_ties(), st.integers(1, 7))
def test_bins_cover_every_sample_once(pair, bins):
    strength, log_variance = pair
    curve = uncertainty_by_strength(log_variance, strength, bins=bins)
    assert curve.samples.sum() == len(strength)
    assert torch.equal(curve.log_variance.isnan(), curve.samples == 0)
    total = (curve.log_variance.nan_to_num() * curve.samples).sum()
    torch.testing.assert_close(total, log_variance.sum(), atol=1e-4, rtol=0)
    half = (strength.max() - strength.min()) / bins / 2
    torch.testing.assert_close(curve.strength[0], strength.min() + half)
    torch.testing.assert_close(curve.strength[-1], strength.max() - half)


def test_bins_of_known_samples():
    strength = torch.tensor([0.0, 0.9, 1.0, 3.0, 4.0])
    curve = uncertainty_by_strength(torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]), strength, bins=4)
    assert curve.strength.tolist() == [0.5, 1.5, 2.5, 3.5]  # an inner edge belongs to the bin above it
    assert curve.log_variance.tolist() == pytest.approx([2.0, 5.0, NAN, 8.0], nan_ok=True)
    assert curve.samples.tolist() == [2, 1, 0, 2]


def test_equal_strengths_fall_into_the_first_bin():
    curve = uncertainty_by_strength(torch.tensor([1.0, 3.0]), torch.tensor([0.7, 0.7]), bins=3)
    assert curve.samples.tolist() == [2, 0, 0]
    assert curve.log_variance[0] == 2
    assert curve.strength.tolist() == pytest.approx([0.7, 0.7, 0.7])


@pytest.mark.parametrize("bad", [NAN, INF])
def test_non_finite_strength_has_no_bin(bad):
    with pytest.raises(ValueError, match="strength: got NaN or infinity"):
        uncertainty_by_strength(torch.zeros(2), torch.tensor([0.0, bad]))


@pytest.mark.parametrize(
    ("log_variance", "group", "num_groups", "error", "says"),
    [
        ([0.0], torch.tensor([0]), 1, TypeError, "log_variance: got list"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), 1, ValueError, r"log_variance: got shape \(2, 1\)"),
        (torch.zeros(2).long(), torch.tensor([0, 0]), 1, TypeError, "log_variance: got dtype torch.int64"),
        (torch.zeros(0), torch.zeros(0).long(), 1, ValueError, r"log_variance: got shape \(0,\)"),
        (torch.zeros(2), torch.tensor([0.0, 0.0]), 1, TypeError, "group: got dtype torch.float32, wanted a torch"),
        (torch.zeros(2), torch.tensor([0]), 1, ValueError, r"group: got shape \(1,\) .* wanted shape \(2,\)"),
        (torch.zeros(2), torch.tensor([0, 2]), 2, ValueError, "group: got indices from 0 to 2, wanted 0 to 1"),
        (torch.zeros(2), torch.tensor([0, -1]), 2, ValueError, "group: got indices from -1 to 0"),
        (torch.zeros(2), torch.tensor([0, 1]), 0, ValueError, "num_groups: got 0"),
        (torch.zeros(2), torch.tensor([0, 1]), 2.0, TypeError, "num_groups: got 2.0"),
    ],
)
def test_bad_groups(log_variance, group, num_groups, error, says):
    with pytest.raises(error, match=says):
        uncertainty_by_group(log_variance, group, num_groups)


@pytest.mark.parametrize(
    ("log_variance", "strength", "bins", "error", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(2), 8, ValueError, r"log_variance: got shape \(2, 3\)"),
        (torch.zeros(2), torch.zeros(3), 8, ValueError, r"strength: got shape \(3,\)"),
        (torch.zeros(2), torch.zeros(2).long(), 8, TypeError, "strength: got dtype torch.int64"),
        (torch.zeros(2), torch.zeros(2), 0, ValueError, "bins: got 0"),
        (torch.zeros(2), torch.zeros(2), True, TypeError, "bins: got True"),
    ],
)
def test_bad_strengths(log_variance, strength, bins, error, says):
    with pytest.raises(error, match=says):
        uncertainty_by_strength(log_variance, strength, bins=bins)


# Rank correlation


@few
@given(pairs_with_ties())
def test_spearman_is_scipys(pair):
    x, y = pair
    rho = spearman(x, y).item()
    if x.unique().numel() == 1 or y.unique().numel() == 1:
        assert math.isnan(rho)
    else:
        assert rho == pytest.approx(stats.spearmanr(x.numpy(), y.numpy()).statistic, abs=1e-6)


@few
@given(pairs_with_ties())
def test_spearman_sees_only_the_order(pair):
    x, y = pair
    rho = spearman(x, y)
    torch.testing.assert_close(spearman(x.exp(), y**3 - 7), rho, equal_nan=True)
    torch.testing.assert_close(spearman(-x, y), -rho, equal_nan=True)
    torch.testing.assert_close(spearman(y, x), rho, equal_nan=True)


@few
@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=20, unique=True))
def test_spearman_of_monotone_data_is_exactly_one(x):
    x = torch.tensor(x)
    rising = x.argsort().argsort().double()
    assert spearman(x, rising.float()) == 1
    assert spearman(x, -rising.float()) == -1


def test_spearman_undefined_or_not_finite_is_nan():
    x = torch.tensor([1.0, 2.0, 3.0])
    for y in ([5.0, 5.0, 5.0], [1.0, NAN, 3.0], [1.0, 2.0, INF], [-INF, 2.0, 3.0]):
        assert spearman(x, torch.tensor(y)).isnan()
        assert spearman(torch.tensor(y), x).isnan()
    assert spearman(x[:1], x[:1]).isnan()


@pytest.mark.filterwarnings("error")
def test_columns_are_taken_without_a_warning():
    columns = torch.tensor([[0.0, 5.0], [1.0, 6.0], [2.0, 9.0]])
    assert spearman(columns[:, 0], columns[:, 1]) == 1
    assert uncertainty_by_strength(columns[:, 1], columns[:, 0], bins=1).log_variance.item() == pytest.approx(20 / 3)


@pytest.mark.parametrize(
    ("x", "y", "error", "says"),
    [
        (torch.zeros(2), torch.zeros(3), ValueError, r"y: got shape \(3,\) on cpu, wanted shape \(2,\)"),
        (torch.zeros(2, 1), torch.zeros(2), ValueError, r"x: got shape \(2, 1\)"),
        (torch.zeros(2), torch.zeros(2).long(), TypeError, "y: got dtype torch.int64"),
        (torch.zeros(0), torch.zeros(0), ValueError, r"x: got shape \(0,\)"),
        (None, torch.zeros(2), TypeError, "x: got NoneType"),
    ],
)
def test_bad_spearman(x, y, error, says):
    with pytest.raises(error, match=says):
        spearman(x, y)


# All of them


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_results_are_wide_and_carry_no_gradient(dtype, wanted):
    masks = torch.tensor([[1.0, 0.0], [0.5, 1.0]], dtype=dtype, requires_grad=True)
    x = torch.tensor([0.0, 1.0, 2.0], dtype=dtype, requires_grad=True)
    results = [
        mask_density(masks),
        mask_overlap(masks),
        uncertainty_by_group(x, torch.tensor([0, 0, 1]), 2).log_variance,
        *uncertainty_by_strength(x, x, bins=2)[:2],
        spearman(x, x),
    ]
    for result in results:
        assert result.dtype == wanted
        assert not result.requires_grad
        assert result.isfinite().all()
    assert not closedness(masks).requires_grad


# Relations


def test_relations_are_cosines_of_profiles_less_their_mean():
    explained = torch.rand(5, 9, dtype=torch.float64)
    rows = explained.sqrt() / explained.sum(1, keepdim=True).sqrt()
    apart = rows - rows.mean(0)
    wanted = torch.nn.functional.cosine_similarity(apart[:, None], apart[None], dim=2)
    torch.testing.assert_close(relations(explained), wanted)
    torch.testing.assert_close(relations(explained * torch.tensor([[1.0], [1e-3], [5], [1], [1]])), wanted)


def test_what_explains_nothing_is_related_to_nothing_and_changes_no_other():
    explained = torch.rand(4, 9)
    more = torch.cat([explained, torch.zeros(1, 9)])
    assert relations(more)[4].eq(0).all()
    torch.testing.assert_close(relations(more)[:4, :4], relations(explained))
    assert relations(torch.rand(1, 3)).eq(0).all()
    assert relations(torch.tensor([[1.0, NAN], [1.0, 0.0]])).isnan().all()


def test_relations_refuse_what_is_no_share_of_variance():
    with pytest.raises(ValueError, match=r"explained: got -0\.5 among its entries, wanted numbers >= 0"):
        relations(torch.tensor([[0.5, -0.5]]))
    with pytest.raises(ValueError, match=r"explained: got shape \(3,\)"):
        relations(torch.rand(3))
