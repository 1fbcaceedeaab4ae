"""The one dispatch point: what runs, and what an impossible wish says."""

import builtins
import importlib.util
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from cases import NAMES, make_case

import mast_ops
from mast_ops import functional as MF
from mast_ops import ops
from mast_ops.ops import backend as dispatch

Z = torch.randn(4, 3)
LOSSES = (
    mast_ops.SubspaceBarlowTwinsLoss,
    mast_ops.SubspaceCosineLoss,
    mast_ops.SubspaceNTXentLoss,
    mast_ops.SubspaceVICRegLoss,
    mast_ops.UncertaintyInvarianceLoss,
)


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_gives_the_same(name, monkeypatch):
    if name != "contrast both ways":  # Inductor takes many seconds: once
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    dispatch._compiled.cache_clear()
    case = make_case(name, 6, 5, 3)
    wanted = case.plain(*case.arguments)
    for backend in ("auto", "eager", "compile", "chunked"):
        torch.testing.assert_close(case.fused(*case.arguments, backend=backend), wanted)
    dispatch._compiled.cache_clear()


def test_compile_takes_any_number_of_masks_and_any_mixture_of_dtypes(monkeypatch):
    """Of one piece of code there may be eight compilations, then torch gives up."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    dispatch._compiled.cache_clear()
    try:
        for count in range(1, 10):
            for dtype in (torch.float16, torch.float64):
                case = make_case("contrast", 4, 3, count, dtype=dtype)
                torch.testing.assert_close(case.fused(*case.arguments, backend="compile"), case.plain(*case.arguments))
    finally:
        dispatch._compiled.cache_clear()


@pytest.mark.parametrize(("dtype", "widest"), [(torch.bfloat16, 1024), (torch.float16, 1024), (torch.float32, 256)])
def test_auto_on_a_gpu_leaves_wide_pairs_to_products(dtype, widest, monkeypatch):
    """But half precision alone where anchors read masks of their own: else Triton's backend has products too."""
    monkeypatch.setattr(dispatch, "_forced", "auto")
    monkeypatch.setattr(dispatch, "_HAS_TRITON", True)
    for dim, wanted in ((widest, "triton"), (widest + 1, "chunked")):
        z = SimpleNamespace(device=torch.device("cuda"), shape=(4, dim), dtype=dtype)
        assert dispatch.resolve("auto", "contrast by row", z, held=10**6) == wanted
        of_all = "triton" if dtype != torch.float32 else wanted
        assert dispatch.resolve("auto", "contrast", z, held=10**6) == of_all
        assert dispatch.resolve("auto", "pairs", z, held=10**6) == "triton"


def test_the_operators_name_says_whether_anchors_have_masks_of_their_own():
    problem = make_case("contrast", 4, 3, 2).arguments[0]
    by_row = problem._replace(row=torch.zeros(4, dtype=torch.long))
    assert [dispatch.all_pairs(x) for x in (problem, by_row)] == ["contrast", "contrast by row"]


def test_auto_on_cpu(monkeypatch):
    monkeypatch.setattr(dispatch, "_forced", "auto")
    for operator in ("pairs", "contrast", "moments"):
        assert dispatch.resolve("auto", operator, Z, held=10**6) == "chunked"
        assert dispatch.resolve("auto", operator, Z, held=10) == "eager"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert dispatch.resolve("auto", "pairs", Z, 10**6) == "eager"
    assert dispatch.resolve("auto", "contrast", Z, 10) == "chunked"
    assert dispatch.resolve("compile", "contrast", Z, 10) == "eager"


def test_auto_elsewhere_is_the_plain_formula():
    assert dispatch.resolve("auto", "pairs", torch.empty(2, 2, device="meta"), 10**6) == "eager"


