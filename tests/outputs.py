"""What a head gives, compared whole."""

import torch

from mast_ops import SubspaceOutput


def assert_same(got: SubspaceOutput, wanted: SubspaceOutput, **tolerance: float) -> None:
    """Every tensor, and the granularity; to the bit unless a tolerance is given."""
    assert isinstance(got, SubspaceOutput)
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    assert got.granularity == wanted.granularity
    torch.testing.assert_close(got[:4], wanted[:4], **tolerance)
