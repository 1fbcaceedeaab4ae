"""The fused core against its plain formulas: values, gradients, shapes, dtypes, strides, and torch's own machinery."""

import copy
import dataclasses
import math

import pytest
import torch
from cases import LAYOUTS, NAMES, Case, laid, learned, make_case, scalar_weighted, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from mast_ops import ops
from mast_ops.kernels.chunked import contrast as chunked_contrast
from mast_ops.kernels.chunked import moments as chunked_moments
from mast_ops.kernels.chunked import pairs as chunked_pairs
from mast_ops.kernels.chunked import positives as chunked_positives
from mast_ops.kernels.chunked import products as chunked_products
from mast_ops.kernels.chunked import scores as chunked_scores
from mast_ops.kernels.chunked import units as chunked_units
from mast_ops.ops import Contrast, Gap, Table

CUDA = torch.cuda.is_available()
SHAPES = [(2, 1, 1), (5, 7, 3), (67, 128, 15), (33, 7, 64), (9, 1000, 3), (3, 8192, 2)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that even a small problem has many, with remainders."""
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(chunked_pairs._TILE, device, 50)
        monkeypatch.setitem(chunked_products.BLOCK, device, 100)
        monkeypatch.setitem(chunked_moments._BLOCK, device, 1)
    monkeypatch.setattr(chunked_moments, "_WIDEST", 3)


def gradients(outputs, arguments):
    total = scalar_weighted([out for out in outputs if out.requires_grad])
    return torch.autograd.grad(total, learned(arguments), allow_unused=True, retain_graph=True)


def assert_same(case: Case, backend: str, rtol: float = 1e-9, atol: float = 1e-9):
    fused, plain = case.leaves(), case.leaves()
    got, wanted = case.fused(*fused, backend=backend), case.plain(*plain)
    assert [out.shape for out in got] == [out.shape for out in wanted]
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)
    for ours, theirs in zip(gradients(got, fused), gradients(wanted, plain), strict=True):
        if theirs is not None and ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_plain_formula(name, shape, device):
    assert_same(make_case(name, *shape, device=device.type), "chunked")


# What depends on numbers alone: whether scores are kept, pairs of positives listed, and each row of the masks packed.
WAYS = {"plain": (0, 1 << 24, 0), "kept": (1 << 24, 1 << 24, 0), "compared": (0, 0, 1 << 24), "both": (1 << 24, 0, 0)}


@pytest.mark.parametrize("density", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("small_pieces")
def test_in_many_pieces(name, way, density, device, monkeypatch):
    kept, listed, grouped = WAYS[way]
    monkeypatch.setattr(chunked_scores, "_CACHED", kept)
    monkeypatch.setattr(chunked_positives, "_LISTED", listed)
    monkeypatch.setattr(chunked_contrast, "_GROUPED", grouped)
    assert_same(make_case(name, 41, 13, 3, density=density, device=device.type), "chunked")


@pytest.mark.parametrize("way", ["plain", "compared"])
@pytest.mark.parametrize("inverse_temperature", [1 / 0.005, 71.0, 69.0, 0.01])
@pytest.mark.parametrize("name", [name for name in NAMES if "contrast" in name])
@pytest.mark.usefixtures("small_pieces")
def test_any_temperature(name, inverse_temperature, way, monkeypatch):
    monkeypatch.setattr(chunked_positives, "_LISTED", WAYS[way][1])
    monkeypatch.setattr(chunked_contrast, "_GROUPED", WAYS[way][2])
    case = make_case(name, 23, 5, 3)
    case.arguments[0].inverse_temperature.fill_(inverse_temperature)
    assert_same(case, "chunked", atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    case = make_case(name, 4, 3, 2)
    flat, structure = pytree.tree_flatten(case.leaves())
    places = [i for i, x in enumerate(flat) if isinstance(x, torch.Tensor) and x.requires_grad]
    if "variance" in name:  # its scale is a constant
        places.remove(next(i for i in places if flat[i].shape[0] == 1))

    def function(*values):
        full = [x.detach() if isinstance(x, torch.Tensor) else x for x in flat]
        for place, value in zip(places, values, strict=True):
            full[place] = value
        return tuple(out for out in case.fused(*pytree.tree_unflatten(full, structure)) if out.numel())

    assert torch.autograd.gradcheck(function, [flat[i] for i in places])


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 9),
    d=st.integers(1, 9),
    k=st.integers(1, 5),
    name=st.sampled_from(NAMES),
)
@settings(deadline=None, max_examples=60)
def test_any_shape(seed, n, d, k, name):
    assert_same(make_case(name, n, d, k, seed=seed, density=0.6), "chunked")


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, under Triton's interpreter
def test_any_layout_of_any_argument(name, layout, backend):
    """Of embeddings, masks, indices, scales, and of the gradients that come from above."""
    if backend == "triton":
        pytest.importorskip("triton")
    dtype, tolerance = (torch.float64, 1e-9) if backend == "chunked" else (torch.float32, 1e-4)
    case = make_case(name, 6, 6, 3, dtype=dtype, device="cuda" if CUDA and backend == "triton" else "cpu")
    fused = case.arguments = pytree.tree_map(lambda x: laid(x, layout), case.arguments)
    for x in tensors(fused):
        x.requires_grad_(x.is_floating_point())
    plain = case.leaves()
    got, wanted = case.fused(*fused, backend=backend), case.plain(*plain)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    got, wanted = zip(*((x, y) for x, y in zip(got, wanted, strict=True) if y.requires_grad), strict=True)
    above = [laid(torch.randn_like(out), layout) for out in got]
    ours = torch.autograd.grad(got, learned(fused), above, allow_unused=True)
    theirs = torch.autograd.grad(wanted, learned(plain), above, allow_unused=True)
    for grad, expected in zip(ours, theirs, strict=True):
        if grad is not None and expected is not None:
            torch.testing.assert_close(grad, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_no_worse_than_eager(name, dtype, device):
    case = make_case(name, 32, 64, 3, dtype=dtype, device=device.type)
    exact_in, fused, plain = case.leaves(torch.float64), case.leaves(), case.leaves()
    exact, got, wanted = case.plain(*exact_in), case.fused(*fused), case.plain(*plain)
    assert all(out.dtype == torch.float32 for out in got)
    of_exact, of_got, of_wanted = gradients(exact, exact_in), gradients(got, fused), gradients(wanted, plain)
    for reference, ours, theirs in zip((*exact, *of_exact), (*got, *of_got), (*wanted, *of_wanted), strict=True):
        if reference is None or ours is None or reference.numel() == 0:
            continue
        slack = 32 * torch.finfo(ours.dtype).eps
        if device.type == "cuda" and name.startswith(("contrast", "sigmoid")) and dtype != torch.float32:
            slack = max(slack, 2e-3)  # rows and weights are rounded to float16 there
        assert (ours - reference).abs().max() <= (theirs - reference).abs().max() + slack * reference.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_multiplied_as_such_on_cuda_alone(dtype, monkeypatch):
    z = torch.empty(1, dtype=dtype)
    assert chunked_units.units_of(z) is chunked_units.Units
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    halves = dtype in (torch.float16, torch.bfloat16)
    assert chunked_units.units_of(z) is (chunked_units.HalfUnits if halves else chunked_units.Units)


@pytest.mark.parametrize("inverse_temperature", [5.0, 200.0])
@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("contrast", "sigmoid"))])
@pytest.mark.usefixtures("small_pieces")
def test_products_in_half_precision(name, scale, inverse_temperature, monkeypatch):
    """As on CUDA, but for the product: cosines of rows rounded to float16. Errors are of the largest entry."""

    def product(left, right, out):
        assert left.dtype == right.dtype == torch.float16
        assert out.dtype == torch.float32
        return torch.mm(left.float(), right.float(), out=out)

    monkeypatch.setattr(chunked_units, "multiply", product)
    monkeypatch.setattr(chunked_contrast, "units_of", lambda z: chunked_units.HalfUnits)
    monkeypatch.setattr(chunked_contrast, "_GROUPED", 0)  # no masks of many anchors' own
    case = make_case(name, 41, 30, 3, dtype=torch.bfloat16, density=0.7)
    problem = case.arguments[0]
    z1 = None if problem.z1 is None else problem.z1 * scale
    problem = problem._replace(
        z0=problem.z0 * scale, z1=z1, inverse_temperature=problem.inverse_temperature.new_tensor(inverse_temperature)
    )
    case = dataclasses.replace(case, arguments=(problem, *case.arguments[1:]))
    exact_in, fused = case.leaves(torch.float64), case.leaves()
    exact, got = case.plain(*exact_in), case.fused(*fused, backend="chunked")
    for ours, reference in zip(got, exact, strict=True):
        if reference.numel():
            assert (ours - reference).abs().max() <= 2e-3 * max(reference.abs().max(), inverse_temperature)
    of_exact, of_got = gradients(exact, exact_in), gradients(got, fused)
    for ours, reference in zip(of_got, of_exact, strict=True):
        if ours is not None and reference.ndim:
            slack = torch.finfo(torch.bfloat16).eps if ours.dtype == torch.bfloat16 else 2e-3
            assert (ours - reference).abs().max() <= slack * max(1, inverse_temperature / 5) * reference.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_reach_inside(name, device):
    case = make_case(name, 8, 16, 3, dtype=torch.float32, device=device.type)
    outside_in, inside_in = case.leaves(), case.leaves()
    outside = case.fused(*outside_in)
    grads = gradients(outside, outside_in)
    with torch.autocast(device.type, torch.bfloat16):
        inside = case.fused(*inside_in)
        torch.testing.assert_close(inside, outside, rtol=0, atol=0)
        for got, wanted in zip(gradients(inside, inside_in), grads, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_twice(name):
    case = make_case(name, 40, 30, 3, dtype=torch.float32, density=0.5)
    first_in, second_in = case.leaves(), case.leaves()
    first, second = case.fused(*first_in), case.fused(*second_in)
    for a, b in zip((*first, *gradients(first, first_in)), (*second, *gradients(second, second_in)), strict=True):
        assert a is b or torch.equal(a, b)


CLOSED = {"one dimension": (slice(None), 3), "one mask": 1, "all masks": slice(None), "most of one mask": (1, slice(4))}


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize(("closed", "bad"), [*zip(CLOSED, (math.nan, math.inf, -math.inf, math.nan), strict=True)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, under Triton's interpreter
def test_what_is_not_finite_shows_even_where_no_mask_looks(name, closed, bad, backend):
    """In values and in gradients, wherever it shows in those of the plain formula."""
    if backend == "triton":
        pytest.importorskip("triton")
    dtype = torch.float64 if backend == "chunked" else torch.float32
    case = make_case(name, 6, 5, 2, dtype=dtype, device="cuda" if CUDA and backend == "triton" else "cpu")
    for masks in [x for x in tensors(case.arguments) if x.shape == (2, 5)]:
        masks[CLOSED[closed]] = 0
    tensors(case.arguments)[0][2, 3] = bad
    fused, plain = case.leaves(), case.leaves()
    got, wanted = case.fused(*fused, backend=backend), case.plain(*plain)
    assert not torch.stack([x.sum() for x in got]).sum().isfinite()
    pairs = list(zip(gradients(got, fused), gradients(wanted, plain), strict=True))
    if "gap_sums of one row" not in name:  # the plain one is a product, which mixes rows that have nothing in common
        pairs += zip(got, wanted, strict=True)
    for ours, theirs in pairs:
        if ours is not None and theirs is not None:
            assert not (ours.isfinite() & ~theirs.isfinite()).any()


@pytest.mark.parametrize("inverse_temperature", [200.0, 50.0])
@pytest.mark.parametrize("operator", [ops.contrast, ops.contrast_mean])
@pytest.mark.parametrize("form", ["of itself", "of itself, of one row", "both ways", "of one row"])
def test_no_gradient_where_there_is_no_loss(form, operator, inverse_temperature):
    """A positive and its anchor's logsumexp are then one number, and must come from one product."""
    z = torch.randn(40, 64)
    near, ids = z + 0.1 * torch.randn(40, 64), torch.arange(40)
    row = ids % 2 if "one row" in form else None
    problem = Contrast(z, near, torch.ones(2, 64), torch.tensor(inverse_temperature), ids, ids, row)
    if "itself" in form:
        row = None if row is None else row.repeat(2)
        problem = problem._replace(z0=torch.cat([z, near]), z1=None, sample0=ids.repeat(2), sample1=None, row=row)
    problem = problem._replace(both_ways=form == "both ways")

    def gradient(backend):
        z0 = problem.z0.clone().requires_grad_()
        losses = operator(problem._replace(z0=z0), backend=backend)
        return torch.autograd.grad(scalar_weighted(losses if isinstance(losses, tuple) else (losses,)), z0)[0]

    largest = gradient("eager").abs().max()
    assert largest <= 1e-11
    assert gradient("chunked").abs().max() <= 2 * largest + 1e-16


SCHEMA_TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, layout):
    """What torch asks of an operator, of each one and of its gradient, with the arguments they are really called by."""
    case = make_case(name, 5, 4, 2, dtype=torch.float32)
    calls = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "mast_ops":
                calls.append((func, copy.copy(args)))
            return func(*args, **(kwargs or {}))

    arguments = case.arguments = pytree.tree_map(lambda x: laid(x, layout) if layout else x, case.arguments)
    for x in tensors(arguments):
        x.requires_grad_(x.is_floating_point())
    with Record():
        gradients(case.fused(*arguments), arguments)
    assert calls
    for operator, args in calls:
        leaves = tuple(
            x.detach().requires_grad_(x.is_floating_point()) if isinstance(x, torch.Tensor) else x for x in args
        )
        backward = operator._opname.endswith("_backward")
        tests = SCHEMA_TESTS[:3] if backward else SCHEMA_TESTS  # a gradient of a gradient is refused
        if layout:
            tests = ("test_faketensor",)  # strides of what comes out
        torch.library.opcheck(operator, leaves, test_utils=tests)


