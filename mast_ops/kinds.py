"""Kinds of pairs: a boolean table (S, K) whose row s says in which of K augmentations a pair of kind s differs.

One mask goes with each augmentation. A pair that differs in a set of augmentations must agree where the masks
of all of them are open, so a kind is all that a loss has to know of how a pair was made.
"""

import math
import numbers
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from mast_ops._checks import check_count, check_dense, check_index, check_names, check_values, values_are_free

CHOICES = ("single", "all", "mixed", "all_but_one")

_MOST_FOR_A_PROBABILITY = 10  # 2 ** 10 - 1 kinds: more than a batch has pairs


def check_kinds(kinds: Tensor, num_augmentations: int, name: str = "kinds") -> None:
    """A boolean (S, K) table, S >= 1, that has no row of False alone; its values only where they are free.

    Args:
        kinds: what is checked.
        num_augmentations: K.
        name: what the errors call it.

    Raises:
        TypeError: not a tensor, or not of dtype torch.bool.
        ValueError: not of shape (S, K); or a row is all False, where looking at it costs nothing (on the CPU and
            not under ``torch.compile``).

    Example:
        >>> check_kinds(torch.eye(3, dtype=torch.bool), num_augmentations=3)
        >>> check_kinds(torch.eye(3, dtype=torch.bool), num_augmentations=2)
        Traceback (most recent call last):
        ValueError: kinds: got shape (3, 3), wanted (S, 2), one column for each of K=2 augmentations
    """
    wanted = f"(S, {num_augmentations}), one column for each of K={num_augmentations} augmentations"
    if not isinstance(kinds, Tensor):
        raise TypeError(f"{name}: got {type(kinds).__name__}, wanted a boolean tensor of shape {wanted}")
    check_dense(name, kinds)
    if kinds.dim() != 2 or kinds.shape[0] == 0 or kinds.shape[1] != num_augmentations:
        some = ", S >= 1" if kinds.shape[:1] == (0,) else ""
        raise ValueError(f"{name}: got shape {tuple(kinds.shape)}, wanted {wanted}{some}")
    if kinds.dtype != torch.bool:
        raise TypeError(f"{name}: got dtype {kinds.dtype}, wanted torch.bool")
    if values_are_free(kinds) and not bool(kinds.any(dim=1).all()):
        row = kinds.any(dim=1).tolist().index(False)
        raise ValueError(
            f"{name}: got row {row} all False, wanted a True in every row: a pair that differs in nothing says nothing"
        )


def refilled(table: Tensor | None, rows: list[Any] | None) -> Tensor | None:
    """A module's table, made anew of its rows where the module was moved: ``to_empty`` leaves it without values."""
    return table if table is None or table.is_meta else torch.tensor(rows, device=table.device)


def members(kind: Tensor, num_kinds: int) -> Tensor:
    """(N, S), whether pair i is of kind s. `one_hot` is compiled anew for each number of kinds.

    Example:
        >>> members(torch.tensor([1, 0]), 3).int().tolist()
        [[0, 1, 0], [1, 0, 0]]
    """
    return kind[:, None] == torch.arange(num_kinds, device=kind.device)


def check_kind(kind: Tensor, num_samples: int, num_kinds: int, device: torch.device) -> None:
    """An (N,) int64 index into the S kinds, one per pair.

    Args:
        kind: what is checked.
        num_samples: N, the number of pairs.
        num_kinds: S.
        device: where the embedding is.

    Raises:
        TypeError: not a tensor, or not of dtype torch.int64.
        ValueError: not of shape (N,), elsewhere than the embedding, or an entry is no row of the table. On a device,
            and under ``torch.compile``, the last is an assertion there, which waits for nothing.

    Example:
        >>> check_kind(torch.tensor([0, 2]), num_samples=2, num_kinds=2, device=torch.device("cpu"))
        Traceback (most recent call last):
        ValueError: kind: got indices from 0 to 2, wanted 0 to 1 for S=2 kinds of pairs
    """
    check_index("kind", kind, num_samples, device)
    if values_are_free(kind):
        low, high = int(kind.min()), int(kind.max())
        if low < 0 or high >= num_kinds:
            wanted = f"wanted 0 to {num_kinds - 1} for S={num_kinds} kinds of pairs"
            raise ValueError(f"kind: got indices from {low} to {high}, {wanted}")
    else:
        inside = (kind >= 0) & (kind < num_kinds)
        # No number in these words: compiled code would be compiled anew for each.
        torch._assert_async(inside.all(), "kind: got an index out of range, wanted a row of the table of kinds")


