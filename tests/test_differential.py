"""A few of the random calls of ``python -m tests.differential``, which goes on for as long as it is told."""

import pytest
import torch
from differential import OPERATIONS, Setting, allowance, compare, draw_setting, evaluate, findings


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


@pytest.mark.parametrize("name", ["masked_cosine", "info_nce", "sup_con"])
def test_rounding_is_judged_by_what_a_mask_leaves(name):
    """The cosine of single numbers is exact in the formula, and its gradient zero; the library rounds both."""
    setting = next(s for number in range(1000) if narrow(s := draw_setting(number, 0)))
    setting.text["name"], eps, little = name, torch.finfo(torch.float32).eps, 1e-3
    for z in ("z0", "z1"):
        setting.leaves[z] = setting.leaves[z].sign() * (1 + setting.leaves[z].abs().clamp(max=1))
    setting.leaves["masks"] = torch.full_like(setting.leaves["masks"], little)
    call, formula = OPERATIONS[name](setting)
    exact = {key: x.double() for key, x in setting.leaves.items()}
    got, wanted = evaluate(call, setting.leaves, 0), evaluate(formula, exact, 0)
    beside = allowance(setting, formula, exact, wanted, 0)
    assert list(compare(setting, got, wanted, beside)) == []
    scale = 1 / setting.text.get("temperature", 1)
    for x, largest in ((got.values[0], 1), (got.gradients["z0"], 1), (got.gradients["masks"], 1 / little)):
        kept = x.clone()
        x += 3000 * eps * scale * largest
        assert len(list(compare(setting, got, wanted, beside))) == 1
        x.copy_(kept)


def narrow(setting: Setting) -> bool:
    """One dimension, in float32."""
    z0 = setting.leaves["z0"]
    return z0.shape[1] == 1 and len(z0) == 16 and z0.dtype == setting.leaves["z1"].dtype == torch.float32