# A form of each operator: Inductor takes seconds for each.
SOME = ["distance with variance", "gap_sums", "products", "contrast", "contrast_mean both ways", "sigmoid_mean"]


@pytest.mark.parametrize(("compiler", "names"), [("aot_eager", NAMES), ("inductor", [*SOME, "off_diagonal"])])
def test_compiles_whole_once_for_any_batch(compiler, names):
    operators = [make_case(name, 5, 6, 3).fused for name in names]

    def everything(*groups):
        return [
            sum((out * (1 + out.detach())).sum() for out in operator(*group))
            for operator, group in zip(operators, groups, strict=True)
        ]

    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, dynamic=True, backend=compiler)
    for n in (5, 7):
        cases = [make_case(name, n, 6, 3, dtype=torch.float32) for name in names]
        eager_in, compiled_in = [case.leaves() for case in cases], [case.leaves() for case in cases]
        eager = everything(*eager_in)
        with torch._dynamo.config.patch(error_on_recompile=n > 5):
            got = compiled(*compiled_in)
        torch.testing.assert_close(got, eager, rtol=1e-4, atol=1e-4)
        for total in (sum(eager), sum(got)):
            total.backward()
        for a, b in zip(eager_in, compiled_in, strict=True):
            for x, y in zip(learned(a), learned(b), strict=True):
                torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["distance", "gap_sums", "products", "contrast both ways", "off_diagonal"])
