"""Every Triton kernel under a strict interpreter, which sees planted faults. Races inside a program it cannot see."""

import os

import numpy as np
import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("kernels run on the GPU here: compute-sanitizer is for that", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from cases import NAMES, make_case  # noqa: E402
from races import READ, WRITE, History  # noqa: E402
from sanitizer import LaunchError, strict  # noqa: E402
from torch import Tensor  # noqa: E402
from triton.runtime.errors import InterpreterError  # noqa: E402
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _ir  # noqa: E402

from mast_ops.functional import subspace_sigmoid  # noqa: E402
from mast_ops.kernels.contract import Gap, Table  # noqa: E402
from mast_ops.kernels.triton import _launch, pairs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities under the interpreter


# A mean runs the kernels of the losses that it is of, and positives are intervals of any length.
SAME = ("off_diagonal", "contrast_mean", "sigmoid_mean", "many positives")


@pytest.mark.parametrize("name", [name for name in NAMES if not any(same in name for same in SAME)])
def test_no_program_does_what_it_may_not(name: str) -> None:
    """Several tiles in every direction, with remainders; masks with zeros; forward and backward."""
    steps = name.startswith(("contrast", "sigmoid")) and "one row" not in name  # rows longer than whole ones
    case = make_case(name, 18, 36 if steps else 20, 2, dtype=torch.float16, density=0.6)
    with strict() as launched:
        sum(x.sum() for x in case.fused(*case.leaves(), backend="triton")).backward()
    assert launched


@pytest.mark.parametrize("name", ["distance", "products of one row", "contrast both ways", "contrast of itself"])
def test_nor_with_the_tiles_of_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile and a remainder of each side, in half precision; the tests above have several masks."""
    gpu_tiles(monkeypatch)
    monkeypatch.setattr("mast_ops.kernels.triton._plan.WIDE", 256)
    case = make_case(name, 130, 70, 1, dtype=torch.float16, density=0.6)
    with strict() as launched:
        sum(x.sum() for x in case.fused(*case.leaves(), backend="triton")).backward()
    assert launched


def gpu_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "INTERPRETED", False)
    for module in ("_launch", "_plan", "wide"):
        monkeypatch.setattr(f"mast_ops.kernels.triton.{module}.TILE", 128)


@pytest.mark.parametrize("n", [20, 130], ids=["less than a tile", "two stripes of two tiles"])
@pytest.mark.parametrize("name", ["contrast both ways", "contrast of itself", "sigmoid"])
def test_nor_where_torch_multiplies(name: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are longer than the kernels' own products are for, with the tiles of a GPU."""
    gpu_tiles(monkeypatch)
    case = make_case(name, n, 40, 1, dtype=torch.float16, density=0.6)
    assert _launch.WIDE < 40
    with strict() as launched:
        outputs = case.fused(*case.leaves(), backend="triton")
        sum(x.sum() for x in outputs).backward()
    assert launched
    # What torch reads and nobody wrote is not a number.
    wanted = case.plain(*case.leaves(torch.float64))
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=0.02, check_dtype=False)


def test_sigmoids_neither() -> None:
    z0, z1, masks = (torch.randn(shape).requires_grad_() for shape in ((18, 20), (18, 20), (2, 20)))
    with strict() as launched:
        subspace_sigmoid(z0, z1, masks, scale=5.0, bias=-3.0, backend="triton").backward()
    assert {"_sums", "gradient", "unpack"} <= set(launched)


@triton.jit
def _copy(source, target, N, SHIFT: tl.constexpr, LIVE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + at, mask=at < LIVE, other=0)
    tl.store(target + at + SHIFT * (tl.program_id(0) > 0), x, mask=at < N)


@triton.jit
def _pass_on(x, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at + BLOCK * (1 - 2 * tl.program_id(0))))


def copy(source: Tensor, shift: int = 0, live: int = 8) -> None:
    _copy[(2,)](source, torch.zeros(8), 8, shift, live, 4)


