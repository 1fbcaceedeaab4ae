"""The short table: for each form of each operator mast_ops, the loop by hand, and the fastest of the others."""

from typing import Any

from benchmarks.tables import number, table

HEADER = ("forward and backward", "mast_ops, ms", "loop by hand", "fastest other", "extra MB (loop)", "of the limit")

LEGEND = (
    "Times as fast as what stands in the column, medians in one process. *Fastest other*: hand-written, compiled, or a "
    "peer, whichever is the fastest at the same problem. *Extra*: the most allocated at once beside inputs and "
    "gradients. "
    "*Limit*: the least arithmetic and traffic over the rates measured in the same run. All contenders, forward alone, "
    "spread, errors and formulas: [results](results/README.md)."
)


def markdown(operators: dict[str, dict[str, Any]]) -> str:
    lines = [_line(name, operator, row) for name, operator in operators.items() for row in _ours(operator)]
    return table(HEADER, lines)


def _ours(operator: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in _shown(operator) if row["name"].startswith("mast_ops")]


def _shown(operator: dict[str, Any]) -> list[dict[str, Any]]:
    """Without variants that a short table can do without."""
    return [row for row in operator["rows"] if "blocks" not in row["name"]]


def _line(name: str, operator: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """Rows with the same limit solve the same problem: only those are compared."""
    shape = " ".join(f"{letter.upper()}={size}" for letter, size in operator["shape"].items())
    form = row["name"].removeprefix("mast_ops").strip(", ")
    same = [other for other in _shown(operator) if other["limit_ms"] == row["limit_ms"]]
    loop = next((other for other in same if other["role"] == "loop"), None)
    others = [other for other in same if other["ok"] and other is not loop and not other["name"].startswith("mast_ops")]
    fastest = min(others, key=_median, default=None)
    peak = number(row["bytes"]["peak"] / 1e6)
    return [
        f"**{name}**{f', {form}' if form else ''}; {shape}",
        number(_median(row)),
        _times(loop, row),
        "-" if fastest is None else f"{_times(fastest, row)} {fastest['name']}",
        peak if loop is None else f"{peak} ({number(loop['bytes']['peak'] / 1e6)})",
        f"{100 * row['share_of_limit']:.0f} %",
    ]


def _times(other: dict[str, Any] | None, row: dict[str, Any]) -> str:
    return "-" if other is None else f"{number(_median(other) / _median(row))} x"


def _median(row: dict[str, Any]) -> float:
    median: float = row["total_ms"]["median"]
    return median