def test_auto_on_cuda(monkeypatch):
    class OnCuda:
        device, dtype, shape = torch.device("cuda"), torch.float32, (4, 128)

    monkeypatch.setattr(dispatch, "_forced", "auto")
    monkeypatch.setattr(dispatch, "_HAS_TRITON", True)
    assert [dispatch.resolve("auto", operator, OnCuda(), 10) for operator in ("pairs", "contrast", "moments")] == [
        "triton",
        "triton",
        "chunked",
    ]
    OnCuda.shape = (4, 1024)
    assert [dispatch.resolve("auto", operator, OnCuda(), 10) for operator in ("pairs", "contrast")] == [
        "triton",
        "chunked",
    ]
    OnCuda.dtype = torch.float64
    assert dispatch.resolve("auto", "pairs", OnCuda(), 10) == "chunked"
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    OnCuda.dtype = torch.float32
    assert dispatch.resolve("auto", "pairs", OnCuda(), 10) == "chunked"


@pytest.mark.parametrize(
    ("has_triton", "z", "reason"),
    [
        (False, Z, "the triton package is not installed"),
        (True, Z.double(), "the embedding is float64"),
        (True, Z, "kernels run on CUDA, the embedding is on cpu"),
    ],
)
def test_triton_that_cannot_run_says_why(monkeypatch, has_triton, z, reason):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "_HAS_TRITON", has_triton)
    with pytest.raises(ValueError, match=rf"^backend: got 'triton', wanted another.*{reason}"):
        MF.masked_distance(z, z, z, backend="triton")


@pytest.mark.parametrize("loss", LOSSES)
def test_unknown_backend_is_refused_when_a_loss_is_made(loss):
    with pytest.raises(ValueError, match=r"^backend: got 'cuda', wanted one of 'auto', 'eager'"):
        loss(backend="cuda")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_asks_nothing_that_older_compilers_cannot_trace(loss, monkeypatch):
    """Before torch 2.12 they know neither of these two, nor a module's dictionary of attributes."""

    def untraceable(*_):
        raise AssertionError

    module = loss()
    monkeypatch.setattr(torch.amp, "is_autocast_available", untraceable)
    monkeypatch.setattr(importlib.util, "find_spec", untraceable)
    monkeypatch.setattr(builtins, "vars", untraceable)
    module(Z, Z.flip(0), masks=torch.ones(2, 3), kind=torch.tensor([0, 1, 1, 0]))


def test_a_loss_knows_its_own_choices_and_those_of_its_parents():
    class Mine(mast_ops.SubspaceVICRegLoss):
        def __init__(self, *, style="plain", strength=1.0, **options):
            super().__init__(**options)
            self.style = style

    assert Mine._choices == ("backend", "gather_distributed", "normalize", "scope", "style")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [None, torch.tensor([0, 1, 1, 0])])
@pytest.mark.parametrize("backend", ["eager", "compile", "chunked"])
def test_losses_pass_it_on(loss, backend, kind, monkeypatch):
    torch._dynamo.reset()  # every case is another compilation of the same formula, of which there may be eight
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    seen = []
    resolve = dispatch.resolve
    for module in ("pairs", "contrast", "moments"):
        monkeypatch.setattr(
            sys.modules[f"mast_ops.ops.{module}"], "resolve", lambda b, *rest: seen.append(b) or resolve(b, *rest)
        )
    pair = (Z, Z.flip(0))
    options = {"masks": torch.rand(2, 3), "kind": kind}
    value = loss(backend=backend)(*pair, **options)
    assert set(seen) == {backend}
    torch.testing.assert_close(value, loss()(*pair, **options))


def run(code: str, value: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, dispatch.VARIABLE: value}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_environment_variable_replaces_auto():
    code = (
        "import torch; from mast_ops.ops.backend import resolve; z = torch.zeros(1, 1);"
        "print(resolve('auto', 'pairs', z, 1), resolve('chunked', 'pairs', z, 1))"
    )
    assert run(code, "eager").stdout.split() == ["eager", "chunked"]
    refused = run("import mast_ops", "fast")
    assert refused.returncode != 0
    assert "MAST_OPS_BACKEND: got 'fast', wanted one of 'auto'" in refused.stderr


def test_importing_the_library_does_not_import_triton():
    code = "import sys, torch, mast_ops; from mast_ops import functional as f; z = torch.ones(400, 400);"
    code += "f.masked_distance(z, z, z); print('triton' in sys.modules)"
    assert run(code, "auto").stdout.strip() == "False"


def test_backends_are_those_that_are_documented():
    assert ops.BACKENDS == ("auto", "eager", "compile", "chunked", "triton")
