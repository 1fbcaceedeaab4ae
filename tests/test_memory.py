"""Bytes, at the peak and kept for the backward pass: no K x N x N, no K x N x D, N x N only within the workspace."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mast_ops.functional as MF
from benchmarks.case import Inputs
from benchmarks.memory import measure
from mast_ops.kernels.chunked import products, scores

FLOAT = 4
MB = 1 << 20
BLOCK = products.BLOCK["cpu"] * FLOAT
WORKSPACE = scores._CACHED * FLOAT


def bytes_of(loss: Callable[..., Tensor], n: int, d: int, k: int) -> dict[str, int]:
    z0, z1, masks = (torch.randn(shape).requires_grad_() for shape in ((n, d), (n, d), (k, d)))
    loss(z0, z1, masks).backward()  # what is made once is not counted
    return measure(loss, Inputs((z0, z1, masks), ()))


def info_nce(reduction: str, kind: Tensor | None = None) -> Callable[..., Tensor]:
    symmetric = kind is None
    return lambda z0, z1, masks: MF.subspace_info_nce(
        z0, z1, masks, temperature=0.2, kind=kind, reduction=reduction, symmetric=symmetric
    ).mean()


def nt_xent(reduction: str, kind: Tensor | None = None) -> Callable[..., Tensor]:
    return lambda z0, z1, masks: MF.subspace_nt_xent(
        z0, z1, masks, temperature=0.2, kind=kind, reduction=reduction
    ).mean()


N, D, K = 3000, 16, 4


@pytest.mark.parametrize("of_one_kind", [False, True])
@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_all_pairs_keep_blocks_alone(loss, of_one_kind):
    """With "none" nothing of size N x N exists: two blocks of scores, and a few arrays of the inputs' size."""
    kind = torch.arange(N) % K if of_one_kind else None
    got = bytes_of(loss("none", kind), N, D, K)
    few = 40 * N * (D + K) * FLOAT
    assert got["peak"] <= 2 * BLOCK + few < N * N * FLOAT
    assert got["saved"] <= 8 * N * max(K, D) * FLOAT + 4096


@pytest.mark.parametrize("anchors", [3000, 6000])
@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_the_mean_keeps_scores_of_one_subspace_while_they_are_few(loss, anchors):
    """At most the workspace, which 3000 x 3000 scores fit and 6000 x 6000 do not, for any N and K; for the backward
    pass gradients of the inputs' size alone. Both views of NT-Xent are anchors."""
    assert 3000**2 * FLOAT < WORKSPACE < 6000**2 * FLOAT
    n = anchors // 2 if loss is nt_xent else anchors
    got = bytes_of(loss("mean"), n, D, K)
    few = 40 * n * (D + K) * FLOAT
    assert got["peak"] <= WORKSPACE + 2 * BLOCK + few < K * anchors**2 * FLOAT
    assert got["saved"] <= (4 * n * D + 2 * K * D) * FLOAT + 4096


LABELS = torch.arange(1000) % 2
LABELLED = {
    "sup_con": lambda z0, z1, masks, **how: MF.subspace_sup_con(z0 + z1, LABELS, masks, temperature=0.2, **how),
    "info_nce": lambda z0, z1, masks, **how: MF.subspace_info_nce(
        z0, z1, masks, temperature=0.2, symmetric=True, sample0=LABELS, sample1=LABELS, **how
    ),
    "sigmoid": lambda z0, z1, masks, **how: MF.subspace_sigmoid(
        z0, z1, masks, scale=5.0, bias=-3.0, sample0=LABELS, sample1=LABELS, **how
    ),
}


@pytest.mark.parametrize("loss", LABELLED)
def test_labels_list_no_pairs(loss, monkeypatch):
    """With two classes half of all pairs are positives: a list of them would be larger than the scores."""
    n, d, block = 1000, 8, 1 << 16
    monkeypatch.setitem(products.BLOCK, "cpu", block)
    got = bytes_of(lambda *x: LABELLED[loss](*x, reduction="none").mean(), n, d, 1)
    assert got["peak"] <= (5 * block + 40 * n * d) * FLOAT < n * n * FLOAT
    assert got["saved"] <= 20 * n * d * FLOAT
    got = bytes_of(LABELLED[loss], n, d, 1)  # the mean keeps its scores
    assert got["peak"] <= (n * n + 5 * block + 40 * n * d) * FLOAT


def test_a_mask_of_its_own_for_every_sample(monkeypatch):
    """Several blocks, and a few arrays of the inputs' size, however many masks there are."""
    n, d, block = 1000, 8, 1 << 16
    monkeypatch.setitem(products.BLOCK, "cpu", block)
    got = bytes_of(info_nce("none", torch.arange(n)), n, d, n)
    assert got["peak"] <= (5 * block + 40 * n * d) * FLOAT < n * n * FLOAT


def test_all_pairs_do_not_grow_with_subspaces():
    few, many = (bytes_of(info_nce("mean"), 1000, 32, k)["peak"] for k in (2, 16))
    assert many <= few + 16 * 32 * FLOAT * 4 + 1000 * 16 * FLOAT * 8


PAIRS = {
    "distance": lambda z0, z1, masks: (MF.masked_distance(z0, z1, masks) * 1.5).mean(),
    "mean distance": lambda z0, z1, masks: MF.masked_distance(z0, z1, masks, reduction="mean"),
    "cosine": lambda z0, z1, masks: MF.masked_cosine_similarity(z0, z1, masks).mean(),
    "of one kind": lambda z0, z1, masks: MF.masked_distance(
        z0, z1, masks, kind=torch.arange(len(z0)) % len(masks), reduction="mean"
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_save_their_inputs_alone(name):
    n, d, k = 512, 2048, 15
    got = bytes_of(PAIRS[name], n, d, k)
    assert got["saved"] <= (2 * k * d + 8 * n * k) * FLOAT + 8 * n + 4096
    assert got["peak"] <= 6 * n * d * FLOAT < k * n * d * FLOAT


@pytest.mark.parametrize("weighted", [False, True])
def test_sensitivity_holds_nothing_of_all_subspaces(weighted):
    """Rows of sums, and where pairs are weighed the weighed views."""
    n, d, k = 512, 2048, 15
    options = {"kind": torch.arange(n) % k, "weight": torch.rand(n) if weighted else None}
    got = bytes_of(lambda z0, z1, masks: MF.subspace_sensitivity(z0, z1, masks, **options).sum(), n, d, k)
    views = 2 * n * d * FLOAT if weighted else 0
    few = 16 * k * d * FLOAT
    assert got["saved"] <= views + few
    assert got["peak"] <= 2 * views + 6 * n * d * FLOAT + few < k * n * d * FLOAT


def test_covariance_is_never_whole():
    d = 4096
    got = bytes_of(lambda z0, z1, masks: sum(x.sum() for x in MF.subspace_moments(z0, masks)), 64, d, 8)
    assert got["peak"] <= 4 * BLOCK + 40 * (64 + 8) * d * FLOAT < d * d * FLOAT
    assert got["saved"] <= (4 * 64 + 8 * 8) * d * FLOAT + 4096


def test_the_meter_sees_what_a_loop_holds():
    """A guard of the guard: written by hand, the same losses hold K matrices of N x N."""

    def loop(z0, z1, masks):
        return sum(torch.logsumexp((z0 * mask) @ (z1 * mask).T, 1).mean() for mask in masks)

    got = bytes_of(loop, 1000, 16, 4)
    assert got["saved"] >= 4 * 1000 * 1000 * FLOAT
    assert got["peak"] >= 4 * 1000 * 1000 * FLOAT
