"""What a trained head's masks, kinds of pairs and uncertainty say, as text and as a dictionary."""

from collections.abc import Sequence
from typing import Any

import torch

from mast_ops._precision import exact
from mast_ops.analysis import mask_density, mask_overlap, mask_sharing
from mast_ops.checkpoints import StoredHead
from mast_ops.kinds import names_of_kinds


def describe(head: StoredHead, *, threshold: float = 0.5) -> dict[str, Any]:
    """Density, overlap, sharing, kinds of pairs and uncertainty of a head, in plain Python values, ready for JSON.

    Args:
        head: What :func:`mast_ops.checkpoints.load_heads` gives.
        threshold: Which dimensions count as open, see :func:`mast_ops.analysis.open_dimensions`.

    Raises:
        ValueError: Masks that are not finite, or a threshold that is not from 0 to 1.

    Source: ours.
    """
    sharing = mask_sharing(head.masks, threshold=threshold)
    return {
        "subspaces": list(head.subspaces),
        "dim": head.masks.shape[1],
        "masks": {"kind": head.parameterization, **head.settings},
        "kinds": list(names_of_kinds(head.kinds, head.subspaces)),
        "threshold": threshold,
        "density": mask_density(head.masks, threshold=threshold).tolist(),
        "mean": exact(head.masks).abs().mean(1).tolist(),
        "unique": sharing.unique.sum(1).tolist(),
        "shared": sharing.shared.sum(1).tolist(),
        "unused": int(sharing.unused.sum()),
        "overlap": mask_overlap(head.masks).tolist(),
        "uncertainty": head.granularity,
        "log_variance": None if head.log_variance is None else head.log_variance.tolist(),
    }


def text(description: dict[str, Any]) -> str:
    """Tables for a terminal, of what :func:`describe` gives; what a terminal would obey in a name is escaped."""
    names, dim = [printable(name) for name in description["subspaces"]], description["dim"]
    columns = ["subspace", "density", "mean", "unique", "shared"]
    rows = [
        [name, f"{100 * density:.1f} %", f"{mean:.3f}", str(unique), str(shared)]
        for name, density, mean, unique, shared in zip(names, *(description[what] for what in columns[1:]), strict=True)
    ]
    variance, granularity = description["log_variance"], description["uncertainty"]
    if granularity == "subspace":
        columns.append("log-variance")
        rows = [[*row, f"{value:.3f}"] for row, value in zip(rows, variance, strict=True)]
    overlap = [
        [name, *(f"{value:.2f}" for value in values)]
        for name, values in zip(names, description["overlap"], strict=True)
    ]
    masks = description["masks"]
    manner = ", ".join(f"{key} {value}" for key, value in masks.items() if key != "kind")
    masks_are = printable(f"{masks['kind']} masks{f' ({manner})' if manner else ''}")
    kinds = [[printable(kind), str(number)] for number, kind in enumerate(description["kinds"])]
    parts = [
        f"K={len(names)} subspaces of D={dim} dimensions, {masks_are}",
        _table([columns, *rows]),
        f"Open: at least {description['threshold']} of the row's largest value. "
        f"{description['unused']} of {dim} dimensions are open in no subspace.",
        "Overlap (cosine of masks):\n" + _table([("", *names), *overlap]),
        _table([("pairs differ in", "kind"), *kinds]),
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
