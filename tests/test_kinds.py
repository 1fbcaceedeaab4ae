"""The table of kinds of pairs: what may be said, what it makes, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mast_ops import FactorizedViews, MaskedSubspaceHead
from mast_ops.kinds import check_kind, check_kinds, kinds_of, names_of_kinds

EYE = torch.eye(3, dtype=torch.bool)
HERE = torch.device("cpu")


def assert_is_a_table(table, shares, num):
    check_kinds(table, num)
    assert shares.shape == (len(table),)
    assert shares.dtype == torch.float64
    assert float(shares.sum()) == pytest.approx(1, abs=1e-12)
    assert len(set(map(tuple, table.tolist()))) == len(table)


@pytest.mark.parametrize("num", [2, 3, 5])
@pytest.mark.parametrize("pairs", ["single", "all", "mixed", "all_but_one", 0.3])
def test_every_choice_is_a_table(pairs, num):
    assert_is_a_table(*kinds_of(pairs, num), num)


def test_single_differs_in_each_alone():
    table, shares = kinds_of("single", 3)
    assert torch.equal(table, EYE)
    assert len(shares.unique()) == 1


def test_all_is_one_kind():
    table, shares = kinds_of("all", 3)
    assert table.tolist() == [[True, True, True]]
    assert shares.tolist() == [1.0]


def test_half_of_mixed_is_single_and_half_is_all():
    table, shares = kinds_of("mixed", 3)
    assert torch.equal(table[:3], EYE)
    assert table[3:].tolist() == [[True, True, True]]
    assert shares.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_mixed_of_one_augmentation_is_one_kind():
    table, shares = kinds_of("mixed", 1)
    assert table.tolist() == [[True]]
    assert shares.tolist() == [1.0]


def test_all_but_one_shares_each_alone():
    table, shares = kinds_of("all_but_one", 3)
    assert torch.equal(table, ~EYE)
    assert len(shares.unique()) == 1


@given(num=st.integers(1, 6), p=st.floats(0.01, 0.99))
def test_probability_is_that_of_independent_draws_given_that_one_differs(num, p):
    table, shares = kinds_of(p, num)
    assert_is_a_table(table, shares, num)
    weight = {
        row: np.prod([p if differs else 1 - p for differs in row])
        for row in itertools.product([False, True], repeat=num)
        if any(row)
    }
    assert set(weight) == set(map(tuple, table.tolist()))
    wanted = [weight[tuple(row)] / sum(weight.values()) for row in table.tolist()]
    assert shares.tolist() == pytest.approx(wanted, rel=1e-9)
    assert torch.equal(table.sum(1), table.sum(1).sort().values)  # the small sets first


def test_probability_so_small_that_every_product_is_nought():
    _, shares = kinds_of(1e-300, 4)
    assert shares.tolist() == pytest.approx([0.25] * 4 + [0.0] * 11)


ROWS = [[True, True, False], [False, False, True]]


@pytest.mark.parametrize("table", [ROWS, tuple(map(tuple, ROWS)), np.array(ROWS), torch.tensor(ROWS)])
def test_a_table_stands_for_itself_evenly(table):
    kinds, shares = kinds_of(table, 3)
    assert kinds.tolist() == ROWS
    assert shares.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("table", [np.array(ROWS), torch.tensor(ROWS)])
def test_a_table_is_copied(table):
    kinds, _ = kinds_of(table, 3)
    table[0, 0] = False
    assert kinds.tolist() == ROWS


def test_default_device_is_left_alone():
    with torch.device("meta"):
        for pairs in ("mixed", 0.5, ROWS):
            assert all(tensor.device == HERE for tensor in kinds_of(pairs, 3))


@pytest.mark.parametrize(
    ("pairs", "num", "error", "match"),
    [
        ("both", 3, ValueError, "pairs: got 'both', wanted one of 'single', 'all', 'mixed', 'all_but_one'"),
        ("all_but_one", 1, ValueError, "pairs: got 'all_but_one' with K=1 .*wanted K >= 2.*says nothing"),
        (0.0, 3, ValueError, r"pairs: got 0.0, wanted a probability"),
        (1.0, 3, ValueError, r"pairs: got 1.0, wanted a probability"),
        (float("nan"), 3, ValueError, "pairs: got nan, wanted a probability"),
        (0.5, 11, ValueError, r"pairs: got the probability 0.5 with K=11.*K <= 10.*pass a boolean table"),
        (1, 3, TypeError, "pairs: got int, wanted a name, a probability, or a boolean table"),
        (True, 3, TypeError, "pairs: got bool, wanted a name"),
        (None, 3, TypeError, "pairs: got NoneType, wanted a name"),
        (np.bool_(True), 3, TypeError, "pairs: got bool.*, wanted a name"),
        ({"a": 1}, 3, TypeError, "pairs: got dict, wanted a name"),
        (b"all", 3, TypeError, "pairs: got bytes, wanted a name"),
        ([["a"], ["b"]], 3, TypeError, "pairs: got a list that is no table"),
        ([[None]], 3, TypeError, "pairs: got a list that is no table"),
        ([[True, False], [True]], 2, TypeError, "pairs: got a list that is no table"),
        ([[1, 0]], 2, TypeError, "pairs: got dtype torch.int64, wanted torch.bool"),
        (torch.eye(2), 2, TypeError, "pairs: got dtype torch.float32, wanted torch.bool"),
        ([], 2, ValueError, r"pairs: got shape \(0,\), wanted \(S, 2\)"),
        ([True, False], 2, ValueError, r"pairs: got shape \(2,\), wanted \(S, 2\)"),
        (EYE, 4, ValueError, r"pairs: got shape \(3, 3\), wanted \(S, 4\), one column for each of K=4"),
        (EYE[:0], 3, ValueError, r"pairs: got shape \(0, 3\), wanted \(S, 3\).* S >= 1"),
        ([[True, False], [False, False]], 2, ValueError, "pairs: got row 1 all False.*differs in nothing says nothing"),
        ([[True, False], [False, True], [True, False]], 2, ValueError, "pairs: got rows 0 and 2 alike"),
    ],
)
def test_refused_pairs(pairs, num, error, match):
    with pytest.raises(error, match=match):
        kinds_of(pairs, num)


def test_names():
    assert names_of_kinds(kinds_of("mixed", 2)[0], ("crop", "color")) == ("crop", "color", "all")
    assert names_of_kinds(kinds_of("all_but_one", 3)[0], ("a", "b", "c")) == ("b+c", "a+c", "a+b")
    assert names_of_kinds(kinds_of("all", 1)[0], ("crop",)) == ("crop",)


@pytest.mark.parametrize(("num", "names"), [(3, ("a", "b", "a+b")), (2, ("all", "blur"))])
def test_names_that_two_kinds_would_have_are_refused(num, names):
    with pytest.raises(ValueError, match=r"augmentations: got names that make '(all|a\+b)' the name of two kinds"):
        names_of_kinds(kinds_of(0.5, num)[0], names)


# --- the checks of losses


@pytest.mark.parametrize(
    ("kinds", "error", "match"),
    [
        ([[True] * 3], TypeError, r"table: got list, wanted a boolean tensor of shape \(S, 3\)"),
        (EYE.float(), TypeError, "table: got dtype torch.float32, wanted torch.bool"),
        (EYE[0], ValueError, r"table: got shape \(3,\), wanted \(S, 3\)"),
        (EYE[:, :2], ValueError, r"table: got shape \(3, 2\), wanted \(S, 3\), one column for each of K=3"),
        (EYE[:0], ValueError, r"table: got shape \(0, 3\).*S >= 1"),
        (EYE & EYE[1], ValueError, "table: got row 0 all False"),
    ],
)
def test_refused_tables(kinds, error, match):
    with pytest.raises(error, match=match):
        check_kinds(kinds, 3, "table")


def test_values_are_looked_at_only_where_they_are_free():
    check_kinds(torch.zeros(2, 3, dtype=torch.bool, device="meta"), 3)


@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [
        ([0, 1], TypeError, "kind: got list"),
        (torch.tensor([0.0, 1.0]), TypeError, "kind: got dtype torch.float32, wanted torch.int64"),
        (torch.tensor([0]), ValueError, r"kind: got shape \(1,\), wanted \(2,\)"),
        (torch.tensor([0, 4]), ValueError, "kind: got indices from 0 to 4, wanted 0 to 3 for S=4 kinds"),
        (torch.tensor([-1, 0]), ValueError, "kind: got indices from -1 to 0, wanted 0 to 3"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), ValueError, "kind: got device meta"),
    ],
)
def test_refused_indices(kind, error, match):
    check_kind(torch.tensor([0, 3]), 2, 4, HERE)
    with pytest.raises(error, match=match):
        check_kind(kind, 2, 4, HERE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_index_on_a_device_is_taken_without_a_look():
    kind = torch.tensor([0, 3], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        check_kind(kind, 2, 4, kind.device)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("pairs", ["single", "all", "mixed", "all_but_one"])
def test_a_head_takes_names_and_kinds_from_the_views(pairs):
    views = FactorizedViews({"crop": torch.rand_like, "color": torch.rand_like}, pairs=pairs)
    head = MaskedSubspaceHead(torch.nn.Linear(4, 8), views)
    assert head.subspaces == views.augmentations
    assert torch.equal(head.kinds, views.kinds)
    with pytest.raises(ValueError, match="kinds: got a table beside views"):
        MaskedSubspaceHead(torch.nn.Linear(4, 8), views, kinds=views.kinds)
