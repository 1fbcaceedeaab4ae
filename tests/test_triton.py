"""Triton kernels against the plain formulas in float64: under Triton's interpreter, or on a GPU where there is one.

The rule: no further from float64 than the plain formula in the input's own dtype is, plus a stated tolerance.
"""

import os
from types import SimpleNamespace

import pytest
import torch
from cases import NAMES, learned, make_case, scalar_weighted, tensors
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mast_ops.kernels.eager import contrast as eager_contrast
from mast_ops.kernels.eager import pairs as eager_pairs
from mast_ops.ops import Contrast, Gap, Table, contrast_mean

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities under the interpreter

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton")
if not CUDA and isinstance(triton.language.sum, triton.runtime.JITFunction):
    raise RuntimeError("triton was imported before TRITON_INTERPRET=1 was set, see tests/conftest.py")

from mast_ops.kernels.triton import _launch, _parts, contrast, contrast_kernels, packing_kernels, pairs, wide  # noqa: E402
from mast_ops.kernels.triton._plan import Plan  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
# The interpreter has no bfloat16 arithmetic. Sizes: no multiples of a tile, single elements, and large on a GPU.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]
HALVES = [torch.float16, torch.bfloat16]  # all pairs pack rows of either in float16, which is interpreted too
PAIRS = [(1, 1, 1), (5, 7, 17), (37, 40, 3), *([(1000, 1000, 15), (300, 8192, 15), (100, 300, 100)] if CUDA else [])]
CONTRAST = [(1, 1, 1, 1), (37, 20, 32, 2), (21, 37, 50, 3)]
if CUDA:
    CONTRAST += [(1000, 700, 256, 3), (1000, 1000, 1000, 2), (130, 200, 8192, 2)]
# Of the largest value. Half precision: tf32 rounds factors in pairs, all-pairs rounds normalised rows and weights.
SLACK_PAIRS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 6e-3}
SLACK_CONTRAST = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-3}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def leaves(arguments: tuple, dtype: torch.dtype | None) -> tuple:
    """Copies that ask for gradients, in ``dtype`` or each in its own; all but floating-point tensors as they are."""

    def copy(x: object) -> object:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x.detach().to(dtype or x.dtype, copy=True).requires_grad_()

    return pytree.tree_map(copy, arguments)


