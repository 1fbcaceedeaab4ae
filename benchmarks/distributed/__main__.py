"""What a batch over many ranks costs each of them: counted on a few processes, on paper up to 1,024.

python -m benchmarks.distributed                     # both tables
python -m benchmarks.distributed --json FILE         # and keep them
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import machine
from benchmarks.distributed import measure
from benchmarks.distributed.model import SCHEMES, Setup
from benchmarks.distributed.ranks import Ranks
from benchmarks.tables import number

SMALL = [Setup(ranks, 256, 128, 4, element=4) for ranks in (2, 3, 4)]
BATCH = 1 << 20
LARGE = [Setup(ranks, BATCH // ranks, 256, 15) for ranks in (64, 256, 1024)]
WIDE = [Setup(ranks, 4096 // ranks, 8192, 1) for ranks in (8, 64, 1024)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.distributed", description=__doc__)
    parser.add_argument("--json", type=Path, help="write what was counted and what was computed to this file")
    args = parser.parse_args(argv)
    document: dict[str, Any] = machine.record("cpu") | {"command": "python -m benchmarks.distributed"}
    document["counted"] = counted()
    document["paper"] = paper()
    print(text(document))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def counted() -> list[dict[str, Any]]:
    """Every scheme on every small setup, beside the model's figure."""
    rows = []
    for s in (bar := tqdm(SMALL, desc="processes", disable=not sys.stderr.isatty())):
        bar.set_postfix(ranks=s.ranks)
        group = Ranks(s.ranks)
        for name in measure.MEASURED:
            results = group(measure.rank, name, s)
            for result in results:
                if isinstance(result, Exception):
                    raise result
            sent, peak = (max(result[what] for result in results) for what in ("sent", "peak"))
            rows.append({"scheme": name, **asdict(s), "sent": sent, "peak": peak, "model": SCHEMES[name](s).sent})
        group.close()
    return rows


def paper() -> list[dict[str, Any]]:
    rows = [(name, s) for name in SCHEMES if "VICReg" not in name for s in LARGE]
    rows += [(name, s) for name in SCHEMES if "VICReg" in name for s in WIDE]
    return [{"scheme": name, **asdict(s), **asdict(SCHEMES[name](s))} for name, s in rows]


def text(document: dict[str, Any], brief: bool = False) -> str:
    """Both tables, in Markdown; when brief, of each scheme the most ranks alone."""
    small = [["counted on processes", "ranks", "sent by a rank, MB", "model, MB", "peak of a rank, MB"]]
    for row in _most_ranks(document["counted"]) if brief else document["counted"]:
        figures = (number(row[what] / 1e6) for what in ("sent", "model", "peak"))
        small.append([row["scheme"], str(row["ranks"]), *figures])
    large = [["on paper", "ranks", "N of all", "N of one", "D", "K", "sent by a rank, GB", "held for others, GB"]]
    for row in _most_ranks(document["paper"]) if brief else document["paper"]:
        sizes = (row["ranks"] * row["samples"], row["samples"], row["dim"], row["subspaces"])
        figures = (number(row[what] / 1e9) for what in ("sent", "held"))
        large.append([row["scheme"], str(row["ranks"]), *(f"{size:,}" for size in sizes), *figures])
    return "\n\n".join(_table(rows) for rows in (small, large))


def _most_ranks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    most: dict[str, int] = {}
    for row in rows:
        most[row["scheme"]] = max(row["ranks"], most.get(row["scheme"], 0))
    return [row for row in rows if row["ranks"] == most[row["scheme"]]]


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [aligned[0], rule, *aligned[1:]])


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # of the profiler, which counts bytes here
    main()
