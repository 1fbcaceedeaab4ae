"""Kinds of pairs by name."""

from collections.abc import Sequence

from torch import Tensor


def kind_names(names: Sequence[str], kinds: Tensor) -> tuple[str, ...]:
    """A name for each row of ``kinds`` (S, K): ``"crop"``, ``"crop+color"``, or ``"all"`` where all of several differ.

    No two are alike: a name that another kind has already gets the number of its row.
    """
    found: list[str] = []
    for number, row in enumerate(kinds.tolist()):
        differ = [name for name, differs in zip(names, row, strict=True) if differs]
        name = "all" if len(differ) == len(names) > 1 else "+".join(differ)
        while name in found:
            name += f" ({number})"
        found.append(name)
    return tuple(found)
