"""What a trained head's masks, kinds of pairs and uncertainty say, as text and as a dictionary."""

from collections.abc import Sequence
from typing import Any

import torch

from mast_ops._checks import check_is
from mast_ops._precision import exact
from mast_ops.analysis import _folded, closedness, closing_sets, mask_overlap
from mast_ops.checkpoints import StoredHead
from mast_ops.kinds import names_of_kinds

_MOST_SETS = 30  # of masks, in a table
_MOST_NAMES, _LONGEST_NAME = 256, 200  # the tables are of K x K cells, each as wide as the longest name


def describe(head: StoredHead, *, threshold: float = 0.5) -> dict[str, Any]:
    """What masks close, how that overlaps, kinds of pairs and uncertainty, in plain Python values, ready for JSON.

    Args:
        head: What :func:`mast_ops.checkpoints.load_heads` gives.
        threshold: Which dimensions count as open, see :func:`mast_ops.analysis.open_dimensions`.

    Raises:
        ValueError: Masks that are not finite, or have no finite mean; a threshold that is not from 0 to 1; or more than
            256 subspaces, or a name of more than 200 characters.
        TypeError: ``head`` is no StoredHead.

    Source: ours.
    """
    check_is("head", head, StoredHead, "a StoredHead, as load_heads gives it")
    if len(head.subspaces) > _MOST_NAMES:
        raise ValueError(f"subspaces: got {len(head.subspaces)}, wanted at most {_MOST_NAMES}")
    longest = max(map(len, head.subspaces))
    if longest > _LONGEST_NAME:
        raise ValueError(f"subspaces: got a name of {longest} characters, wanted at most {_LONGEST_NAME}")
    found = closing_sets(head.masks, threshold=threshold)
    mean = exact(head.masks).abs().mean(1)
    if not mean.isfinite().all():
        raise ValueError("masks: got entries so large that their mean is infinite, wanted a finite one")
    return {
        "subspaces": list(head.subspaces),
        "dim": head.masks.shape[1],
        "masks": {"kind": head.parameterization, **head.settings},
        "kinds": None if head.kinds is None else list(names_of_kinds(head.kinds, head.subspaces)),
        "threshold": threshold,
        "mean": mean.tolist(),
        "closed": found.closed.tolist(),
        "closed_alone": found.closed_alone.tolist(),
        "closed_by": [
            {"masks": [name for name, inside in zip(head.subspaces, row, strict=True) if inside], "dimensions": count}
            for row, count in zip(found.sets.tolist(), found.dimensions.tolist(), strict=True)
        ],
        "overlap": mask_overlap(closedness(head.masks)).tolist(),
        "uncertainty": head.granularity,
        "log_variance": None if head.log_variance is None else head.log_variance.tolist(),
    }


def text(description: dict[str, Any]) -> str:
    """Tables for a terminal, of what :func:`describe` gives; what a terminal would obey in a name is escaped."""
    names, dim = [printable(name) for name in description["subspaces"]], description["dim"]
    columns = ["mask of", "mean", "closes", "it alone"]
    rows = [
        [name, f"{mean:.3f}", str(closed), str(alone)]
        for name, mean, closed, alone in zip(
            names, *(description[what] for what in ("mean", "closed", "closed_alone")), strict=True
        )
    ]
    variance, granularity = description["log_variance"], description["uncertainty"]
    if granularity == "subspace":
        columns.append("log-variance")
        rows = [[*row, f"{value:.3f}"] for row, value in zip(rows, variance, strict=True)]
    overlap = [
        [name, *(f"{value:.2f}" for value in values)]
        for name, values in zip(names, description["overlap"], strict=True)
    ]
    sets = [("+".join(map(printable, one["masks"])) or "none", one["dimensions"]) for one in description["closed_by"]]
    masks = description["masks"]
    manner = ", ".join(f"{key} {value}" for key, value in masks.items() if key != "kind")
    masks_are = printable(f"{masks['kind']} masks{f' ({manner})' if manner else ''}")
    kinds = "Kinds of pairs are not known: the head was told names alone, and a loss takes no kind with it."
    if description["kinds"] is not None:
        numbered = [[printable(kind), str(number)] for number, kind in enumerate(description["kinds"])]
        kinds = _table([("pairs differ in", "kind"), *numbered])
    parts = [
        f"K={len(names)} subspaces of D={dim} dimensions, {masks_are}",
        _table([columns, *rows]),
        f"Closed: below {description['threshold']} of the row's largest value.",
        _table(
            [("closed by exactly", "dimensions"), *((name, str(count)) for name, count in _folded(sets, _MOST_SETS))]
        ),
        "Overlap of what masks close (cosine):\n" + _table([("", *names), *overlap]),
        kinds,
    ]
    if granularity is None:
        parts.append("No uncertainty is predicted.")
    elif granularity == "subspace":
        parts.append("Log-variance: what the predictor's bias says alone; inputs move it.")
    else:
        value = torch.tensor(variance)
        parts.append(
            f"Log-variance per {granularity}, the predictor's bias alone, {len(variance)} value(s): "
            f"mean {value.mean():.3f}, from {value.min():.3f} to {value.max():.3f}; inputs move it."
        )
    return "\n\n".join(parts)


def printable(text: str) -> str:
    """With every character that is no sign to be seen, line breaks among them, as Python would write it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
