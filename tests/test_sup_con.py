"""Rows without a positive."""

import pytest
import torch

from mast_ops.functional import subspace_sup_con

SAMPLE = torch.tensor([3, 0, 0, 1, 3, 3, 2])
ALONE = torch.tensor([3, 6])


@pytest.mark.parametrize("backend", ["eager", "chunked", "triton"])
@pytest.mark.parametrize("kind", [None, torch.arange(7) % 2])
def test_rows_that_are_alone_are_negatives_of_the_others(backend, kind):
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(7, 5, generator=g).requires_grad_(), torch.rand(2, 5, generator=g).requires_grad_()]
    of = {"temperature": 0.3, "kind": kind, "backend": backend}
    rows = subspace_sup_con(leaves[0], SAMPLE, leaves[1], reduction="none", **of)
    assert rows[ALONE].isnan().all()
    assert subspace_sup_con(leaves[0], SAMPLE, leaves[1], **of).isnan()
    others = torch.ones(7, dtype=torch.bool).index_fill(0, ALONE, False)
    wanted = rows[others].mean()
    mean = subspace_sup_con(leaves[0], SAMPLE, leaves[1], skip_alone=True, **of)
    torch.testing.assert_close(mean, wanted)
    grads = torch.autograd.grad(mean, leaves)
    torch.testing.assert_close(grads, torch.autograd.grad(wanted, leaves))
    assert all(grad.isfinite().all() for grad in grads)
    each = subspace_sup_con(leaves[0], SAMPLE, leaves[1], reduction="none", skip_alone=True, **of)
    assert torch.equal(each[ALONE], torch.zeros_like(each[ALONE]))
    torch.testing.assert_close(each[others], rows[others])


def test_where_all_rows_are_alone_nothing_is_left_but_nan():
    z, masks = torch.randn(4, 3, requires_grad=True), torch.ones(2, 3)
    loss = subspace_sup_con(z, torch.arange(4), masks, temperature=0.1, skip_alone=True)
    assert loss == 0
    assert not torch.autograd.grad(loss, z)[0].any()
    spoilt = z.detach().clone()
    spoilt[0, 0] = torch.nan
    assert subspace_sup_con(spoilt, torch.arange(4), masks, temperature=0.1, skip_alone=True).isnan()
