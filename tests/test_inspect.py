"""``python -m mast_ops inspect``: right about heads, and harmless with any other file."""

import argparse
import collections
import io
import json
import os
import pickle
import subprocess
import sys
import types
import warnings
from pathlib import Path, PureWindowsPath

import pytest
import torch
from torch import nn

from mast_ops import MaskedSubspaceHead, SigmoidMasks
from mast_ops.__main__ import main
from mast_ops.checkpoints import load_heads
from mast_ops.head._state import decode_state
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
        one.uncertainty.last.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    path = saved(one.state_dict(), tmp_path)
    code, out, _ = inspect(path, capsys, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))
    assert code == 0
    for words in (
        *NAMES,
        "K=3 subspaces of D=8",
        "binary masks (coverage 0.75",
        "Overlap",
        "log-variance",
        "it alone",
        "closed by exactly",
    ):
        assert words in out
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["subspaces"] == NAMES
    assert written["log_variance"] == pytest.approx([8 * torch.tanh(torch.tensor(x / 8)).item() for x in (-1, 0, 1)])
    assert written["closed"] == written["closed_alone"] == [2, 2, 2]
    assert written["closed_by"] == [{"masks": names, "dimensions": 2} for names in ([], *([name] for name in NAMES))]
    assert written["overlap"] == torch.eye(3).tolist()
    assert {file.name for file in tmp_path.iterdir()} == {"model.pt", "a.json", "a.png"}
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_kinds_of_pairs_are_read_and_named(tmp_path, capsys):
    kinds = torch.tensor([[True, False, False], [True, False, True], [True, True, True]])
    path = saved(head(kinds=kinds).state_dict(), tmp_path)
    assert torch.equal(load_heads(path)[""].kinds, kinds)
    code, out, _ = inspect(path, capsys, "--json", str(tmp_path / "a.json"))
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert all(line in lines for line in (["crop", "0"], ["crop+blur", "1"], ["all", "2"]))
    assert json.loads((tmp_path / "a.json").read_text())["kinds"] == ["crop", "crop+blur", "all"]


def test_kinds_that_a_head_was_not_told_are_said_to_be_unknown(tmp_path, capsys):
    """As a loss says, which refuses ``kind`` with it. One at a time is something that a head is told."""
    path = saved(head().state_dict(), tmp_path)
    assert load_heads(path)[""].kinds is None
    code, out, _ = inspect(path, capsys, "--json", str(tmp_path / "a.json"))
    assert code == 0
    assert "Kinds of pairs are not known" in out
    assert json.loads((tmp_path / "a.json").read_text())["kinds"] is None
    told = torch.eye(3, dtype=torch.bool)
    assert torch.equal(load_heads(saved(head(kinds=told).state_dict(), tmp_path))[""].kinds, told)


@pytest.mark.parametrize("granularity", ["sample", "subspace", "dimension"])
def test_uncertainty_is_what_the_head_says_whatever_its_width(granularity, tmp_path, capsys):
    one = MaskedSubspaceHead(nn.Linear(4, 3), NAMES, masks="sigmoid", uncertainty=granularity)  # K = D
    path = saved(one.state_dict(), tmp_path)
    assert load_heads(path)[""].granularity == granularity
    out = inspect(path, capsys)[1]
    assert ("log-variance\n" in out) == (granularity == "subspace")  # a column
    assert (f"Log-variance per {granularity}" in out) == (granularity != "subspace")


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


def own(number: str) -> torch.Tensor:
    text = '{"subspaces": ["a", "b", "c"], "masks": {"kind": "own", "x": %s}, "kinds": null, "uncertainty": null}'
    return code(text % number)


class Attributed:
    """Unpickled, it is a tensor with an attribute in the place of one of a tensor's own."""

    def __init__(self, name: str, value: object = collections.OrderedDict) -> None:
        self.attributes = {name: value}

    def __reduce__(self):
        whole = torch.ones(3, 8)
        args = (whole.untyped_storage(), 0, (3, 8), (8, 1), False, collections.OrderedDict())
        args = (torch.storage.TypedStorage(wrap_storage=args[0], dtype=whole.dtype, _internal=True), *args[1:])
        return torch._tensor._rebuild_from_type_v2, (
            torch._utils._rebuild_tensor_v2,
            torch.Tensor,
            args,
            self.attributes,
        )


