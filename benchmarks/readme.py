"""README's tables from the JSON files in ``benchmarks/results/{cpu,gpu}``, between markers.

python -m benchmarks.readme            # write them
python -m benchmarks.readme --check    # fail where README is out of date
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import tables

ROOT = Path(__file__).parent.parent
DEVICES = ("cpu", "gpu")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="holds cpu/ and gpu/")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where README is out of date")
    args = parser.parse_args(argv)
    old = args.readme.read_text()
    new = old
    for device in DEVICES:
        new = replace(new, device, block(args.results / device, args.readme.parent))
    if not args.check:
        args.readme.write_text(new)
    elif new != old:
        sys.exit(
            f"error: {args.readme}: got tables that differ from {args.results}, wanted: python -m benchmarks.readme"
        )


def replace(text: str, device: str, tables_: str) -> str:
    start, end = f"<!-- benchmarks:{device} -->", f"<!-- /benchmarks:{device} -->"
    for marker in (start, end):
        if text.count(marker) != 1:
            raise ValueError(f"README: got {text.count(marker)} markers {marker}, wanted one")
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{start}\n{tables_}\n{end}", text)


def block(folder: Path, root: Path) -> str:
    """All tables of one device: the newest of each operator and dtype, under a caption for each file that has one."""
    documents = sorted(_documents(folder), key=lambda item: item[1]["date"])
    newest = {key: document for _, document in documents for key in _keys(document).values()}
    parts = [tables.LEGEND] if newest else []
    for path, document in documents:
        names = [name for name, key in _keys(document).items() if newest[key] is document]
        picture = path.with_suffix(".png")
        drawn = bool(document["scaling"]) and picture.exists()
        if names or drawn:
            parts.append(tables.caption(document))
        parts += [tables.markdown(name, document["operators"][name]) for name in names]
        if drawn:
            parts.append(f"![Time against K, N and D]({Path(os.path.relpath(picture, root)).as_posix()})")
    return "\n\n".join(parts) or "Not measured."


def _keys(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {name: (name, operator["dtype"]) for name, operator in document["operators"].items()}


def _documents(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    return [(path, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]


if __name__ == "__main__":
    main()
