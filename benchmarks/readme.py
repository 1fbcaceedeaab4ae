"""The parts of the READMEs that are made from files: tables, sentences with figures, and diffs of the examples.

python -m benchmarks.readme            # write them
python -m benchmarks.readme --check    # fail where they are out of date

Tables come from the JSON files in ``benchmarks/results``, diffs from ``examples``. A page holds a marker where such a
part begins and one where it ends; the page in ``benchmarks/results`` is made as a whole.
"""

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import summary, tables, versions, views
from benchmarks.distributed import __main__ as distributed
from benchmarks.evidence import claims, difficulty, relations, report

ROOT = Path(__file__).parent.parent
DEVICES = ("cpu", "gpu")
METHODS = ("simclr", "byol", "vicreg", "multi_crop")
RANKS = Path("cpu") / "distributed.json"
EVIDENCE = Path("evidence")  # a folder: pages but the full one show its main file
PAGES = {  # and the parts of each
    "README.md": ("result",),
    "benchmarks/README.md": (*DEVICES, "views"),
    "benchmarks/distributed/README.md": ("distributed",),
    "benchmarks/evidence/README.md": (
        "answer",
        "tuned",
        "evidence",
        "differences",
        "claims",
        "looc",
        "longer",
        "emoji",
        "tuning",
        "relations",
        "difficulty",
        "ablations",
    ),
    "examples/README.md": (*METHODS, "cost"),
    "mast_ops/README.md": ("versions",),
}
TABLES = {  # of one file of the evidence each, under its caption
    "evidence": ("results", report.short),
    "longer": ("longer", claims.longer),
    "emoji": ("emoji", report.brief),
    "tuning": ("tuning", claims.tuning),
    "tuned": ("tuned", claims.tuned),
}
CLAIMS = {  # and sentences and tables without one, of these files
    "result": ("results", "tuned"),
    "answer": ("tuned", "results"),
    "differences": ("results",),
    "claims": ("results",),
    "looc": ("results", "tuned", "longer"),
    "cost": ("results",),
    "ablations": ("ablations",),
}
FILES = {"versions": versions.markdown, "views": views.markdown}  # parts made of one file of results
APART = {"relations": relations.text, "difficulty": difficulty.text}  # suites of their own
UNMEASURED = "Not measured."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="holds README.md and the folders of the others")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="holds cpu/ and gpu/")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a page is out of date")
    args = parser.parse_args(argv)
    pages = {args.root / name: page(args.root / name, parts, args.results) for name, parts in PAGES.items()}
    for path, new in {**pages, args.results / "README.md": full(args.results)}.items():
        if not args.check:
            path.write_text(new)
        elif not path.exists() or path.read_text() != new:
            sys.exit(f"error: {path}: got parts that differ from their sources, wanted: python -m benchmarks.readme")


def page(path: Path, parts: tuple[str, ...], results: Path) -> str:
    """A page with its parts made anew."""
    text = path.read_text()
    for name in parts:
        text = replace(text, name, part(name, path.parent, results))
    return text


def part(name: str, folder: Path, results: Path) -> str:
    if name in METHODS:
        return diff(name)
    if name in DEVICES:
        return short(results / name, folder)
    if name in FILES:
        file = results / f"{name}.json"
        return FILES[name](json.loads(file.read_text())) if file.exists() else UNMEASURED
    if name == "distributed":
        return ranks(results / RANKS, brief=True)
    if name in APART:
        return apart(results / name / "results.json", APART[name])
    if name in TABLES:
        file, table = TABLES[name]
        return evidence(results / EVIDENCE / f"{file}.json", table)
    files = [results / EVIDENCE / f"{file}.json" for file in CLAIMS[name]]
    if not all(file.exists() for file in files):
        return UNMEASURED
    made: str = getattr(claims, name)(*(json.loads(file.read_text()) for file in files))
    return made


