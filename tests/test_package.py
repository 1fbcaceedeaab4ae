"""What pip gives a user: a light import, typed, built and working outside the checkout."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import mast_ops

ROOT = Path(__file__).parent.parent


def run(*args: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(args, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_import_is_light():
    heavy = "{'triton', 'matplotlib', 'torch._dynamo', 'torch._inductor', 'numpy.testing', 'sklearn'}"
    code = f"import sys, mast_ops; print(sorted({heavy} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).strip() == "[]"


@pytest.mark.parametrize("name", ["checkpoints.load_heads", "plots.plot_pairs", "recipes.make_views"])
def test_names_are_reached_as_the_pages_write_them(name):
    """A line of a page is run as it stands, after the one import that it shows."""
    assert "function" in run(sys.executable, "-c", f"import mast_ops; print(mast_ops.{name})")
    with pytest.raises(AttributeError, match="module 'mast_ops' has no attribute 'plot'"):
        _ = mast_ops.plot


@pytest.mark.parametrize("module", [mast_ops, mast_ops.functional])
def test_public_names_exist_and_are_documented(module):
    for name in module.__all__:
        assert getattr(module, name).__doc__, name


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    return out


def test_wheel_works_outside_the_checkout(distributions: Path, tmp_path: Path):
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "mast_ops/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks"))]
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import torch, mast_ops
        from torch import nn
        assert mast_ops.__file__.startswith(sys.argv[1]), mast_ops.__file__
        head = mast_ops.MaskedSubspaceHead(nn.Linear(8, 4), subspaces=["crop", "color"], uncertainty="subspace")
        loss = mast_ops.SubspaceVICRegLoss()(head(torch.randn(6, 8)), head(torch.randn(6, 8)))
        loss.backward()
        print(loss.isfinite().item())
    """
    code = "\n".join(line.removeprefix(" " * 8) for line in script.splitlines())
    assert run(sys.executable, "-c", code, str(site), cwd=tmp_path).strip() == "True"


def test_sdist_holds_what_is_needed_to_test_it(distributions: Path):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/test_package.py"} <= names


def test_runtime_dependencies_are_three():
    import importlib.metadata

    requires = [r for r in importlib.metadata.requires("mast-ops") or [] if "extra ==" not in r]
    assert sorted(r.split(">")[0] for r in requires) == ["einops", "torch", "typing-extensions"]


def test_the_citation_is_of_this_version():
    assert f"\nversion: {mast_ops.__version__}\n" in (ROOT / "CITATION.cff").read_text()