def test_exports(name):
    case = make_case(name, 6, 5, 3, dtype=torch.float32)
    given = tensors(case.arguments)

    class Module(torch.nn.Module):
        def forward(self, *given):
            left = iter(given)
            return case.fused(
                *pytree.tree_map(lambda x: next(left) if isinstance(x, torch.Tensor) else x, case.arguments)
            )

    program = torch.export.export(Module(), tuple(given))
    torch.testing.assert_close(program.module()(*given), case.fused(*case.arguments))


@pytest.mark.parametrize("name", NAMES)
def test_a_second_gradient_is_refused_by_name(name):
    case = make_case(name, 4, 3, 2)
    arguments = case.leaves()
    total = sum((out * out).sum() for out in case.fused(*arguments))
    (first,) = torch.autograd.grad(total, learned(arguments)[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='eager'"):
        first.square().sum().backward()
    arguments = case.leaves()
    total = sum((out * out).sum() for out in case.fused(*arguments, backend="eager"))
    (first,) = torch.autograd.grad(total, learned(arguments)[:1], create_graph=True)
    first.square().sum().backward()
    assert learned(arguments)[0].grad.isfinite().all()


TRANSFORMS = {
    "jvp": lambda f, z, along: torch.func.jvp(f, (z,), (along,))[1],
    "grad": lambda f, z, along: torch.func.grad(f)(z),
    "vmap": lambda f, z, along: torch.func.vmap(f)(torch.stack([z, along])),
    "grad of grad": lambda f, z, along: torch.func.grad(lambda x: torch.func.grad(f)(x).square().sum())(z),
    "a dual number": lambda f, z, along: dual(f, z, along),
}


def dual(f, z, along):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(z, along))).tangent


