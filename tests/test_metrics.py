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
    values = subspace_metrics(head(torch.randn(16, 4)), head.subspaces, torch.arange(16) % 3)
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    kinds = {"density", "mass", "effective_rank", *(["log_variance"] if uncertainty else [])}
    wanted = {f"{kind}/{name}" for kind in kinds for name in NAMES}
    assert set(values) == wanted | {"overlap/crop-color", "overlap/crop-blur", "overlap/color-blur"}


def test_values_are_those_of_analysis():
    masks, z = torch.rand(3, 8), torch.randn(16, 8)
    values = subspace_metrics(SubspaceOutput(z, masks), NAMES)
    assert values["density/color"] == pytest.approx(analysis.mask_density(masks)[1].item())
    assert values["overlap/crop-blur"] == pytest.approx(analysis.mask_overlap(masks)[0, 2].item())
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


def test_a_variance_per_sample_is_told_apart_by_subspace():
    out = SubspaceOutput(torch.randn(4, 8), torch.rand(3, 8), torch.tensor([[1.0], [2.0], [3.0], [6.0]]))
    assert subspace_metrics(out)["log_variance"] == pytest.approx(3.0)
    values = subspace_metrics(out, subspace=torch.tensor([0, 0, 2, 2]))
    assert values["log_variance/0"] == pytest.approx(1.5)
    assert values["log_variance/2"] == pytest.approx(4.5)
    assert math.isnan(values["log_variance/1"])  # no sample of it


def test_a_variance_per_dimension_is_weighed_by_the_mask():
    masks = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    out = SubspaceOutput(torch.randn(2, 2), masks, torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    values = subspace_metrics(out)
    assert [values[f"log_variance/{k}"] for k in range(3)] == pytest.approx([2.0, 5.0, 3.5])


def test_nan_stays_visible():
    z = torch.randn(6, 8)
    z[2, 3] = torch.nan
    values = subspace_metrics(SubspaceOutput(z, torch.ones(2, 8)))
    assert all(math.isnan(values[f"effective_rank/{k}"]) for k in range(2))


def test_wrong_names_are_refused():
    out = SubspaceOutput(torch.randn(4, 8), torch.rand(3, 8))
    with pytest.raises(ValueError, match="subspaces: got 2 names, wanted 3"):
        subspace_metrics(out, ["a", "b"])
    with pytest.raises(ValueError, match="more than once"):
        subspace_metrics(out, ["a", "b", "b"])
