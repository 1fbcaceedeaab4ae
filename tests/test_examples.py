"""The examples run as a user runs them, and going over to MAST costs at most five lines."""

import difflib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
METHODS = ("simclr", "byol", "vicreg")


def run(script: str, *args: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", [f"{method}{kind}.py" for method in METHODS for kind in ("_plain", "")])
def test_script_trains(script: str):
    match = re.search(r"loss (-?[\d.]+|nan|inf)", run(script, "--steps", "3"))
    assert match
    assert math.isfinite(float(match.group(1)))


@pytest.mark.parametrize("method", METHODS)
def test_mast_is_a_diff_of_at_most_five_lines(method: str):
    plain, mast = ((EXAMPLES / f"{method}{kind}.py").read_text().splitlines() for kind in ("_plain", ""))
    diff = [line for line in difflib.ndiff(plain, mast) if line[:2] in ("+ ", "- ")]
    added = [line for line in diff if line.startswith("+")]
    assert 1 <= len(added) <= 5
    assert len(diff) - len(added) <= 5
    readme = (ROOT / "README.md").read_text()
    for line in added:
        assert f"+{line[2:].lstrip()}" in re.sub(r"^([+-])\s+", r"\1", readme, flags=re.M), f"README lacks {line!r}"


def test_quickstart_prints_a_table_and_writes_its_results(tmp_path: Path):
    printed = run("quickstart.py", "--steps", "3", "--out", str(tmp_path))
    for words in ("class", "color", "orientation", "position", "scale", "mean", "VICReg", "MAST", "no masks", "chance"):
        assert words in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(0 <= run["mean"] <= 100 for runs in results["probes"].values() for run in runs)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"probes", "masks", "overlap", "uncertainty"}