def full(results: Path) -> str:
    """Everything that was measured."""
    parts = [
        "# What `python -m benchmarks` measured",
        "Made by `python -m benchmarks.readme` from the JSON files here.",
        tables.LEGEND,
        *(f"## {device.upper()}\n\n{block(results / device, results)}" for device in DEVICES),
        f"## Many ranks\n\n{ranks(results / RANKS)}",
        "## Evidence",
        *(evidence(file) for file in sorted((results / EVIDENCE).glob("*.json"), reverse=True)),
    ]
    return "\n\n".join(parts) + "\n"


def replace(text: str, name: str, new: str) -> str:
    start, end = f"<!-- benchmarks:{name} -->", f"<!-- /benchmarks:{name} -->"
    for marker in (start, end):
        if text.count(marker) != 1:
            raise ValueError(f"README: got {text.count(marker)} markers {marker}, wanted one")
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{start}\n{new}\n{end}", text)


def diff(method: str) -> str:
    """The lines in which an example differs from its plain form."""
    plain, mast = ((ROOT / "examples" / f"{method}{kind}.py").read_text().splitlines() for kind in ("_plain", ""))
    lines = [line[0] + line[2:] for line in difflib.ndiff(plain, mast) if line[0] in "-+"]
    return "\n".join(["```diff", *lines, "```"])


def short(folder: Path, root: Path) -> str:
    """One table a file, then the pictures of scaling."""
    found = _newest(folder, root)
    measured = [(document, operators) for document, operators, _ in found if operators]
    parts = [
        part for document, operators in measured for part in (tables.caption(document), summary.markdown(operators))
    ]
    parts += [summary.LEGEND] if parts else []
    return "\n\n".join([*parts, *(picture for *_, picture in found if picture)]) or UNMEASURED


def ranks(file: Path, brief: bool = False) -> str:
    """What a batch over many ranks costs each of them, under a caption."""
    if not file.exists():
        return UNMEASURED
    document = json.loads(file.read_text())
    commit, date, torch = document["git"]["commit"], document["date"], document["versions"]["torch"]
    caption = f"gloo on CPU, torch {torch}; commit {(commit or 'none')[:9]}, {date[:10]}. `{document['command']}`"
    return f"{caption}\n\n{distributed.text(document, brief)}"


def evidence(file: Path, table: Callable[[dict[str, Any]], str] = report.text) -> str:
    """What features are worth, under a caption."""
    if not file.exists():
        return UNMEASURED
    document = json.loads(file.read_text())
    caption = _caption(document)
    for earlier in document.get("earlier", []):
        caption += (
            f" {earlier['what']}: commit {earlier['commit'][:9]}, {earlier['date'][:10]}, `{earlier['command']}`."
        )
    return f"{caption}\n\n{table(document)}"


def apart(file: Path, text: Callable[[dict[str, Any]], str]) -> str:
    """A suite of its own under a caption."""
    if not file.exists():
        return UNMEASURED
    document = json.loads(file.read_text())
    return f"{_caption(document)}\n\n{text(document)}"


def _caption(document: dict[str, Any]) -> str:
    machine, settings, seeds = document["machine"], document["settings"], ", ".join(map(str, document["seeds"]))
    spread = "mean ± half of the 95 % interval" if len(document["seeds"]) > 2 else "means, too few for an interval"
    return (
        f"{machine['gpu'] or machine['cpu']}, torch {document['versions']['torch']}; commit "
        f"{(document['git']['commit'] or 'none')[:9]}, {document['date'][:10]}; {settings['steps']} steps of "
        f"{settings['batch']} images, seeds {seeds}; {spread}. `{document['command']}`"
    )


def block(folder: Path, root: Path) -> str:
    """All tables of one device, under a caption for each file."""
    parts = []
    for document, operators, picture in _newest(folder, root):
        parts.append(tables.caption(document))
        parts += [tables.markdown(name, operator) for name, operator in operators.items()]
        parts += [picture] if picture else []
    return "\n\n".join(parts) or UNMEASURED


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
