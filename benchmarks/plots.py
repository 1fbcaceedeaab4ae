"""Scaling as a picture. ``python -m benchmarks.plots RESULTS.json`` draws it again from a file."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_LINES = {  # Okabe and Ito's colours, and a marker each: readable in grey
    "loop": ("loop over K", "#D55E00", "s-"),
    "ours": ("mast_ops", "#0072B2", "o-"),
    "limit": ("physical limit", "#555555", "--"),
}
_AXES = {"k": "subspaces K", "n": "samples N", "d": "dimensions D"}


def plot_scaling(document: dict[str, Any], path: Path) -> None:
    points = document["scaling"]
    operators = list(dict.fromkeys(point["operator"] for point in points))
    figure = Figure(figsize=(11, 3.4 * len(operators)), layout="constrained")
    grid = figure.subplots(len(operators), len(_AXES), squeeze=False, sharey="row")
    for operator, row in zip(operators, grid, strict=True):
        for axis, ax in zip(_AXES, row, strict=True):
            own = [point for point in points if (point["operator"], point["axis"]) == (operator, axis)]
            _panel(ax, operator, axis, own)
        row[0].set_ylabel("forward and backward, ms")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(_LINES), frameon=False)
    figure.savefig(path, dpi=110)


def _panel(ax: Axes, operator: str, axis: str, points: list[dict[str, Any]]) -> None:
    for role, (label, colour, style) in _LINES.items():
        known = [(p["shape"][axis], time) for p in points if (time := _time(p, role)) is not None]
        if not known:  # left out of this run
            continue
        ax.loglog(*zip(*known, strict=True), style, color=colour, label=label, markersize=4)
    sizes = sorted({point["shape"][axis] for point in points})
    ax.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
    ax.minorticks_off()
    others = ", ".join(f"{name.upper()}={size}" for name, size in points[0]["shape"].items() if name != axis)
    ax.set(title=f"{operator}: {others}", xlabel=_AXES[axis])
    ax.grid(alpha=0.3)


def _time(point: dict[str, Any], role: str) -> float | None:
    if role == "limit":
        return float(point["limit"]["total_ms"])
    return next((row["total_ms"]["median"] for row in point["rows"] if row["role"] == role), None)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        plot_scaling(json.loads(Path(name).read_text()), Path(name).with_suffix(".png"))