def stating(**change: object) -> dict:
    """The state of a head that says something else of itself; ... leaves an entry out."""
    state = head().state_dict()
    said = {**decode_state(state["_extra_state"]), **change}
    return garbled(state, _extra_state=code(json.dumps({key: x for key, x in said.items() if x is not ...})))


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
    **{
        f"state with {words}": lambda f, change=change: saved(stating(**change), f)
        for words, change in {
            "no names": {"subspaces": ...},
            "names that are no list": {"subspaces": "abc"},
            "names that are numbers": {"subspaces": [1, 2, 3]},
            "names that are alike": {"subspaces": ["a", "b", "a"]},
            "no masks": {"masks": ...},
            "masks of no kind": {"masks": {"coverage": 0.5}},
            "unknown settings": {"masks": {"kind": "relu", "__class__": 1}},
            "no kinds of pairs": {"kinds": ...},
            "kinds that are no table": {"kinds": [True, False, True]},
            "kinds of numbers": {"kinds": [[1, 0, 1]]},
            "kinds of another K": {"kinds": [[True, False]]},
            "a kind that differs in nothing": {"kinds": [[True, False, True], [False, False, False]]},
            "no uncertainty": {"uncertainty": ...},
            "uncertainty of pixels": {"uncertainty": "pixel"},
            "uncertainty that is a list": {"uncertainty": ["sample"]},
            "uncertainty that no layer predicts": {"uncertainty": "sample"},
        }.items()
    },
    "other K": lambda f: saved(garbled(head().state_dict(), **{"masks.weight": torch.zeros(2, 8)}), f),
    "masks of integers": lambda f: saved(garbled(head().state_dict(), **{"masks.weight": torch.ones(3, 8).long()}), f),
    "masks of text": lambda f: saved(garbled(head().state_dict(), **{"masks.weight": "weights"}), f),
    "masks of NaN": lambda f: saved(garbled(head().state_dict(), **{"masks.weight": torch.full((3, 8), torch.nan)}), f),
    **{
        f"uncertainty of {words}": lambda f, bias=bias: saved(
            garbled(head(uncertainty="subspace").state_dict(), **{"uncertainty.last.bias": bias}), f
        )
        for words, bias in {
            "text": "bias",
            "integers": torch.zeros(3, dtype=torch.int64),
            "another width": torch.zeros(8),
            "no width": torch.zeros(0),
        }.items()
    },
    **{
        f"masks that are {words}": lambda f, change=change: saved(
            garbled(head().state_dict(), **{"masks.weight": change(torch.rand(3, 8))}), f
        )
        for words, change in {
            "sparse": torch.Tensor.to_sparse,
            "float8": lambda x: x.to(torch.float8_e4m3fn),
            "on the meta device": lambda x: x.to("meta"),
            "a few numbers said often": lambda x: x[:, :1].expand(3, 10**12),
            "infinite": lambda x: x / 0,
            "complex": lambda x: x.to(torch.complex64),
        }.items()
    },
    **{
        f"a bias that is {words}": lambda f, change=change: saved(
            garbled(head(uncertainty="subspace").state_dict(), **{"uncertainty.last.bias": change(torch.rand(3))}), f
        )
        for words, change in {
            "NaN": lambda x: x * torch.nan,
            "sparse": torch.Tensor.to_sparse,
            "on the meta device": lambda x: x.to("meta"),
            "float8": lambda x: x.to(torch.float8_e4m3fn),
        }.items()
    },
    **{
        f"a state that is {words}": lambda f, change=change: saved(
            garbled(head().state_dict(), _extra_state=change(head().state_dict()["_extra_state"])), f
        )
        for words, change in {
            "sparse": torch.Tensor.to_sparse,
            "on the meta device": lambda x: x.to("meta"),
            "of a million million bytes": lambda x: x[:1].expand(10**12),
            "a row": lambda x: x[None],
        }.items()
    },
    **{
        f"settings with {words}": lambda f, masks=masks: saved(stating(masks=masks), f)
        for words, masks in {
            "a stretch of one number": {"kind": "hard_concrete", "temperature": 0.5, "stretch": [-0.1]},
            "a stretch that is a number": {"kind": "hard_concrete", "temperature": 0.5, "stretch": 1.0},
            "a stretch of words": {"kind": "hard_concrete", "temperature": 0.5, "stretch": ["a", "b"]},
            "a coverage that is a word": {"kind": "binary", "coverage": "0.5", "temperature": 1.0},
            "a coverage that is huge": {"kind": "normalized", "coverage": 10**400},
            "a size": {"kind": "relu", "dim": 3},
        }.items()
    },
    "state with NaN": lambda f: saved(
        garbled(
            head().state_dict(),
            _extra_state=code(
                '{"subspaces": ["a", "b", "c"], "masks": {"kind": "own", "x": NaN}, "kinds": null, "uncertainty": null}'
            ),
        ),
        f,
    ),
    **{
        f"a state in {dtype}": lambda f, change=change: saved(
            garbled(head().state_dict(), _extra_state=change(head().state_dict()["_extra_state"])), f
        )
        for dtype, change in {
            "uint16": lambda x: x.to(torch.uint16),
            "uint64": lambda x: x.to(torch.uint64),
            "bits": lambda x: x.view(torch.bits8),
            "complex numbers": lambda x: x.to(torch.complex64),
            "quantized numbers": lambda x: torch.quantize_per_tensor(x.float(), 1.0, 0, torch.quint8),
        }.items()
    },
    **{
        f"settings with {words}": lambda f, text=text: saved(garbled(head().state_dict(), _extra_state=own(text)), f)
        for words, text in {"an infinite number": "1e999", "a number of 5,000 digits": "9" * 5000}.items()
    },
    **{
        f"masks with a {name} of their own": lambda f, name=name: saved(
            garbled(head().state_dict(), **{"masks.weight": Attributed(name)}), f
        )
        for name in ("data", "dtype", "layout", "is_meta")
    },
    "quantized masks": lambda f: saved(
        garbled(
            head().state_dict(), **{"masks.weight": torch.quantize_per_tensor(torch.ones(3, 8), 0.1, 0, torch.qint8)}
        ),
        f,
    ),
    "masks whose mean is infinite": lambda f: saved(
        garbled(stating(masks={"kind": "own"}), **{"masks.weight": torch.full((3, 8), 1e308, dtype=torch.float64)}), f
    ),
    "more names than a table has room for": lambda f: saved(
        garbled(stating(subspaces=[str(k) for k in range(20_000)]), **{"masks.weight": torch.zeros(20_000, 1)}), f
    ),
    "more names than a picture has room for": lambda f: saved(
        garbled(stating(subspaces=[str(k) for k in range(65)]), **{"masks.weight": torch.zeros(65, 8)}), f
    ),
    "a name that is a book": lambda f: saved(stating(subspaces=["a" * 500_000, "b", "c"]), f),
    "a pipe": lambda f: (os.mkfifo(f / "model.pt"), f / "model.pt")[1],
    "a ring": lambda f: ((f / "model.pt").symlink_to(f / "model.pt"), f / "model.pt")[1],
    "a name that no file has": lambda f: f / ("a" * 5000),
    "names that are blank": lambda f: saved(stating(subspaces=["a", " ", "b"]), f),
    "two heads at one place": lambda f: saved(
        {
            "a": {"b": head().state_dict()},
            **{f"a.b.{key}": x for key, x in head().state_dict().items()},
        },
        f,
    ),
    "uncertainty of nobody": lambda f: saved(
        garbled(head().state_dict(), **{"uncertainty.last.bias": torch.zeros(3)}), f
    ),
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
        (("--plot", "a.xyz"), "--plot: got a.xyz, wanted a name that ends in .png, .pdf, .svg"),
        (("--plot", "a"), "--plot: got a, wanted a name that ends in"),
        (("--json", "model.pt"), "--json: got model.pt, wanted another file than the checkpoint"),
        (("--json", "../{folder}/model.pt"), "wanted another file than the checkpoint"),
        (("--plot", "a.png", "--json", "a.png"), "--json: got a.png, wanted another file than --plot"),
        (("--json", "."), "--json: got ., wanted a file"),
        (("--head", "x"), "--head: got 'x', wanted one of the heads in this file: ''"),
    ],
)
def test_bad_options_are_named(options, words, tmp_path, capsys, monkeypatch):
    path = saved(head().state_dict(), tmp_path)
    monkeypatch.chdir(tmp_path)
    before = path.read_bytes()
    status, out, error = inspect(path, capsys, *(option.format(folder=tmp_path.name) for option in options))
    assert (status, out) == (2, "")
    assert words in error
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_a_checkpoint_is_not_overwritten_by_another_of_its_names(tmp_path, capsys):
    path = saved(head().state_dict(), tmp_path)
    before = path.read_bytes()
    (tmp_path / "soft.json").symlink_to(path)
    os.link(path, tmp_path / "hard.json")
    for name in ("soft.json", "hard.json"):
        assert inspect(path, capsys, "--json", str(tmp_path / name))[0] == 2
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("last", ["--json", "--plot"])
def test_of_two_files_both_are_written_or_none(last, tmp_path, capsys, monkeypatch):
    path = saved(head().state_dict(), tmp_path)
    places = {"--plot": tmp_path / "a.png", "--json": tmp_path / "a.json"}
    for place in places.values():
        place.write_text("as it was")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    move = Path.replace

    def refuse(self, target):
        if target == places[last]:
            raise PermissionError(f"no place for {target}")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    status, out, error = inspect(path, capsys, *(str(x) for option in places.items() for x in option))
    assert (status, out) == (2, "")
    assert "no place for" in error
    monkeypatch.undo()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_where_none_was_before_none_is_left(tmp_path, capsys, monkeypatch):
    path = saved(head().state_dict(), tmp_path)

    def refuse(self, target):
        raise PermissionError("no place")

    monkeypatch.setattr(Path, "replace", refuse)
    assert inspect(path, capsys, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))[0] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


