"""``python -m mast_ops inspect``: right about heads, and harmless with any other file."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mast_ops import MaskedSubspaceHead, SigmoidMasks
from mast_ops.__main__ import main
from mast_ops.checkpoints import load_heads
from mast_ops.masks import MASKS, BinaryMasks

NAMES = ["crop", "color", "blur"]


def head(**options) -> MaskedSubspaceHead:
    return MaskedSubspaceHead(nn.Linear(4, 8), NAMES, **options)


def inspect(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["inspect", str(path), *options])
    return code, *capsys.readouterr()


def saved(value: object, folder: Path) -> Path:
    torch.save(value, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_those_of_the_head_in_eval(kind, tmp_path):
    one = head(masks=kind).eval()
    (found,) = load_heads(saved(one.state_dict(), tmp_path)).values()
    assert found.subspaces == tuple(NAMES)
    assert found.is_known
    torch.testing.assert_close(found.masks, one.masks().detach())


def test_settings_that_are_no_defaults_are_kept(tmp_path):
    from mast_ops import HardConcreteMasks, NormalizedMasks

    for masks in (
        NormalizedMasks(3, 8, coverage=0.3),
        HardConcreteMasks(3, 8, temperature=0.4, stretch=(-0.3, 1.2)),
        BinaryMasks(3, 8, coverage=0.3, temperature=0.4),
    ):
        one = head(masks=masks).eval()
        (found,) = load_heads(saved(one.state_dict(), tmp_path)).values()
        torch.testing.assert_close(found.masks, one.masks().detach())


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": {f"net.{key}": x for key, x in state.items()}, "epoch": 3}, "state_dict.net"),
        (lambda state: {"model": {"head": dict(state)}, "optimizer": {"state": {0: {}}}}, "model.head"),
        (lambda state: {f"module._orig_mod.{key}": x for key, x in state.items()}, "module._orig_mod"),
    ],
)
def test_heads_are_found_wherever_they_are(wrap, place, tmp_path):
    assert list(load_heads(saved(wrap(head().state_dict()), tmp_path))) == [place]


def test_of_several_heads_one_is_asked_for(tmp_path, capsys):
    model = nn.ModuleDict({"a": head(), "b": head()})
    path = saved(model.state_dict(), tmp_path)
    code, out, error = inspect(path, capsys)
    assert (code, out) == (2, "")
    assert "--head: got None, wanted one of the heads in this file: 'a', 'b'" in error
    assert inspect(path, capsys, "--head", "b")[0] == 0


def test_it_prints_tables_and_writes_files(tmp_path, capsys):
    one = head(masks=BinaryMasks(3, 8, coverage=0.75), uncertainty="subspace")
    with torch.no_grad():
        one.uncertainty.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    path = saved(one.state_dict(), tmp_path)
    code, out, _ = inspect(path, capsys, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))
    assert code == 0
    for words in (
        *NAMES,
        "K=3 subspaces of D=8",
        "binary masks (coverage 0.75",
        "Overlap",
        "log-variance",
        "unique",
        "open in no",
    ):
        assert words in out
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["subspaces"] == NAMES
    assert written["log_variance"] == pytest.approx([8 * torch.tanh(torch.tensor(x / 8)).item() for x in (-1, 0, 1)])
    assert [a + b for a, b in zip(written["unique"], written["shared"], strict=True)] == [
        round(8 * x) for x in written["density"]
    ]
    assert written["density"] == [0.75] * 3
    assert {file.name for file in tmp_path.iterdir()} == {"model.pt", "a.json", "a.png"}
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_parameterisation_of_ones_own_shows_its_weights(tmp_path, capsys):
    class Own(SigmoidMasks):
        pass

    one = head(masks=Own(3, 8))
    path = saved(one.state_dict(), tmp_path)
    assert not load_heads(path)[""].is_known
    torch.testing.assert_close(load_heads(path)[""].masks, one.masks.weight.detach())
    assert "Own is no parameterisation of mast_ops" in inspect(path, capsys)[2]


class Hostile:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def garbled(state: dict, **entries: object) -> dict:
    return {**state, **entries}


def code(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode("utf-8", "surrogateescape")), dtype=torch.uint8)


BAD = {
    "missing": lambda f: f / "nothing.pt",
    "folder": lambda f: f,
    "empty": lambda f: _bytes(f, b""),
    "text": lambda f: _bytes(f, b"hello, this is no checkpoint\n" * 100),
    "truncated": lambda f: _bytes(f, saved(head().state_dict(), f).read_bytes()[:-200]),
    "zip of something else": lambda f: _bytes(f, b"PK\x05\x06" + bytes(18)),
    "pickle that runs": lambda f: _bytes(f, pickle.dumps(Hostile(f / "ran"))),
    "checkpoint that runs": lambda f: saved({"state_dict": head().state_dict(), "x": Hostile(f / "ran")}, f),
    "whole module": lambda f: saved(head(), f),
    "a tensor": lambda f: saved(torch.zeros(3), f),
    "no head": lambda f: saved(nn.Linear(2, 2).state_dict(), f),
    "state of another kind": lambda f: saved(garbled(head().state_dict(), _extra_state=3), f),
    "state that is no text": lambda f: saved(garbled(head().state_dict(), _extra_state=code("\udcff\udcfe")), f),
    "state that is no JSON": lambda f: saved(garbled(head().state_dict(), _extra_state=code("{")), f),
    "state that is too deep": lambda f: saved(garbled(head().state_dict(), _extra_state=code("[" * 100_000)), f),
    "state without names": lambda f: saved(garbled(head().state_dict(), _extra_state=code('{"masks": {}}')), f),
    "state with no masks": lambda f: saved(garbled(head().state_dict(), _extra_state=code('{"subspaces": ["a"]}')), f),
    "unknown settings": lambda f: saved(
        garbled(
            head().state_dict(),
            _extra_state=code('{"subspaces": ["a", "b", "c"], "masks": {"kind": "relu", "__class__": 1}}'),
        ),
        f,
    ),
    "other K": lambda f: saved(garbled(head().state_dict(), **{"masks.weight": torch.zeros(2, 8)}), f),
    "masks of integers": lambda f: saved(garbled(head().state_dict(), **{"masks.weight": torch.ones(3, 8).long()}), f),
    "masks of text": lambda f: saved(garbled(head().state_dict(), **{"masks.weight": "weights"}), f),
    "masks of NaN": lambda f: saved(garbled(head().state_dict(), **{"masks.weight": torch.full((3, 8), torch.nan)}), f),
    "uncertainty of text": lambda f: saved(garbled(head().state_dict(), **{"uncertainty.bias": "bias"}), f),
}


def _bytes(folder: Path, content: bytes) -> Path:
    path = folder / "model.pt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("what", BAD)
def test_any_other_file_is_refused_and_nothing_is_written(what, tmp_path, capsys):
    path = BAD[what](tmp_path)
    before = set(tmp_path.iterdir())
    results = tmp_path / "out.json"
    status, out, error = inspect(path, capsys, "--json", str(results), "--plot", str(tmp_path / "out.png"))
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert "weights_only" not in error  # torch's advice to run what the file holds
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threshold", "2"), "--threshold: got 2.0, wanted a number from 0 to 1"),
        (("--plot", "/nowhere/a.png"), "--plot: got /nowhere/a.png, wanted a file in a folder that exists"),
        (("--plot", "a.xyz"), "--plot: got a.xyz"),
        (("--head", "x"), "--head: got 'x', wanted one of the heads in this file: ''"),
    ],
)
def test_bad_options_are_named(options, words, tmp_path, capsys, monkeypatch):
    path = saved(head().state_dict(), tmp_path)
    monkeypatch.chdir(tmp_path)
    status, _, error = inspect(path, capsys, *options)
    assert status == 2
    assert words in error
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_it_runs_as_a_module(tmp_path):
    path = saved(head().state_dict(), tmp_path)
    done = subprocess.run([sys.executable, "-m", "mast_ops", "inspect", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "crop" in done.stdout
