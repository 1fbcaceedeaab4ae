"""The examples run as a user runs them, and going over to MAST costs at most five lines, or six beside a peer.

All run in this process, one after another: to import what they need takes longer than their few steps.
"""

import difflib
import json
import math
import re
import runpy
import socket
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
METHODS = ("simclr", "byol", "vicreg", "multi_crop")
PEERS = ("lightly_simclr", "lightly_byol", "lightning_vicreg")
TINY = ("--epochs", "1", "--images", "32", "--batch", "16", "--workers", "0")


@pytest.fixture
def run(monkeypatch, capsys):
    def run(script: str, *args: str) -> str:
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        finally:
            torch.set_grad_enabled(True)
        return capsys.readouterr().out

    return run


def loss_in(printed: str) -> float:
    match = re.search(r"loss (-?[\d.]+|nan|inf)", printed)
    assert match
    return float(match.group(1))


@pytest.mark.parametrize("script", [f"{method}{kind}.py" for method in METHODS + PEERS for kind in ("_plain", "")])
def test_script_trains(run, script):
    assert math.isfinite(loss_in(run(script, *TINY)))


def test_kornia_and_timm(run):
    assert math.isfinite(loss_in(run("kornia_timm_vicreg.py", *TINY)))


def test_ddp(run, monkeypatch, tmp_path):
    """A world of one: what ranks tell one another is tested in test_distributed.py."""
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    assert math.isfinite(loss_in(run("ddp_simclr.py", *TINY, "--checkpoint", tmp_path / "a.pt")))
    assert torch.load(tmp_path / "a.pt")["epoch"] == 1


@pytest.mark.parametrize("script", ["simclr.py", "lightning_vicreg.py"])
def test_training_goes_on_from_a_checkpoint(run, script, tmp_path):
    place = tmp_path / "a.pt"
    run(script, *TINY, "--checkpoint", place)
    first = torch.load(place)["epoch"]
    printed = run(script, *TINY, "--checkpoint", place, "--epochs", "2", "--workers", "1")
    assert (first, torch.load(place)["epoch"]) == (1, 2)
    assert math.isfinite(loss_in(printed))


def diff_to_mast(method: str) -> tuple[list[str], list[str]]:
    """Lines that a plain script loses and gains."""
    plain, mast = ((EXAMPLES / f"{method}{kind}.py").read_text().splitlines() for kind in ("_plain", ""))
    diff = list(difflib.ndiff(plain, mast))
    return tuple([line[2:] for line in diff if line.startswith(f"{sign} ")] for sign in "-+")


@pytest.mark.parametrize("method", METHODS)
def test_mast_is_a_diff_of_at_most_five_lines(method: str):
    lost, gained = diff_to_mast(method)
    assert 1 <= len(gained) <= 5
    assert len(lost) <= 5
    page = (EXAMPLES / "README.md").read_text().splitlines()
    for line in gained:
        assert f"+{line}" in page


@pytest.mark.parametrize("method", PEERS)
def test_mast_is_a_diff_of_at_most_six_lines_beside_a_peer(method: str):
    """Six and not five: as in their own examples the loss is made in one line and called in another. Seven go, since
    the peer's loss and its transform are imported from two places."""
    lost, gained = diff_to_mast(method)
    assert 1 <= len(gained) <= 6
    assert len(lost) <= 7


def test_notebook_runs_and_holds_no_output(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    cells = json.loads((EXAMPLES / "masks.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert code.count("STEPS, IMAGES = 150, 1797") == 1
    scope = {}
    exec(code.replace("150, 1797", "2, 200"), scope)
    assert scope["head"].subspaces == tuple(scope["digits"].AUGMENTATIONS)


def test_quickstart_prints_a_table_and_writes_its_results(run, tmp_path: Path):
    printed = run("quickstart.py", "--steps", "2", "--images", "120", "--out", tmp_path)
    for words in ("class", "color", "orientation", "position", "scale", "mean", "VICReg", "MAST", "no masks", "chance"):
        assert words in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(0 <= run["mean"] <= 100 for runs in results["probes"].values() for run in runs)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"probes", "masks", "overlap", "uncertainty"}
