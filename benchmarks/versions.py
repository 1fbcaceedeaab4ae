"""The core tests on other releases of torch, each in a new environment. Takes gigabytes, so that no CI runs it.

python -m benchmarks.versions --folder /tmp/environments             # all that are named below
python -m benchmarks.versions --folder /tmp/environments --only oldest --keep

An environment is tried with the Python that its entry names, found on the path; where there is none it is left out.
Other releases of torch bring CUDA with them, and run on a CPU.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.tables import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
OTHERS = ("einops>=0.8", "typing-extensions>=4.12", "pytest>=8", "hypothesis>=6.100", "scipy")
PARTS = {  # columns of the table; what pytest is given
    "compiled": (
        *(f"tests/test_{name}.py" for name in ("losses", "bad_input", "head", "ops", "sigmoid", "multi_view")),
        *("-k", "compiles_whole or out_of_range_under_compile"),
    ),
    "losses": ("tests/test_losses.py", "-k", "not compile"),
    "masks, checkpoints": ("tests/test_masks.py", "tests/test_binary_masks.py", "tests/test_resume.py"),
    "heads": ("tests/test_head.py", "-k", "not compile"),
    "views": ("tests/test_views.py",),
    "operators": (
        "tests/test_ops.py",
        *("-k", "equals_the_plain or autocast or same_twice or second_gradient or transforms"),
    ),
    "Triton, interpreted": ("tests/test_ops.py", "-k", "any_layout and triton"),
    "Triton, compiled": ("tests/test_triton_compile.py",),
}


class Environment(NamedTuple):
    python: str
    torch: str
    triton: str | None = None  # None: the one that torch brings
    numpy: str = "numpy"


ENVIRONMENTS = {
    "oldest": Environment("3.12", "2.11.0", "3.6.0", "numpy<2.4"),  # Triton 3.6 interprets with no newer one
    "pinned": Environment("3.11", "2.13.0", "3.7.1"),
    "newest": Environment("3.13", "2.14.1"),
    "newest, Python 3.14": Environment("3.14", "2.14.1"),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.versions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the environments, 6 GB each")
    parser.add_argument("--only", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--keep", action="store_true", help="leave the environments there, to be used again")
    parser.add_argument("--json", type=Path, default=RESULTS, help="entries of earlier runs stay, unless made again")
    args = parser.parse_args(argv)
    git = machine.record("cpu")["git"]  # before the results are written
    for name in args.only:
        print(f"{name}: {ENVIRONMENTS[name]}", flush=True)
        folder = args.folder / re.sub(r"\W+", "-", name)
        for result in tried(name, folder):
            write(args.json, name, result | {"git": git})
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)


def tried(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """What one environment is, and how many tests passed in each part that has run so far."""
    wanted = ENVIRONMENTS[name]
    command = shutil.which(f"python{wanted.python}")
    if command is None:
        yield {"left_out": f"no Python {wanted.python}"}
        return
    if not (folder / "made").exists():
        make(folder, command, wanted)
    python = str(folder / "bin" / "python")
    facts, parts = described(python), dict[str, Any]()
    for part, arguments in PARTS.items():
        parts[part] = counted(python, arguments)
        yield {**facts, "parts": parts}


def make(folder: Path, command: str, wanted: Environment) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([command, "-m", "venv", str(folder)], check=True)
    triton = [f"triton=={wanted.triton}"] if wanted.triton else []
    packages = [f"torch=={wanted.torch}", *triton, wanted.numpy, *OTHERS]
    subprocess.run([str(folder / "bin" / "pip"), "install", "-q", "--no-cache-dir", *packages], check=True)
    (folder / "made").touch()


def described(python: str) -> dict[str, str]:
    code = (
        "import importlib.util, json, platform, torch\n"
        "from importlib.metadata import version\n"
        "triton = version('triton') if importlib.util.find_spec('triton') else 'none'\n"
        "print(json.dumps({'python': platform.python_version(), 'torch': torch.__version__, 'triton': triton}))"
    )
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def counted(python: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """How many tests passed, failed and were skipped; names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--junitxml", str(report)]
        done = subprocess.run([python, "-m", "pytest", *options, *arguments], cwd=ROOT, capture_output=True, text=True)
        print(done.stdout[-2000:], flush=True)
        if not report.exists():
            return {"error": (done.stdout + done.stderr)[-2000:]}
        return read(report.read_text())


def read(report: str) -> dict[str, Any]:
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "skipped": len(skipped),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
    }


def write(path: Path, name: str, result: dict[str, Any]) -> None:
    document = json.loads(path.read_text()) if path.exists() else {"environments": {}}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    made = document["environments"] | {name: result | {"date": date}}
    document["environments"] = {key: made[key] for key in ENVIRONMENTS if key in made}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def markdown(document: dict[str, Any]) -> str:
    """One line an environment, one column a part: how many passed, and failed where any did."""
    lines = []
    ran = [entry for entry in document["environments"].values() if "parts" in entry]
    for entry in ran:
        counts = [cell(entry["parts"].get(part)) for part in PARTS]
        lines.append([entry["torch"], entry["triton"], entry["python"], *counts])
    dates = sorted({entry["date"][:10] for entry in ran})
    rows = table(["torch", "Triton", "Python", *PARTS], lines, left=3)
    return f"{rows}\n\nTests that passed, on a CPU, {', '.join(dates)}. `python -m benchmarks.versions`"


def cell(part: dict[str, Any] | None) -> str:
    if part is None:
        return "not run"
    if "error" in part:
        return "did not start"
    return f"{part['passed']:,}" + (f", {len(part['failed'])} failed" if part["failed"] else "")


if __name__ == "__main__":
    main(sys.argv[1:])
