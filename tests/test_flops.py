"""What torch counts for fused operators is what it counts for the plain formulas."""

import subprocess
import sys

import pytest
from cases import NAMES, make_case, scalar_weighted
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize("name", NAMES)
def test_a_fused_operator_counts_as_its_formula(name):
    """Forwards and backwards together: some make their gradients on the way."""
    case, counts = make_case(name, 7, 5, 3), []
    for run in (case.plain, case.fused):
        leaves = case.leaves()
        with FlopCounterMode(display=False) as counter:
            scalar_weighted(run(*leaves)).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("first", ["mast_ops", "torch.utils.flop_counter"])
def test_it_counts_whatever_was_imported_first(first):
    code = f"""
import {first}, torch, mast_ops
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    mast_ops.SubspaceNTXentLoss(backend="chunked")(*torch.randn(2, 4, 8), masks=torch.ones(3, 8))
assert counter.get_total_flops() == 2 * 8 * 8 * 8 * 3, counter.get_total_flops()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