def kinds_of(pairs: Any, num_augmentations: int) -> tuple[Tensor, Tensor]:
    """The table of kinds and the share of each, from what a user may say of his pairs.

    Args:
        pairs: one of

            * ``"single"``: each pair differs in one augmentation; K kinds, evenly.
            * ``"all"``: each pair differs in all of them; one kind.
            * ``"mixed"``: half of the pairs as in ``"single"`` (the first K rows), half as in ``"all"`` (the last
              row). With K = 1 the two are one, and so is the table's row.
            * ``"all_but_one"``: each pair shares one augmentation; row k shares augmentation k; evenly. K >= 2.
            * a float p, 0 < p < 1: each augmentation differs with probability p, apart from the others, given that
              one at least does. All 2^K - 1 sets of augmentations, the small ones first. K <= 10.
            * a boolean table (S, K), as a tensor, a NumPy array or nested sequences: row s is True where a pair of
              kind s differs; evenly.
        num_augmentations: K, >= 1.

    Returns:
        The table, bool of shape (S, K), and the shares, float64 of shape (S,), whose sum is 1; both on the CPU.

    Raises:
        TypeError: ``pairs`` is none of these (an int and a bool are not), or a table of another dtype.
        ValueError: an unknown name; ``"all_but_one"`` with K = 1; a number outside (0, 1), or one with K > 10; a
            table of another shape, with a row of False alone, or with a row twice.

    Source: ours.

    Example:
        >>> table, shares = kinds_of("mixed", 2)
        >>> table
        tensor([[ True, False],
                [False,  True],
                [ True,  True]])
        >>> shares.tolist()
        [0.25, 0.25, 0.5]
        >>> table, shares = kinds_of(0.5, 2)
        >>> table.tolist() == kinds_of("mixed", 2)[0].tolist(), shares.allclose(shares.new_tensor(1 / 3))
        (True, True)
        >>> kinds_of([[True, True, False], [False, False, True]], 3)[1].tolist()
        [0.5, 0.5]
    """
    check_count("num_augmentations", num_augmentations)
    with torch.device("cpu"):  # whatever torch.set_default_device says
        if isinstance(pairs, str):
            return _named(pairs, num_augmentations)
        if isinstance(pairs, numbers.Real) and not isinstance(pairs, numbers.Integral):  # of NumPy too
            return _by_probability(float(pairs), num_augmentations)
        table = _table(pairs)
        check_kinds(table, num_augmentations, "pairs")
        _check_unlike(table)
        return table, _evenly(len(table))


def names_of_kinds(kinds: Tensor, augmentations: Sequence[str]) -> tuple[str, ...]:
    """A name for each kind: those of its augmentations with + between them, or "all" for all of several.

    Args:
        kinds: bool of shape (S, K).
        augmentations: K names.

    Raises:
        ValueError: two kinds get one name, as with augmentations "a", "b" and "a+b"; or the names or the table are
            none.
        TypeError: the same, by their types.

    Example:
        >>> names_of_kinds(kinds_of(0.5, 3)[0], ("crop", "color", "blur"))
        ('crop', 'color', 'blur', 'crop+color', 'crop+blur', 'color+blur', 'all')
    """
    augmentations = check_names("augmentations", augmentations)
    check_kinds(kinds, len(augmentations))
    names = tuple(
        "all" if all(row) and len(row) > 1 else "+".join(augmentations[k] for k, differs in enumerate(row) if differs)
        for row in kinds.tolist()
    )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"augmentations: got names that make {twice[0]!r} the name of two kinds, wanted others")
    return names


