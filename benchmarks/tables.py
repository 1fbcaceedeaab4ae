"""One table an operator, on a terminal or in Markdown, from what the JSON file holds."""

from collections.abc import Iterable, Sequence
from typing import Any

HEADER = (
    "contender",
    "forward, ms",
    "forward and backward, ms",
    "loop / it",
    "it / ours",
    "of the limit",
    "extra MB",
    "saved MB",
    "error",
)

LEGEND = (
    "Median milliseconds of repeats that alternate between all contenders of a table in one process, on inputs that "
    "no cache holds; quartiles in brackets. *loop / it*: how many times as fast as the hand-written loop. "
    "*it / ours*: its time over that of mast_ops. *extra*: the most allocated at once beside inputs and gradients. "
    "*saved*: what waits for the backward pass. *error*: the largest in the loss or a gradient against float64, "
    "relative to that tensor's largest entry. Where mast_ops makes its gradients in the forward pass, its forward "
    "time is nearly the whole time."
)


def cells(operator: dict[str, Any]) -> list[list[str]]:
    limit = operator["limit"]
    least = [number(limit["forward_ms"]), number(limit["total_ms"])]
    return [*(_cells(row) for row in operator["rows"]), ["physical limit", *least, "", "", "100 %", "", "", ""]]


def _cells(row: dict[str, Any]) -> list[str]:
    total, size = row["total_ms"], row["bytes"]
    return [
        row["name"] + ("" if row["ok"] else " (WRONG)"),
        number(row["forward_ms"]["median"]),
        f"{number(total['median'])} ({number(total['q1'])} - {number(total['q3'])})",
        number(row["loop_over_it"]),
        number(row["it_over_ours"]),
        f"{100 * row['share_of_limit']:.{0 if row['share_of_limit'] >= 0.1 else 1}f} %",
        number(size["peak"] / 1e6),
        number(max(size["saved"], size["held"]) / 1e6),
        "not finite" if row["error"] is None else f"{row['error']:.0e}",
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """In Markdown, without the padding that makes a page longer; the first ``left`` columns stand left."""
    first, *others = (f"| {' | '.join(line)} |" for line in (head, *rows))
    return "\n".join([first, "|---" * left + "|---:" * (len(head) - left) + "|", *others])


def number(x: float | None) -> str:
    """Three digits, and never an exponent."""
    if x is None:
        return "-"
    digits = next((d for d, bound in ((0, 100), (1, 10), (2, 1)) if abs(x) >= bound), 3)
    return f"{x:,.{digits}f}"


def heading(name: str, operator: dict[str, Any]) -> str:
    shape = " ".join(f"{letter.upper()}={size}" for letter, size in operator["shape"].items())
    return f"{name}: {operator['title']}; {shape} {operator['dtype']}"


def text(name: str, operator: dict[str, Any]) -> str:
    rows = [list(HEADER), *cells(operator)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([heading(name, operator), *lines, *_notes(operator)])


def markdown(name: str, operator: dict[str, Any]) -> str:
    title, rest = heading(name, operator).split(":", 1)
    notes = ["", *(f"- {note}" for note in _notes(operator))]
    rows = table(HEADER, map(_emphasised, cells(operator)))
    return "\n".join([f"**{title}**:{rest}", "", rows, *(notes if len(notes) > 1 else [])])


def _emphasised(row: Sequence[str]) -> Sequence[str]:
    return [f"**{row[0]}**", *row[1:]] if row[0].startswith("mast_ops") else row


def _notes(operator: dict[str, Any]) -> list[str]:
    """The limit's formula, what a CUDA graph did not time, and what was left out, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for row in operator["rows"]:
        if row["timed"].startswith("launched"):
            reasons.setdefault(row["timed"], []).append(row["name"])
    for contender, reason in operator["skipped"].items():
        reasons.setdefault(f"left out, {reason}", []).append(contender)
    return [f"limit, {operator['limit']['why']}", *(f"{why}: {'; '.join(names)}" for why, names in reasons.items())]


def ceilings(rates: dict[str, Any]) -> str:
    return f"copy {rates['bandwidth'] / 1e9:,.1f} GB/s, matrix products {rates['flops'] / 1e12:,.3g} TFLOP/s"


def revision(document: dict[str, Any]) -> str:
    """Which code was measured, and on what day."""
    git = document["git"]
    commit = (git["commit"] or "no commit")[:9] + (" with changes" if git["dirty"] else "")
    return f"commit {commit}, {document['date'][:10]}"


def caption(document: dict[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    chip = machine["gpu"] or machine["cpu"]
    return (
        f"{chip}, {machine['threads']} threads of {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB; "
        f"torch {versions['torch']}, Python {versions['python']}; {revision(document)}; "
        f"measured in the same run: {ceilings(document['ceilings'])}. `{document['command']}`"
    )