def test_a_right_kernel_passes() -> None:
    with strict() as launched:
        copy(torch.ones(8))
    assert launched == ["_copy"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda: copy(torch.ones(16)[:7]), "load out of bounds, next to source"),
        (lambda: copy(torch.ones(8), shift=1), "store out of bounds, next to target"),
        (lambda: copy(torch.ones(8), shift=-1), "two programs write target"),
        (lambda: copy(torch.empty(8)), "reads what nobody wrote, source"),
        (lambda: _pass_on[(2,)](torch.ones(8), 4), "a program reads what another one writes, x"),
    ],
    ids=["read past the end", "written past the end", "written twice", "never written", "read while written"],
)
def test_planted_faults_are_seen(fault, said: str) -> None:
    with strict(), pytest.raises(LaunchError, match=said):
        fault()


def test_a_wrong_bound_in_a_real_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows that are not padded to whole tiles."""
    monkeypatch.setattr(_launch, "TILE", 1)
    monkeypatch.setattr("mast_ops.kernels.triton._plan.TILE", 1)
    case = make_case("contrast", 18, 20, 2, dtype=torch.float32)
    with strict(), pytest.raises(LaunchError, match="out of bounds"):
        case.fused(*case.leaves(), backend="triton")


def plain_count(self, operation, pointers, value, mask, sem, scope):
    """As if there were no atomics."""
    before = self.create_masked_load(pointers, mask, None, None, None, False)
    self.create_masked_store(pointers, TensorHandle(before.data + value.data, before.dtype), mask, None, None)
    return before


def ordered(add, sem=None, scope=None):
    return lambda *given: add(*given[:5], sem or given[5], scope or given[6])


def early(add):
    """The last but one takes itself for the last."""

    def count(*given):
        before = add(*given)
        return TensorHandle(before.data + 1, before.dtype)

    return count


READ_WHILE_WRITTEN, COUNTED = "a program reads what another one writes", "a program counts on what another one writes"


@pytest.mark.parametrize(
    ("atomic", "fault", "said"),
    [
        (True, lambda add: plain_count, f"{READ_WHILE_WRITTEN}, arrived"),
        (True, lambda add: ordered(add, sem=_ir.MEM_SEMANTIC.RELAXED), f"{COUNTED}, arrived"),
        (True, lambda add: ordered(add, sem=_ir.MEM_SEMANTIC.ACQUIRE), f"{COUNTED}, arrived"),
        (True, lambda add: ordered(add, sem=_ir.MEM_SEMANTIC.RELEASE), f"{COUNTED}, arrived"),
        (True, lambda add: ordered(add, scope=_ir.MEM_SYNC_SCOPE.CTA), f"{COUNTED}, arrived"),
        (True, early, "reads what nobody wrote, parts"),
        (False, lambda barrier: lambda self: None, f"{READ_WHILE_WRITTEN}, parts"),
    ],
    ids=["no atomic", "relaxed", "only acquires", "only releases", "of one program", "too early", "no barrier"],
)
def test_a_sum_over_programs_without_its_order_is_seen(
    atomic: bool, fault, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mast_ops.kernels.triton._parts._zeros", lambda device: torch.zeros(4, dtype=torch.int32))
    z, table = torch.randn(2, 20).half(), Table(torch.ones(2, 20))
    name = "create_atomic_rmw" if atomic else "create_barrier"
    with strict():
        pairs.distance(Gap(z, z), table)
        with monkeypatch.context() as planted:
            planted.setattr(InterpreterBuilder, name, fault(getattr(InterpreterBuilder, name)))
            with pytest.raises((LaunchError, InterpreterError), match=said):
                pairs.distance(Gap(z, z), table)


@pytest.mark.parametrize("passed_on", [True, False])
def test_order_passes_through_programs(passed_on: bool) -> None:
    """The first writes and releases; the second acquires and releases elsewhere; the third acquires there."""
    x, first, second = (np.array([at], np.uint64) for at in (8, 16, 24))
    history = History(3)
    history.touch(WRITE, x)
    history.barrier()
    history.atomic(first, acquires=False, releases=True)
    history.start(1)
    history.atomic(first, acquires=passed_on, releases=True)
    history.atomic(second, acquires=True, releases=True)
    history.start(2)
    history.atomic(second, acquires=True, releases=True)
    history.touch(READ, x)
    assert history.race() == (None if passed_on else ("a program reads what another one writes,", 8))
