"""Shared fixtures. The environment is set before torch is imported, so that no compiled code is left over."""

import atexit
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers, and processes of a group, share the folder of this run
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="mast_ops_inductor_")
    atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # as many threads as leave each a core
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton, as torch._dynamo does


_without_ops = Path(__file__).parent / "torchvision_without_ops" / "sitecustomize.py"
_spec = importlib.util.spec_from_file_location("torchvision_without_ops", _without_ops)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_module.define_missing_operators()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def alone():
    """A process group of this process, which ends after the test's own variables.

    Where a DDP model is the last to hold a gloo group, its end waits for gloo's threads with Python's lock in hand.
    """
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