ESCAPE = "\x1b[2J\x07\n\u202e\ud800"


def test_what_a_terminal_would_obey_is_escaped(tmp_path, capsys):
    said = {"subspaces": [f"a{ESCAPE}", "$\\frac{", "c"], "masks": {"kind": f"own{ESCAPE}", f"x{ESCAPE}": ESCAPE}}
    path = saved({f"model{ESCAPE}": stating(**said), "other": {}}, tmp_path)
    status, out, error = inspect(path, capsys, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))
    assert status == 0, error
    for words in (out, error):
        assert r"\x1b[2J\x07\n\u202e\ud800" in words
        assert not set(ESCAPE) - {"\n"} & set(words) - set("[2J")
    assert json.loads((tmp_path / "a.json").read_text())["subspaces"] == said["subspaces"]
    error = inspect(path, capsys, "--head", f"x{ESCAPE}")[2]
    assert error.isascii()
    assert len(error.splitlines()) == 1


def test_signs_that_the_terminal_lacks_are_escaped(tmp_path):
    path = saved(stating(subspaces=["\u753b", "b", "c"]), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "mast_ops", "inspect", str(path)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u753b" in done.stdout


def test_reading_a_head_draws_nothing(tmp_path):
    path = saved(head(masks="hard_concrete").state_dict(), tmp_path)
    before = torch.get_rng_state()
    load_heads(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("path", [None, 3, io.BytesIO(), ["a"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(TypeError, match=r"^path: got"):
        load_heads(path)


def test_a_path_of_bytes_is_refused(tmp_path):
    class Bytes:
        def __fspath__(self):
            return os.fsencode(tmp_path / "model.pt")

    with pytest.raises(TypeError, match=r"^path: got b'.*, wanted the path of a file, as text"):
        load_heads(Bytes())


@pytest.mark.parametrize("what", ["a\0b", "a" * 5000])
def test_a_path_that_cannot_be_looked_up_is_refused_by_name(what):
    with pytest.raises(ValueError, match=r"^checkpoint: got .* it cannot be looked up"):
        load_heads(what)


@pytest.mark.parametrize(
    "name", ["detach", "dim", "untyped_storage", "numel", "isfinite", "clone", "is_floating_point"]
)
def test_what_a_file_gives_a_tensor_is_not_called(name, tmp_path):
    """Attributes in the place of methods: a file may say that a tensor's detach() is something else."""
    path = saved(garbled(stating(masks={"kind": "relu"}), **{"masks.weight": Attributed(name)}), tmp_path)
    assert torch.equal(load_heads(path)[""].masks, torch.ones(3, 8))


def test_keys_of_any_kind_have_a_name(tmp_path):
    path = saved({torch.zeros(3).to_sparse(): stating(), 3: stating()}, tmp_path)
    assert list(load_heads(path)) == ["Tensor", "3"]


def test_names_in_a_picture_have_room_and_are_told_apart(tmp_path, capsys):
    names = ["a" * 100 + "b", "a" * 100 + "c", "d\n"]
    path = saved(stating(subspaces=names), tmp_path)
    with warnings.catch_warnings(action="error"):
        assert inspect(path, capsys, "--plot", str(tmp_path / "a.png"))[0] == 0


@pytest.mark.parametrize(
    ("output", "status", "words"),
    [(">/dev/full", 2, "error: [Errno 28]"), (">&-", 0, ""), ("| true", 1, "")],
)
def test_an_output_that_takes_nothing_leaves_no_traceback(output, status, words, tmp_path):
    path = saved(stating(), tmp_path)
    command = f'set -o pipefail; {sys.executable} -m mast_ops inspect "{path}" {output}'
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # as it is for most, so that Python's last words are seen too
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, env=buffered)
    assert done.returncode in (status, 0 if output == "| true" else status)  # the pipe may close late
    assert done.stderr.startswith(words)
    assert len(done.stderr.splitlines()) == bool(words)


def test_refusals_say_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="it is a folder; dcp_to_torch_save makes a file"):
        load_heads(tmp_path)
    with pytest.raises(ValueError, match=r"holds more than tensors and containers \((posix|nt)\.mkdir\)"):
        load_heads(saved({"x": Hostile(tmp_path / "ran")}, tmp_path))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(
        ValueError, match=r"\(collections\.deque\); save the model's state_dict\(\) alone, in a file of its"
    ):
        load_heads(saved({"model": head().state_dict(), "filter": collections.deque}, tmp_path))


def test_it_runs_as_a_module(tmp_path):
    path = saved(head().state_dict(), tmp_path)
    done = subprocess.run([sys.executable, "-m", "mast_ops", "inspect", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "crop" in done.stdout


def test_what_scripts_keep_beside_a_state_dict_is_read(tmp_path, monkeypatch):
    """Lightning's hyperparameters by a module of its name that is gone when the file is read."""
    place = "lightning_fabric.utilities.data"
    AttributeDict = type("AttributeDict", (dict,), {"__module__": place})  # noqa: N806
    for name in ("lightning_fabric", "lightning_fabric.utilities", place):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[place].AttributeDict = AttributeDict
    head = MaskedSubspaceHead(torch.nn.Linear(4, 40), ["crop", "color"])
    beside = {
        "args": argparse.Namespace(out=Path("runs") / "one", lr=0.1),
        "hyper_parameters": AttributeDict(config=types.SimpleNamespace(path=PureWindowsPath("c:/a"), seed=1)),
    }
    torch.save({"state_dict": head.state_dict(), **beside}, tmp_path / "run.ckpt")
    assert load_heads(tmp_path / "run.ckpt")["state_dict"].subspaces == ("crop", "color")


@pytest.mark.parametrize(("contents", "name"), [([1, 2], "list"), (torch.zeros(3), "Tensor"), (None, "NoneType")])
def test_what_a_file_holds_is_named_by_its_type(tmp_path, contents, name):
    with pytest.raises(ValueError, match=rf"a {name} with no MaskedSubspaceHead in it"):
        load_heads(saved(contents, tmp_path))