@pytest.mark.parametrize("size", [4, 400])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_right_or_refused_by_name(transform, size):
    """With "auto" the plain formula, whatever the size; no operator is silently a constant."""
    z, other, masks, ids = torch.randn(size, 8), torch.randn(size, 8), torch.rand(3, 8), torch.arange(size)

    def total(z, backend):
        contrast = ops.contrast_mean(Contrast(z, other, masks, torch.tensor(3.0), ids, ids), backend=backend)
        energy = ops.off_diagonal(z, None, masks, backend=backend).sum()
        return contrast + ops.distance(Gap(z, other), Table(masks), backend=backend).mean() + energy

    eager, auto = (TRANSFORMS[transform](lambda x, b=b: total(x, b), z, other) for b in ("eager", "auto"))
    torch.testing.assert_close(auto, eager)
    for backend in ("chunked", "compile"):
        with pytest.raises(
            ValueError, match=f"backend: got '{backend}' inside torch.func .* wanted 'eager', or 'auto'"
        ):
            TRANSFORMS[transform](lambda x, b=backend: total(x, b), z, other)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("compiled", ["what is in it", "it and what is in it"])
def test_transforms_are_seen_by_a_compiler(transform, compiled):
    """Whichever is inside the other, and in code that was compiled for a plain call before."""
    z, other, masks, ids = torch.randn(40, 8), torch.randn(40, 8), torch.rand(3, 8), torch.arange(40)

    def total(z, backend="auto"):
        contrast = ops.contrast_mean(Contrast(z, other, masks, torch.tensor(3.0), ids, ids), backend=backend)
        positive = Contrast(z, other, masks, torch.tensor(3.0), ids, ids)
        energy = ops.off_diagonal(z, None, masks, backend=backend).sum()
        return contrast + ops.sigmoid(positive, torch.tensor(0.0), backend=backend).mean() + energy

    wanted = TRANSFORMS[transform](lambda x: total(x, "eager"), z, other)
    torch._dynamo.reset()
    if compiled == "what is in it":
        inner = torch.compile(total, backend="aot_eager")
        torch.testing.assert_close(inner(z), total(z))
        got = TRANSFORMS[transform](inner, z, other)
    else:
        got = torch.compile(lambda x: TRANSFORMS[transform](total, x, other), backend="eager", fullgraph=True)(z)
    torch.testing.assert_close(got, wanted)


