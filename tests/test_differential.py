"""A few of the random calls of ``python -m tests.differential``, which goes on for as long as it is told."""

import pytest
import torch
from differential import OPERATIONS, compare, draw_setting, evaluate, findings


@pytest.mark.parametrize("block", range(2))
def test_random_calls_equal_plain_formulas(block):
    wrong = [found for number in range(25 * block, 25 * (block + 1)) for found in [findings(number)] if found[0]]
    assert wrong == []


def test_a_wrong_digit_is_found():
    """The test above can fail, by a value, by a gradient, and by a number that hides."""
    setting = draw_setting(0, 0)
    setting.text["name"] = "masked_distance"
    call, formula = OPERATIONS["masked_distance"](setting)
    exact = {name: x.double() for name, x in setting.leaves.items()}
    wanted = evaluate(formula, exact, 0)
    right = evaluate(call, setting.leaves, 0)
    assert list(compare(setting, right, wanted, [wanted])) == []
    eps = torch.finfo(setting.leaves["z0"].dtype).eps
    for x in (right.values[0], right.gradients["z0"], right.gradients["masks"]):
        kept = x.clone()
        for spoilt in (kept * (1 + 300 * eps) + 300 * eps, torch.full_like(kept, torch.nan)):
            x.copy_(spoilt)
            assert len(list(compare(setting, right, wanted, [wanted]))) == 1
        x.copy_(kept)