def with_further(kinds: Tensor, augmentations: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The table with rows for pairs that differ in some augmentations more, and the row of those for every row.

    Args:
        kinds: bool of shape (S, K).
        augmentations: columns in which they differ as well.

    Returns:
        Bool of shape (T, K), T >= S, with the S rows first and no row twice; and int64 of shape (T,).

    Example:
        >>> table, rows = with_further(kinds_of("mixed", 2)[0], [0])
        >>> table.shape, rows
        (torch.Size([3, 2]), tensor([0, 2, 2]))
    """
    rows = [tuple(row) for row in kinds.tolist()]
    more = [tuple(differs or k in augmentations for k, differs in enumerate(row)) for row in rows]
    rows += dict.fromkeys(row for row in more if row not in rows)
    more += rows[len(more) :]
    with torch.device("cpu"):
        return torch.tensor(rows), torch.tensor([rows.index(row) for row in more])


def _named(name: str, num_augmentations: int) -> tuple[Tensor, Tensor]:
    if name not in CHOICES:
        known = ", ".join(map(repr, CHOICES))
        raise ValueError(f"pairs: got {name!r}, wanted one of {known}, a probability, or a boolean table (S, K)")
    single = torch.eye(num_augmentations, dtype=torch.bool)
    everything = torch.ones(1, num_augmentations, dtype=torch.bool)
    if name == "all" or (name == "mixed" and num_augmentations == 1):
        return everything, _evenly(1)
    if name == "mixed":
        return torch.cat((single, everything)), torch.cat((_evenly(num_augmentations), _evenly(1))) / 2
    if name == "all_but_one":
        if num_augmentations == 1:
            why = "a pair that differs in nothing says nothing"
            raise ValueError(f"pairs: got 'all_but_one' with K=1 augmentation, wanted K >= 2: {why}")
        return ~single, _evenly(num_augmentations)
    return single, _evenly(num_augmentations)


def _by_probability(p: float, num_augmentations: int) -> tuple[Tensor, Tensor]:
    if not 0 < p < 1:
        raise ValueError(f"pairs: got {p}, wanted a probability between 0 and 1, neither of them, a name, or a table")
    if num_augmentations > _MOST_FOR_A_PROBABILITY:
        raise ValueError(
            f"pairs: got the probability {p} with K={num_augmentations} augmentations, wanted K <= "
            f"{_MOST_FOR_A_PROBABILITY}, as it makes 2^K - 1 kinds; pass a boolean table (S, K) of those that you want"
        )
    sizes = range(1, num_augmentations + 1)
    sets = [set(chosen) for size in sizes for chosen in combinations(range(num_augmentations), size)]
    table = torch.tensor([[k in chosen for k in range(num_augmentations)] for chosen in sets])
    size = table.sum(dim=1, dtype=torch.float64)
    # Relative to the likeliest set, by logarithms: p ** size alone may be nought for all of them.
    shares = torch.softmax(size * math.log(p) + (num_augmentations - size) * math.log1p(-p), dim=0)
    return table, shares


def _table(pairs: Any) -> Tensor:
    wanted = "a name, a probability, or a boolean table (S, K)"
    if isinstance(pairs, Tensor):
        check_values("pairs", pairs)
        return pairs.detach().cpu().clone()
    is_array = hasattr(pairs, "__array__") and getattr(pairs, "shape", ()) != ()  # a NumPy scalar is no table
    if not is_array and (not isinstance(pairs, Sequence) or isinstance(pairs, bytes | bytearray)):
        raise TypeError(f"pairs: got {type(pairs).__name__}, wanted {wanted}")
    try:
        return torch.tensor(pairs.__array__() if is_array else pairs)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths, or entries that are no numbers
        raise TypeError(f"pairs: got a {type(pairs).__name__} that is no table ({error}), wanted {wanted}") from error


def _check_unlike(table: Tensor) -> None:
    rows = [tuple(row) for row in table.tolist()]
    for s, row in enumerate(rows):
        if row in rows[:s]:
            raise ValueError(f"pairs: got rows {rows.index(row)} and {s} alike, wanted each kind once")


def _evenly(num: int) -> Tensor:
    return torch.full((num,), 1 / num, dtype=torch.float64)
