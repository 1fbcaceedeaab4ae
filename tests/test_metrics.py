"""Metrics are plain floats, and the right ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mast_ops import MaskedSubspaceHead, SubspaceOutput, analysis, subspace_metrics
from mast_ops.metrics import effective_rank

NAMES = ["crop", "color", "blur"]


@pytest.mark.parametrize("uncertainty", [None, "sample", "subspace", "dimension"])
def test_a_head_gives_floats_under_every_name(uncertainty):
    head = MaskedSubspaceHead(nn.Linear(4, 8), NAMES, uncertainty=uncertainty)
    values = subspace_metrics(head(torch.randn(16, 4)), head.subspaces, kind=torch.arange(16) % 3)
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    kinds = {"density", "mass", "effective_rank", *(["log_variance"] if uncertainty else [])}
    wanted = {f"{kind}/{name}" for kind in kinds for name in NAMES}
    assert set(values) == wanted | {"overlap/crop-color", "overlap/crop-blur", "overlap/color-blur"}


def test_values_are_those_of_analysis():
    masks, z = torch.rand(3, 8), torch.randn(16, 8)
    values = subspace_metrics(SubspaceOutput(z, masks), NAMES)
    assert values["density/color"] == pytest.approx(analysis.mask_density(masks)[1].item())
    assert values["overlap/crop-blur"] == pytest.approx(analysis.mask_overlap(analysis.closedness(masks))[0, 2].item())
    assert values["mass/blur"] == pytest.approx(masks[2].mean().item())


@pytest.mark.parametrize("shape", [(16, 5), (5, 16)])
def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values(shape):
    z = torch.randn(shape, dtype=torch.float64)
    share = torch.linalg.svdvals(z - z.mean(0))
    share = share / share.sum()
    share = share[share > 1e-12]
    torch.testing.assert_close(effective_rank(z), (-(share * share.log()).sum()).exp(), rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(rank=st.integers(1, 6), seed=st.integers(0, 1000))
def test_effective_rank_is_at_most_the_rank_and_has_no_unit(rank, seed):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(20, rank, generator=g, dtype=torch.float64) @ torch.randn(rank, 9, generator=g, dtype=torch.float64)
    value = effective_rank(z)
    assert 1 - 1e-6 <= value <= rank + 1e-4
    torch.testing.assert_close(effective_rank(1000 * z), value, rtol=1e-4, atol=1e-4)


def test_samples_that_are_all_alike_fill_no_dimension():
    assert effective_rank(torch.ones(4, 3)) == 0
    assert effective_rank(torch.ones(1, 3)) == 0


def test_a_variance_per_sample_is_told_apart_by_the_kind_of_pair():
    per_sample = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    out = SubspaceOutput(torch.randn(4, 8), torch.rand(3, 8), per_sample, granularity="sample")
    assert subspace_metrics(out)["log_variance"] == pytest.approx(3.0)
    values = subspace_metrics(out, kind=torch.tensor([0, 0, 2, 2]))
    assert values["log_variance/0"] == pytest.approx(1.5)
    assert values["log_variance/2"] == pytest.approx(4.5)
    assert math.isnan(values["log_variance/1"])  # no sample of it


def test_kinds_of_pairs_are_named_by_what_differs():
    kinds = torch.tensor([[True, False, False], [True, False, True], [True, True, True]])
    per_sample = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    out = SubspaceOutput(torch.randn(4, 8), torch.rand(3, 8), per_sample, kinds, "sample")
    values = subspace_metrics(out, NAMES, kind=torch.tensor([0, 1, 2, 2]))
    found = {name: value for name, value in values.items() if name.startswith("log_variance")}
    assert found == {"log_variance/crop": 1.0, "log_variance/crop+blur": 2.0, "log_variance/all": 4.5}


def test_a_variance_per_dimension_is_weighed_by_the_mask():
    masks = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    out = SubspaceOutput(torch.randn(2, 2), masks, torch.tensor([[1.0, 5.0], [3.0, 5.0]]), granularity="dimension")
    values = subspace_metrics(out)
    assert [values[f"log_variance/{k}"] for k in range(3)] == pytest.approx([2.0, 5.0, 3.5])


def test_a_variance_is_what_its_granularity_says_whatever_its_width():
    masks = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # K = D
    z, log_variance = torch.randn(2, 2), torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    for granularity, wanted in (("subspace", [2.0, 5.0]), ("dimension", [2.0, 3.5])):
        values = subspace_metrics(SubspaceOutput(z, masks, log_variance, granularity=granularity))
        assert [values[f"log_variance/{k}"] for k in range(2)] == pytest.approx(wanted)


def test_nan_stays_visible():
    z = torch.randn(6, 8)
    z[2, 3] = torch.nan
    values = subspace_metrics(SubspaceOutput(z, torch.ones(2, 8)))
    assert all(math.isnan(values[f"effective_rank/{k}"]) for k in range(2))


Z, M, PER_SAMPLE = torch.randn(4, 8), torch.rand(3, 8), torch.zeros(4, 1)
KINDS = torch.eye(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("out", "options", "error", "words"),
    [
        (SubspaceOutput(Z, M), {"subspaces": ["a", "b"]}, ValueError, "subspaces: got 2 names, wanted 3"),
        (SubspaceOutput(Z, M), {"subspaces": ["a", "b", "b"]}, ValueError, "subspaces: .* more than once"),
        (Z, {}, TypeError, "out: got Tensor, wanted the SubspaceOutput"),
        (SubspaceOutput(Z, M, PER_SAMPLE), {}, ValueError, "out.granularity: got None"),
        (SubspaceOutput(Z, M, PER_SAMPLE, None, "pixel"), {}, ValueError, "out.granularity: got 'pixel'"),
        (SubspaceOutput(Z, M, PER_SAMPLE, None, "subspace"), {}, ValueError, r"out.log_variance: .* \(4, 1\), wanted"),
        (SubspaceOutput(Z, M, None, KINDS.long()), {}, TypeError, "out.kinds: got dtype torch.int64"),
        (SubspaceOutput(Z, M, None, KINDS[:, :2]), {}, ValueError, r"out.kinds: got shape \(3, 2\)"),
        (SubspaceOutput(Z, M), {"kind": torch.tensor([0, 1, 2, 3])}, ValueError, "kind: got indices from 0 to 3"),
        (SubspaceOutput(Z, M), {"kind": torch.tensor([0, 1])}, ValueError, r"kind: got shape \(2,\)"),
    ],
)
def test_bad_arguments_are_named(out, options, error, words):
    with pytest.raises(error, match=words):
        subspace_metrics(out, **options)