def plain(formula, arguments: tuple, weights: list[Tensor] | None, dtype: torch.dtype | None):
    """(outputs, gradients) of a plain formula; ``weights`` are the upstream gradients, random when None."""
    inputs = leaves(arguments, dtype)
    outputs = formula(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [torch.randn_like(x) for x in outputs] if weights is None else weights
    gradients = torch.autograd.grad(outputs, learned(inputs), [w.to(x) for w, x in zip(weights, outputs, strict=True)])
    return [x.detach() for x in outputs], list(gradients), weights


def agree(ours: list, wide: list, same: list, slack: float, terms: float = 0.0) -> None:
    """``ours`` no further from ``wide`` (float64) than ``same`` (the plain formula in our dtype), plus the slack.

    The slack is relative to the largest entry; of a single number, whose terms cancel, to the sum of their absolute
    values if that is larger: ``terms``.
    """
    assert len(ours) == len(wide) == len(same)
    for x, exact, peer in zip(ours, wide, same, strict=True):
        assert x.shape == exact.shape
        if not exact.numel():
            continue
        largest = max(float(exact.nan_to_num().abs().max()), 0.0 if exact.ndim else terms)
        allowed = (peer.double() - exact).nan_to_num().abs().max() + slack * largest + 1e-6
        torch.testing.assert_close(x.double(), exact, rtol=0, atol=float(allowed), equal_nan=True)


def check_pairs(name: str, arguments: tuple, slack: float) -> None:
    formula, kernel = getattr(eager_pairs, name), getattr(pairs, name)
    wide, wide_grads, weights = plain(formula, arguments, None, torch.float64)
    same, same_grads, _ = plain(formula, arguments, weights, None)
    ours = kernel(*arguments)
    ours = list(ours) if isinstance(ours, tuple) else [ours]
    assert all(x.dtype == torch.float32 for x in ours)
    agree(ours, wide, same, slack)
    upstream = tuple(w.float() for w in weights)
    given = (arguments[0], arguments[2]) if name == "gap_sums" else arguments
    backward = getattr(pairs, name + "_backward")
    grads = [g for g in backward(upstream if name == "products" else upstream[0], *given) if g is not None]
    # In the order of the arguments, but the gradient of a log-variance comes last, and its scale has none.
    order = list(range(len(grads)))
    if name != "products" and arguments[0].log_variance is not None:
        order = [0, 1, 2] if name == "gap_sums" else [0, 1, 4, 2]
    asked = [x for x in tensors(arguments) if x.is_floating_point()]
    assert [g.dtype for g in grads] == [asked[i].dtype for i in order]
    agree(grads, [wide_grads[i] for i in order], [same_grads[i] for i in order], slack)


@pytest.mark.parametrize("own", [False, True], ids=["all", "own"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d", "r"), PAIRS)
def test_pairs(n: int, d: int, r: int, dtype: torch.dtype, own: bool) -> None:
    z0, z1, masks = random(n, d, dtype=dtype), random(n, d, dtype=dtype), random(r, d)
    row = torch.randint(r, (n,)).to(DEVICE) if own else None
    check_pairs("products", (z0, z1, Table(masks, row)), SLACK_PAIRS[dtype])
    gaps = [Gap(z0, z1)]
    gaps += [Gap(z0, z1, random(n, d, dtype=kind), random(1, d).abs()) for kind in {torch.float32, dtype}]
    for gap in gaps:
        check_pairs("gap_sums", (gap, r, row), SLACK_PAIRS[dtype])
        check_pairs("distance", (gap, Table(masks, row)), SLACK_PAIRS[dtype])


@pytest.mark.parametrize("own", [False, True], ids=["all", "own"])
def test_pairs_read_any_strides(own: bool) -> None:
    z0, z1, masks = random(20, 33).T, random(1, 20).expand(33, 20), random(3, 20)
    gap = Gap(z0, z1, random(33, 1).expand(33, 20), random(1, 20).abs())
    table = Table(masks, torch.randint(3, (33,)).to(DEVICE) if own else None)
    check_pairs("distance", (gap, table), SLACK_PAIRS[torch.float32])
    check_pairs("products", (z0, z1, table), SLACK_PAIRS[torch.float32])
    check_pairs("gap_sums", (gap, 3, table.row), SLACK_PAIRS[torch.float32])


LONG = [(name, 300 if CUDA else 40) for name in NAMES if name.startswith("sigmoid")]  # of contrast there are more below


@pytest.mark.parametrize(("name", "d"), [*((name, 9) for name in NAMES), *LONG])
def test_operators_run_them(name: str, d: int) -> None:
    """From the operator down: dispatch, registration, gradients."""
    case = make_case(name, 20, d, 3, dtype=torch.float32, device=DEVICE.type, density=0.6)
    fused, plain_in = case.leaves(), case.leaves(torch.float64)
    got, wanted = case.fused(*fused, backend="triton"), case.plain(*plain_in)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, check_dtype=False)
    for x, y in zip(*((gradients(out, of) for out, of in ((got, fused), (wanted, plain_in)))), strict=True):
        if x is not None and y is not None:  # the scale of a variance is a constant
            torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4)


def gradients(outputs: tuple[Tensor, ...], arguments: tuple) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(scalar_weighted(outputs), learned(arguments), allow_unused=True)


def test_tf32_leaves_no_bias() -> None:
    """Cutting factors to tf32 makes a sum of squares smaller by 5e-4; rounding them does not."""
    z0, z1, masks = (
        random(64, 400, dtype=torch.float16),
        random(64, 400, dtype=torch.float16),
        random(1, 400),
    )
    exact = eager_pairs.distance(Gap(z0.double(), z1.double()), Table(masks.double()))
    assert ((pairs.distance(Gap(z0, z1), Table(masks)) - exact) / exact).mean().abs() < 3e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pairs_keep_what_is_not_finite(bad: float) -> None:
    z0, z1, masks = random(5, 7), random(5, 7), torch.ones(2, 7, device=DEVICE)
    z0[3, 4], masks[:, 4] = bad, 0
    finite = pairs.distance(Gap(z0, z1), Table(masks)).isfinite().all(1).tolist()
    assert finite == [True, True, True, False, True]


def masks_with_zeros(r: int, d: int) -> Tensor:
    masks = torch.rand(r, d) * (torch.rand(r, d) > 0.4)
    if r > 1:
        masks[1] = 0  # drops everything
    return masks.to(DEVICE)


def loss(problem: Contrast):
    """The plain formula, with an empty output left out."""
    rows, other = eager_contrast.losses(problem)
    return (rows, other) if other.numel() else rows


def check_contrast(problem: Contrast, slack: float) -> None:
    wide, wide_grads, weights = plain(loss, (problem,), None, torch.float64)
    same, same_grads, _ = plain(loss, (problem,), weights, None)
    losses, lse = contrast.forward(problem)
    both = eager_contrast.losses(problem)
    assert [x.shape for x in losses] == [x.shape for x in both] == [x.shape for x in lse]
    agree([x for x in losses if x.numel()], wide, same, slack)
    g_rows, g_other = [*(w.float() for w in weights), lse[1]][:2]
    grads = contrast.backward(problem, (g_rows, g_other), lse)
    assert all(g is None or g.dtype == torch.float32 for g in grads)
    terms = sum(float(w.abs().sum()) for w in weights)  # of the temperature's gradient: weights times cosines
    agree([g for g in grads if g is not None], wide_grads, same_grads, slack, terms)


def contrast_case(n: int, c: int, d: int, r: int, dtype: torch.dtype, form: str, temperature: float) -> Contrast:
    z0 = random(n, d, dtype=dtype)
    alone = form.startswith("self")
    z1 = None if alone else random(c, d, dtype=dtype)
    # Ids in no order. Several positives: in a self contrast every id twice or more, else candidates that share one.
    sample0 = (torch.arange(n) % max(1, n // 2))[torch.randperm(n)] if alone else torch.randperm(n)
    sample1 = None if alone else (torch.arange(c) % n)[torch.randperm(c)]
    if not alone and c < n:
        sample0 = sample0 % c
    if alone and n > 1:
        sample0[sample0 == n // 2] = 0
    row = torch.randint(max(1, r - 1), (n,)).to(DEVICE) if "own" in form else None  # the last has no sample
    ids = [None if x is None else x.to(DEVICE) for x in (sample0, sample1)]
    scale = torch.tensor(1 / temperature, device=DEVICE)
    return Contrast(z0, z1, masks_with_zeros(r, d), scale, *ids, row, "both ways" in form)


FORMS = ["cross", "cross both ways", "cross own", "self", "self own"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("n", "c", "d", "r"), CONTRAST)
def test_contrast(n: int, c: int, d: int, r: int, dtype: torch.dtype, form: str) -> None:
    check_contrast(contrast_case(n, c, d, r, dtype, form, 0.1), SLACK_CONTRAST[dtype])


LENGTHS = pytest.mark.parametrize("d", [12, 300 if CUDA else 40], ids=["short rows", "long rows"])  # products by torch


@LENGTHS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_contrast_at_low_temperature(dtype: torch.dtype, form: str, d: int) -> None:
    # The scores are 20 times those of the test above, and so are their errors.
    check_contrast(contrast_case(20, 20, d, 2, dtype, form, 0.005), 20 * SLACK_CONTRAST[dtype])


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_packed_in_float16(dtype: torch.dtype) -> None:
    """Rows have one length, and need no more of an exponent."""
    assert Plan(without_data(16, 16, 1, True, dtype)).anchors.packed.dtype == torch.float16


@pytest.mark.parametrize("form", ["cross both ways", "self own"])
@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_tiny_in_a_row_keeps_its_digits(dtype: torch.dtype, form: str) -> None:
    """Dimensions that a mask lets through by 1e-7 have gradients as precise as the others'."""
    case = contrast_case(20, 20, 32, 3, dtype, form, 0.1)
    case.masks.copy_(10 ** torch.linspace(0, -7, 32).expand(3, 32))
    _, wide, weights = plain(loss, (case,), None, torch.float64)
    losses, lse = contrast.forward(case)
    grads = contrast.backward(case, tuple([*(w.float() for w in weights), lse[1]][:2]), lse)
    assert all(x.isfinite().all() for x in losses)
    for ours, exact in zip((grads.z0, grads.masks), (wide[0], wide[-2]), strict=True):
        assert float(((ours - exact).norm(dim=0) / exact.norm(dim=0)).max()) < 1e-2


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_bfloat16_of_any_size_is_packed_without_loss(scale: float) -> None:
    """Rows below 1e-12 are scaled and not normalised: they are packed as what is tiny. Squares overflow above 1e19."""
    case = contrast_case(20, 20, 12, 2, torch.bfloat16, "cross both ways", 0.1)
    check_contrast(case._replace(z0=case.z0 * scale, z1=case.z1 * scale), SLACK_CONTRAST[torch.bfloat16])


@pytest.mark.parametrize("temperature", [1 / 60, 1 / 70])
def test_a_solved_batch_has_no_loss_but_rounding(temperature: float) -> None:
    """One exponential is all of the sum, with and without a maximum: its logsumexp is the positive's score."""
    z = torch.eye(5, 20, device=DEVICE)
    ids, masks = torch.arange(5, device=DEVICE), torch.ones(1, 20, device=DEVICE)
    losses, _ = contrast.forward(Contrast(z, z, masks, torch.tensor(1 / temperature), ids, ids, None, True))
    assert max(float(x.abs().max()) for x in losses) <= 1e-6


@pytest.mark.parametrize("form", ["cross both ways", "self own"])
def test_contrast_reads_any_strides_and_one_mask_a_launch(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "ROOM", 1)
    problem = contrast_case(20, 20, 33, 2, torch.float32, form, 0.1)
    z1 = None if problem.z1 is None else random(1, 33).expand(20, 33)
    check_contrast(problem._replace(z0=random(33, 20).T, z1=z1), SLACK_CONTRAST[torch.float32])


@LENGTHS
def test_gradients_of_tiny_losses_survive_half_precision(d: int) -> None:
    """The mean over many anchors weighs each so little that float16 would hold no weight of a negative."""
    case = contrast_case(20, 20, d, 2, torch.float16, "cross both ways", 0.1)
    lse = contrast.forward(case).lse
    one, small = torch.ones_like(lse[0]), torch.full_like(lse[0], 1e-9)
    big, tiny = contrast.backward(case, (one, one), lse), contrast.backward(case, (small, small), lse)
    for x, y in zip(big, tiny, strict=True):
        torch.testing.assert_close(x, y * 1e9, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


@LENGTHS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["cross both ways", "self"])
def test_contrast_keeps_what_is_not_finite_in_a_skipped_column(form: str, bad: float, d: int) -> None:
    problem = contrast_case(20, 18, d, 2, torch.float32, form, 0.1)
    problem.z0[3, 4], problem.masks[:, 4] = bad, 0
    rows, other = contrast.forward(problem).losses
    assert not rows[3].isfinite().any()
    if form == "self":
        assert not rows.isfinite().any()  # it is a candidate of all others
    else:
        assert rows[[0, 1, 2, 4]].isfinite().all()
        assert not other.isfinite().any()


@LENGTHS
def test_zero_rows_and_zero_masks_are_finite(d: int) -> None:
    problem = contrast_case(20, 20, d, 2, torch.float32, "cross both ways", 0.1)
    problem.z0[3], problem.z1[5] = 0, 0
    losses, lse = contrast.forward(problem)
    grads = contrast.backward(problem, losses, lse)
    assert all(x.isfinite().all() for x in (*losses, *grads))
    assert not grads[2][1].any()


class Largest(TorchDispatchMode):
    """The most memory that any one new tensor took, in float32 elements (the interpreter copies bytes)."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor) and not function.is_view:
                self.numel = max(self.numel, x.nbytes // 4)
        return out


class Launches(TorchDispatchMode):
    """What was launched: our kernels by name, and PyTorch's operations that touch memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names: list[str] = []
        self.inside = False
        kind = type(pairs._distance)
        choose = kind.__getitem__

        def on_grid(kernel, grid):
            def launch(*args, **kwargs):
                self.names.append(kernel.__name__)
                self.inside = True  # the interpreter copies its arguments
                choose(kernel, grid)(*args, **kwargs)
                self.inside = False

            return launch

        monkeypatch.setattr(kind, "__getitem__", on_grid)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not (self.inside or function.is_view or name in ("empty", "empty_like", "new_empty", "detach")):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("own", [False, True], ids=["all", "own"])
@pytest.mark.parametrize("n", [2, 20_000 if CUDA else 33], ids=["parts of D", "parts of N"])
def test_one_launch_forward_and_one_backward(n: int, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    d = 100 if CUDA else 17
    z0, z1, masks = random(n, d, dtype=torch.float16), random(n, d, dtype=torch.float16), random(2, d)
    table = Table(masks, torch.randint(2, (n,)).to(DEVICE) if own else None)
    gap, g = Gap(z0, z1), random(n) if own else random(n, 2)
    g_sums = random(2 if own else 1, d)
    pairs.distance(gap, table)  # the first makes the counters
    with Launches(monkeypatch) as launched:
        pairs.distance(gap, table)
        pairs.distance_backward(g, gap, table)
        pairs.products(z0, z1, table)
        pairs.products_backward((g, g, g), z0, z1, table)
        pairs.gap_sums(gap, 2, table.row)
        pairs.gap_sums_backward(g_sums, gap, table.row)
    kernels = ("_distance", "_products", "_gap_sums")
    assert launched.names == [name + pass_ for name in kernels for pass_ in ("", "_backward")]
    assert not _parts._zeros(z0.device).any()  # as the next launch wants them


def test_counters_are_shared_on_the_default_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    z = random(4, 4)
    assert _parts.shared(z, 2, 3, 4)[1] is _parts.shared(z, 2, 1, 4)[1]
    assert _parts.shared(z, 1, 3, 4) == (None, None)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1))
    first, second = (_parts.shared(z, 2, 3, 4)[1] for _ in range(2))
    assert first.tolist() == [0, 0, 0]
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("own", [False, True], ids=["all", "own"])
def test_no_large_buffer(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "ROOM", 1)  # bytes of what has all masks
    n, d, r = (1024, 64, 12) if CUDA else (64, 16, 4)  # a GPU's tiles pad small problems to more than they hold
    z0, z1, masks = random(n, d), random(n, d), random(r, d)
    row = torch.randint(r, (n,)).to(DEVICE) if own else None
    shape = (n,) if own else (n, r)
    with Largest() as pairs_memory:
        pairs.products(z0, z1, Table(masks, row))
        pairs.distance_backward(random(*shape), Gap(z0, z1), Table(masks, row))
    assert pairs_memory.numel < n * d * r / 3
    ids = torch.arange(n, device=DEVICE)
    case = Contrast(z0, z1, masks, torch.tensor(10.0, device=DEVICE), ids, ids, row, not own)
    with Largest() as contrast_memory:
        losses, lse = contrast.forward(case)
        contrast.backward(case, losses, lse)
    assert contrast_memory.numel < min(n * n, n * d * r) / 1.5


def fused(monkeypatch: pytest.MonkeyPatch, problem: Contrast) -> list[tuple[str, list[int | None]]]:
    """Names of the launches forward and backward, and bytes of the tensors they are given. Nothing runs."""
    said = []

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid):
            return lambda *given, **_: said.append((self.name, [getattr(x, "nbytes", None) for x in given]))

    for module, names in (
        (packing_kernels, ("pack", "align", "unpack")),
        (contrast_kernels, ("logsumexp", "gradient")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Kernel(name))
    contrast.fused(problem, (1.0, 1.0))
    return said


def without_data(n: int, d: int, r: int, both_ways: bool, dtype: torch.dtype = torch.float32) -> Contrast:
    masks, one, ids = torch.empty(r, d, device="meta"), torch.empty((), device="meta"), torch.empty(n, device="meta")
    z0, z1 = (torch.empty(n, d, dtype=dtype, device="meta") for _ in range(2))
    return Contrast(z0, z1, masks, one, ids.long(), ids.long(), None, both_ways)


def test_all_masks_are_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side is packed once, and pulls its own gradient back."""
    sizes = len(_launch.depth(torch.float32, 16).blocks)
    names = [name for name, _ in fused(monkeypatch, without_data(300, 16, 15, True))]
    pulls = 2 * [*["gradient"] * sizes, "align", "unpack"]
    assert names == ["pack", "pack", *["logsumexp"] * sizes, *pulls]


def test_a_pass_over_the_masks_begins_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passes over three masks, a launch each: those at the turns are packed already."""
    monkeypatch.setattr(_launch, "ROOM", 1)
    names = [name for name, _ in fused(monkeypatch, without_data(300, 16, 3, True))]
    assert names.count("pack") == 2 * (3 * 3 - 2)


class Held(TorchDispatchMode):
    """The most bytes that new tensors took at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.live = {key: one for key, one in self.live.items() if not one[0].expired()}
        for x in pytree.tree_leaves(out):
            if isinstance(x, Tensor) and not function.is_view:
                storage = x.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def gpu_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = {"INTERPRETED": False, "TILE": 128, "FEW": 264, "PARTS": 33}
    for name, value in (gpus | {"WIDE": 256, "SCORES": 2**23, "WEIGHTS": 2**26}).items():
        for module in ("_launch", "_plan", "contrast", "wide"):
            monkeypatch.setattr(f"mast_ops.kernels.triton.{module}.{name}", value, raising=module == "_launch")


def test_large_all_pairs_take_less_than_100_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """N=32768, D=256, K=15, both ways, in bfloat16 and beside the gradients: the sums of one side in float32, packed
    rows of one mask, and what the masks have for each sample."""
    gpu_tiles(monkeypatch)
    problem = without_data(32768, 256, 15, True, torch.bfloat16)
    with Held() as memory:
        fused(monkeypatch, problem)
    assert memory.peak - 2 * problem.z0.nbytes <= 100e6


@pytest.mark.parametrize("n", [1 << 14, 1 << 16])
def test_long_rows_hold_a_tile_of_scores_and_a_stripe_of_weights(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the gradients: both sides packed, one side's sums and one mask's part of them in float32. No tensor has
    data: nothing waits for any."""
    gpu_tiles(monkeypatch)
    problem = without_data(n, 512, 15, True, torch.bfloat16)
    with Held() as memory:
        fused(monkeypatch, problem)
    assert memory.peak - 2 * problem.z0.nbytes <= 6 * problem.z0.nbytes + 32 * 2**20 + 64 * 2**20 + 60e6 < n * n


@pytest.mark.parametrize("form", ["cross both ways", "self"])
def test_long_rows_are_multiplied_by_the_library(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several stripes of several tiles: the scores once forward and once for each side's gradient, and that."""
    stripes, tiles = (3, 2) if not CUDA else (1, 1)
    case = contrast_case(40, 40, 300 if CUDA else 40, 1, torch.float16, form, 0.1)
    products = ("mm", "mm_dtype", "addmm")
    with Launches(monkeypatch) as launched:
        contrast.fused(case, (1.0, 1.0))
    sides = 1 if form == "self" else 2
    assert sum(name in products for name in launched.names) == stripes * (tiles + sides * (tiles + 1))
    assert launched.names.count("gradient") == sides * stripes * tiles


def test_stripes_and_tiles_hold_as_much_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tiles a stripe for any number of rows, down to stripes of 128, and never more than there is."""
    gpu_tiles(monkeypatch)
    for n, height, width in ((100, 128, 128), (32768, 1024, 8192), (1 << 17, 256, 1 << 15), (1 << 20, 128, 1 << 16)):
        plan = Plan(without_data(n, 300, 1, True, torch.bfloat16))
        tiles = wide.Tiles(plan, plan.anchors, plan.candidates)
        assert (tiles.height, tiles.width) == (height, width)


@pytest.mark.parametrize("form", ["cross both ways", "cross own", "self", "self own"])
def test_gradients_of_one_mask_a_launch_are_those_of_all(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = contrast_case(20, 20, 12, 3, torch.float32, form, 0.1)
    at_once = contrast.fused(case, (0.3, 0.7))
    monkeypatch.setattr(_launch, "ROOM", 1)
    torch.testing.assert_close(contrast.fused(case, (0.3, 0.7)), at_once)
    losses, lse = contrast.forward(case)
    weights = torch.full_like(losses[0], 0.3), torch.full_like(losses[1], 0.7)
    torch.testing.assert_close(contrast.backward(case, weights, lse), at_once[1])


@pytest.mark.parametrize("n", [1 << 12, 1 << 18])
def test_statistics_of_candidates_do_not_grow_with_anchors(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes: a few numbers a candidate, however many tiles of anchors there are."""
    with Largest() as memory:
        said = fused(monkeypatch, without_data(n, 32, 15, True))
    parts = [given[i] for name, given in said if name == "logsumexp" for i in (10, 11)]
    assert parts
    assert all(x <= 4 * max(_launch.PARTS, 15) * n for x in parts)
    assert 4 * memory.numel <= max(_launch.ROOM, 8 * max(n * 32, n * 15))


@pytest.mark.skipif(CUDA, reason="counted by the interpreter")
def test_a_sparse_mask_costs_what_it_keeps_in_short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that stay on the chip: half of the dimensions, half of the products."""
    builder, flops = triton.runtime.interpreter.InterpreterBuilder, []
    plain_dot = builder.create_dot

    def dot(self, a, b, *rest):
        flops.append(a.data.size * b.data.shape[-1])
        return plain_dot(self, a, b, *rest)

    monkeypatch.setattr(builder, "create_dot", dot)
    counted = []
    for kept in (32, 3):
        case = contrast_case(16, 16, 32, 1, torch.float32, "cross both ways", 0.1)
        case.masks.copy_((torch.arange(32) < kept)[None, :])
        flops.clear()
        losses, lse = contrast.forward(case)
        contrast.backward(case, losses, lse)
        counted.append(sum(flops))
    assert counted[0] == 2 * counted[1]


@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_gradients_kept_in_bfloat16_are_as_good_as_the_formulas(upstream: float) -> None:
    case = contrast_case(20, 20, 12, 2, torch.bfloat16, "cross both ways", 0.1)

    def mean(*inputs):
        rows, other = eager_contrast.losses(Contrast(*inputs))
        return upstream * (rows.mean() + other.mean()) / 2

    _, wide_grads, weights = plain(mean, tuple(case), [torch.ones((), device=DEVICE)], torch.float64)
    _, same_grads, _ = plain(mean, tuple(case), weights, None)
    inputs = leaves(tuple(case), None)
    loss = contrast_mean(Contrast(*inputs), "triton")
    kept = loss.grad_fn.saved_tensors
    assert [x.dtype for x in kept[:2]] == [torch.bfloat16] * 2
    ours = torch.autograd.grad(upstream * loss, learned(inputs))
    agree(list(ours), wide_grads, list(same_grads), SLACK_CONTRAST[torch.bfloat16] if upstream == 1 else 2**-8)
