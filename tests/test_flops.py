"""What torch counts for fused operators is what it counts for the plain formulas."""

import pytest
from cases import NAMES, make_case, scalar_weighted
from torch.utils.flop_counter import FlopCounterMode

from mast_ops import ops


@pytest.mark.parametrize("name", NAMES)
def test_a_fused_operator_counts_as_its_formula(name):
    """Forwards and backwards together: some make their gradients on the way."""
    ops.count_flops()
    case, counts = make_case(name, 7, 5, 3), []
    for run in (case.plain, case.fused):
        leaves = case.leaves()
        with FlopCounterMode(display=False) as counter:
            scalar_weighted(run(*leaves)).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
