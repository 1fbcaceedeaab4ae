"""A Triton cache made without a GPU: there, and not made twice. One small kernel stands for all.

The model of time compiles in the same way, and starts here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cache
from benchmarks.contenders import SUITES

PROGRAM = """
import torch
from benchmarks import predict
from mast_ops.kernels.contract import Contrast
from mast_ops.kernels.triton._plan import Plan
z, ids = torch.ones(16, 16), torch.arange(16)
plan = Plan(Contrast(z, None, torch.ones(1, 16), torch.tensor(1.0), ids, None))
(piece,) = predict.launched(lambda: plan.pack(slice(0, 1)))
assert piece.name == "pack" and piece.overlapped > 0
"""


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)

    def files() -> dict[Path, int]:
        subprocess.run([sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[1], env=environment, check=True)
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")}

    first = files()
    assert {path.stem for path in first} == {"pack"}
    assert files() == first


def test_every_suite_has_its_kernels() -> None:
    """Moments launch none: they are products alone."""
    assert SUITES.keys() - cache._KERNELS.keys() == {"moments"}


def test_sums_of_pairs_are_there_in_one_part_and_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from mast_ops.kernels.triton import pairs

    found: set[tuple[str, bool]] = set()

    def on_grid(kernel, grid):
        def launch(*args, **_):
            found.add((kernel.__name__, dict(zip(kernel.arg_names, args, strict=False)).get("parts") is None))

        return launch

    monkeypatch.setattr(type(pairs._distance), "__getitem__", on_grid)
    monkeypatch.setattr(cache, "launched", lambda dtype: {("pairs", cache.Shape(256, 32, 2))})
    monkeypatch.setattr(cache, "pretend", lambda: None)
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # and the environment is put back
    monkeypatch.setenv("TRITON_INTERPRET", "")
    cache.main(["nowhere"])
    kernels = ("_distance", "_distance_backward", "_gap_sums", "_products", "_products_backward")
    assert found >= {(name, whole) for name in kernels for whole in (True, False)}
