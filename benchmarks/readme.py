"""Tables from the JSON files in ``benchmarks/results/{cpu,gpu}``: short ones in README, all of them beside the files.

python -m benchmarks.readme            # write them
python -m benchmarks.readme --check    # fail where they are out of date

README holds a marker where a device's table begins and one where it ends.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import summary, tables
from benchmarks.distributed import __main__ as distributed

ROOT = Path(__file__).parent.parent
DEVICES = ("cpu", "gpu")
RANKS = Path("cpu") / "distributed.json"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="holds cpu/ and gpu/")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where README is out of date")
    args = parser.parse_args(argv)
    front = args.readme.read_text()
    for device in DEVICES:
        front = replace(front, device, short(args.results / device, args.readme.parent))
    front = replace(front, "distributed", ranks(args.results / RANKS, brief=True))
    full = "\n\n".join(
        [
            "# What `python -m benchmarks` measured",
            "Made by `python -m benchmarks.readme` from the JSON files here.",
            tables.LEGEND,
            *(f"## {device.upper()}\n\n{block(args.results / device, args.results)}" for device in DEVICES),
            f"## Many ranks\n\n{ranks(args.results / RANKS)}",
        ]
    )
    for path, new in ((args.readme, front), (args.results / "README.md", full + "\n")):
        if not args.check:
            path.write_text(new)
        elif not path.exists() or path.read_text() != new:
            sys.exit(f"error: {path}: got tables that differ from {args.results}, wanted: python -m benchmarks.readme")


def replace(text: str, device: str, tables_: str) -> str:
    start, end = f"<!-- benchmarks:{device} -->", f"<!-- /benchmarks:{device} -->"
    for marker in (start, end):
        if text.count(marker) != 1:
            raise ValueError(f"README: got {text.count(marker)} markers {marker}, wanted one")
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{start}\n{tables_}\n{end}", text)


def short(folder: Path, root: Path) -> str:
    """One table a file, then the pictures of scaling."""
    found = _newest(folder, root)
    measured = [(document, operators) for document, operators, _ in found if operators]
    parts = [
        part for document, operators in measured for part in (tables.caption(document), summary.markdown(operators))
    ]
    parts += [summary.LEGEND] if parts else []
    return "\n\n".join([*parts, *(picture for *_, picture in found if picture)]) or "Not measured."


def ranks(file: Path, brief: bool = False) -> str:
    """What a batch over many ranks costs each of them, under a caption."""
    if not file.exists():
        return "Not measured."
    document = json.loads(file.read_text())
    commit, date, torch = document["git"]["commit"], document["date"], document["versions"]["torch"]
    caption = f"gloo on CPU, torch {torch}; commit {(commit or 'none')[:9]}, {date[:10]}. `{document['command']}`"
    return f"{caption}\n\n{distributed.text(document, brief)}"


def block(folder: Path, root: Path) -> str:
    """All tables of one device, under a caption for each file."""
    parts = []
    for document, operators, picture in _newest(folder, root):
        parts.append(tables.caption(document))
        parts += [tables.markdown(name, operator) for name, operator in operators.items()]
        parts += [picture] if picture else []
    return "\n\n".join(parts) or "Not measured."


def _newest(folder: Path, root: Path) -> list[tuple[dict[str, Any], dict[str, Any], str | None]]:
    """For each file that has something to show: itself, its operators that no newer file has too, its picture."""
    documents = sorted(_documents(folder), key=lambda item: item[1]["date"])
    newest = {key: document for _, document in documents for key in _keys(document).values()}
    found = []
    for path, document in documents:
        operators = {
            name: document["operators"][name] for name, key in _keys(document).items() if newest[key] is document
        }
        image = path.with_suffix(".png")
        picture = None
        if document["scaling"] and image.exists():
            picture = f"![Time against K, N and D]({Path(os.path.relpath(image, root)).as_posix()})"
        if operators or picture:
            found.append((document, operators, picture))
    return found


def _keys(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {name: (name, operator["dtype"]) for name, operator in document["operators"].items()}


def _documents(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    files = [path for path in sorted(folder.glob("*.json")) if path.name != RANKS.name]
    return [(path, json.loads(path.read_text())) for path in files]


if __name__ == "__main__":
    main()