def test_scaled_loss_in_half_precision_does_not_vanish():
    """As under GradScaler: gradients made in the forward pass, before the scale is known, must not underflow."""
    z = (torch.randn(64, 32) * 100).half()
    ids = torch.arange(64)

    def scaled_loss(z0, z1, dtype):
        masks, inverse_temperature = torch.ones(2, 32, dtype=dtype), torch.tensor(2.0, dtype=dtype)
        return ops.contrast_mean(Contrast(z0, z1, masks, inverse_temperature, ids, ids)) * 65536

    half = [z.clone().requires_grad_(), z.flip(0).clone().requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in half]
    scaled_loss(*half, torch.float32).backward()
    scaled_loss(*exact, torch.float64).backward()
    for got, wanted in zip(half, exact, strict=True):
        torch.testing.assert_close(got.grad.double(), wanted.grad, rtol=2e-3, atol=1e-4)


@pytest.mark.usefixtures("alone")
def test_under_ddp():
    projector = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(5, 6))
    masks = torch.nn.Parameter(torch.rand(2, 6))
    ids = torch.arange(4)
    z0, z1 = projector(torch.randn(4, 5)), projector(torch.randn(4, 5))
    contrast = ops.contrast_mean(Contrast(z0, z1, masks, torch.tensor(2.0), ids, ids))
    (contrast + ops.distance(Gap(z0, z1), Table(masks)).mean()).backward()
    assert projector.module.weight.grad.abs().sum() > 0
