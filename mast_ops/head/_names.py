"""Names of subspaces, and which of them a caller means."""

import numbers
from collections.abc import Iterable, Sequence, Set

from mast_ops._checks import check_count, check_names, listed, shown


def subspace_names(subspaces: int | Sequence[str]) -> tuple[str, ...]:
    """Those given, or "0", "1", ... for a number of them."""
    if isinstance(subspaces, Iterable):
        return check_names("subspaces", subspaces)
    if not isinstance(subspaces, numbers.Integral):
        raise TypeError(f"subspaces: got {shown(subspaces)}, wanted FactorizedViews, names, or a whole number >= 1")
    return tuple(str(k) for k in range(check_count("subspaces", subspaces)))


def index_of(argument: str, subspace: str | int, names: Sequence[str]) -> int:
    """Of a subspace by name or by index."""
    wanted = f"wanted one of {', '.join(map(repr, names))} or 0 to {len(names) - 1}"
    if isinstance(subspace, bool) or not isinstance(subspace, str | numbers.Integral):
        raise TypeError(f"{argument}: got {shown(subspace)}, {wanted}")
    if isinstance(subspace, str) and subspace in names:
        return names.index(subspace)
    if not isinstance(subspace, str) and 0 <= subspace < len(names):
        return int(subspace)
    raise ValueError(f"{argument}: got {subspace!r}, {wanted}")


def indices_of(argument: str, subspaces: str | int | Sequence[str | int], names: Sequence[str]) -> list[int]:
    """Of one subspace or several."""
    if isinstance(subspaces, str | numbers.Integral):
        return [index_of(argument, subspaces, names)]  # a NumPy number too
    entries = list(subspaces) if isinstance(subspaces, Set) else listed(subspaces)  # any order: weights are multiplied
    if entries is None:
        raise TypeError(f"{argument}: got {shown(subspaces)}, wanted a name of a subspace, or a list of them")
    return sorted(index_of(argument, name, names) for name in entries)
