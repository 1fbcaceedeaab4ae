"""Weights that change: their ends, their way, and what they do inside a sum of regularizers."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mast_ops import CosineSchedule, LinearSchedule, MaskL1, MaskOverlap

KINDS = (LinearSchedule, CosineSchedule)
MASKS = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(ends=st.tuples(st.floats(0, 100), st.floats(0, 100)), steps=st.integers(1, 20))
def test_it_goes_from_end_to_end_without_turning_back(kind, ends, steps):
    schedule, values = kind(*ends, steps), []
    for _ in range(steps + 3):
        values.append(schedule().item())
        schedule.step()
    assert values[0] == pytest.approx(ends[0], rel=1e-5, abs=1e-5)
    assert values[steps:] == pytest.approx([ends[1]] * 3, rel=1e-5, abs=1e-5)
    rising = [b - a for a, b in itertools.pairwise(values)]
    direction = ends[1] - ends[0]
    assert all(difference * direction >= -1e-3 for difference in rising)


def test_half_way_both_are_at_the_mean():
    for kind in KINDS:
        schedule = kind(1.0, 3.0, 4)
        schedule.step()
        schedule.step()
        torch.testing.assert_close(schedule(), torch.tensor(2.0))


def test_a_sum_steps_every_schedule_once():
    shared = LinearSchedule(0.0, 1.0, 4)
    total = (shared * MaskL1() + MaskOverlap()) + 2.0 * MaskL1() + MaskL1() * shared
    total.step()
    wanted = (0.25 + 2.0 + 0.25) * MaskL1()(MASKS) + MaskOverlap()(MASKS)
    torch.testing.assert_close(total(MASKS), wanted)


def test_compiled_code_is_not_compiled_again():
    regularizer = LinearSchedule(0.0, 1.0, 8) * MaskL1()
    compiled = torch.compile(regularizer, fullgraph=True, backend="eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(5):
            torch.testing.assert_close(compiled(MASKS), step / 8 * MaskL1()(MASKS))
            regularizer.step()


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_numbers_set_later_are_checked_and_compile_nothing_anew(kind):
    schedule = kind(0.0, 1.0, 4)
    torch._dynamo.reset()
    compiled = torch.compile(schedule, fullgraph=True, backend="eager")
    schedule.step()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(1, 13):
            schedule.start, schedule.end, schedule.steps = 0.1 * number, 2.0 * number, number + 1
            fresh = kind(0.1 * number, 2.0 * number, number + 1)
            fresh.step()
            torch.testing.assert_close(compiled(), fresh())
    assert schedule.steps == 13
    assert isinstance(schedule.steps, int)
    with pytest.raises(ValueError, match=r"^steps: got 0"):
        schedule.steps = 0
    with pytest.raises(ValueError, match=r"^end: got -1"):
        schedule.end = -1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((-1.0, 1.0, 3), "start: got -1.0"),
        ((0.0, float("nan"), 3), "end: got nan"),
        ((0.0, 1.0, 0), "steps: got 0, wanted at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        LinearSchedule(*arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"start": float("inf")}, ValueError, "start: got inf"),
        ({"start": "0"}, TypeError, "start: got '0'"),
        ({"end": None}, TypeError, "end: got None"),
        ({"end": True}, TypeError, "end: got True"),
        ({"end": torch.tensor(1.0)}, TypeError, "end: got Tensor"),
        ({"steps": float("nan")}, TypeError, "steps: got nan"),
        ({"steps": 2.5}, TypeError, "steps: got 2.5"),
        ({"steps": True}, TypeError, "steps: got True"),
    ],
)
def test_what_is_no_number_is_named(kind, change, error, words):
    with pytest.raises(error, match=f"^{words}"):
        kind(**{"start": 0.0, "end": 1.0, "steps": 3, **change})


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    schedule = LinearSchedule(np.float32(0.5), np.int64(1), np.int64(3))
    assert (schedule.start, schedule.end, schedule.steps) == (0.5, 1.0, 3)
    assert {type(x) for x in (schedule.start, schedule.end, schedule.steps)} == {float, int}


@pytest.mark.parametrize("kind", KINDS)
def test_what_to_empty_leaves_is_started_anew(kind):
    with torch.device("meta"):
        schedule = kind(1.0, 0.0, 4)
    schedule.to_empty(device="cpu")
    schedule.taken.fill_(1234)  # whatever was in that memory
    schedule.reset_parameters()
    assert schedule() == 1
