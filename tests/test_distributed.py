"""Several processes: each gets the loss of the whole batch, and gradients that average to that loss's own."""

import os
import time
import warnings
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

import mast_ops.functional as MF
from benchmarks import memory
from benchmarks.case import Inputs
from benchmarks.distributed import measure, model
from benchmarks.distributed.ranks import Ranks
from mast_ops import (
    FactorizedViews,
    MaskedSubspaceHead,
    MultiViewLoss,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceOutput,
    SubspaceSigmoidLoss,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
)
from mast_ops.kernels.chunked import products
from mast_ops.ops import agreement
from mast_ops.ops.ring import _Ring

D, K = 5, 3
KINDS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
WIDTHS = {"sample": 1, "subspace": K, "dimension": D}
HOW = ["in every mask", "one at a time", "of kinds"]  # what is known of a pair
SIZES = {2: (5, 2), 3: (4, 1, 3), 4: (2, 3, 1, 2)}  # an uneven batch for each number of ranks
LOSSES = {
    "nt-xent": partial(SubspaceNTXentLoss, 0.3),
    "sigmoid": partial(SubspaceSigmoidLoss, 3.0, -1.0),
    "vicreg": SubspaceVICRegLoss,
    "vicreg in subspaces": partial(SubspaceVICRegLoss, scope="subspace", normalize=False),
    "barlow twins": SubspaceBarlowTwinsLoss,
    "cosine": partial(SubspaceCosineLoss, sensitivity_param=1.0),
    "invariance": UncertaintyInvarianceLoss,
    "normalised invariance": partial(UncertaintyInvarianceLoss, normalize=True),
    "invariance of cosines": partial(UncertaintyInvarianceLoss, distance="cosine", normalize=True),
}


@pytest.fixture(scope="module")
def group():
    """A group of the size asked for, started once."""
    groups: dict[int, Ranks] = {}

    def of(size: int) -> Ranks:
        if size not in groups:
            groups[size] = Ranks(size)
        return groups[size]

    yield of
    for ranks in groups.values():
        ranks.close()


def batch(size: int, columns: int = 1, dtype=torch.float64):
    """Views, masks, log-variances, rows of a table of kinds and a temperature: the same on every rank."""
    g = torch.Generator().manual_seed(size)
    n = sum(SIZES[size])

    def normal(*shape: int):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    z = normal(2, n, D)
    masks = (torch.rand(K, D, generator=g, dtype=torch.float64) + 0.1).to(dtype)
    return z, masks, normal(2, n, columns), torch.randint(len(KINDS), (n,), generator=g), torch.tensor(0.4, dtype=dtype)


def pairs_of(how: str, row, where: slice):
    """``kinds`` and ``kind`` of the samples of a rank."""
    if how == "in every mask":
        return {}
    return {"kind": row[where] % K} if how == "one at a time" else {"kinds": KINDS, "kind": row[where]}


def part(rank: int, size: int) -> slice:
    start = sum(SIZES[size][:rank])
    return slice(start, start + SIZES[size][rank])


def value_and_gradients(function, learned):
    learned = [x.detach().clone().requires_grad_() for x in learned]
    value = function(*learned)
    grads = torch.autograd.grad(value, learned, allow_unused=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(learned, grads, strict=True)]


def assert_equal_to_one_process(results, whole, size: int, **tolerance) -> None:
    """``results`` of ranks and ``whole`` of one process: value, and gradients, those of samples (2, N, ...)."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    value, grads = whole
    for got, _ in results:
        torch.testing.assert_close(got, value, **tolerance)
    for i, wanted in enumerate(grads):
        parts = [grads_of_rank[i] for _, grads_of_rank in results]
        # DDP averages parameters' gradients, so a rank's own share of a sample's gradient is size times as large.
        per_sample = wanted.dim() == 3
        got = torch.cat(parts, 1) / size if per_sample else torch.stack(parts).mean(0)
        torch.testing.assert_close(got, wanted, **tolerance)


def loss_of(name: str, granularity, how: str, where: slice | None, size: int, compiler=None, backend="auto"):
    z, masks, log_variance, row, _ = batch(size, WIDTHS.get(granularity, 1))
    where = where or slice(None)
    loss = LOSSES[name](gather_distributed=where != slice(None), backend=backend)
    run = torch.compile(loss, fullgraph=True, backend=compiler) if compiler else loss
    pairs = pairs_of(how, row, where)
    kinds = pairs.pop("kinds", None)

    def call(z, masks, log_variance):
        doubts = log_variance if granularity else (None, None)
        return run(*(SubspaceOutput(a, masks, v, kinds, granularity) for a, v in zip(z, doubts, strict=True)), **pairs)

    return value_and_gradients(call, (z[:, where], masks, log_variance[:, where]))


def run_loss(rank: int, size: int, name: str, granularity, how: str, *options):
    torch._dynamo.reset()
    return loss_of(name, granularity, how, part(rank, size), size, *options)


def granularities_of(name: str):
    """A cosine has no variance of a dimension."""
    return [None, "sample", "subspace", *(["dimension"] if name != "invariance of cosines" else [])]


@pytest.mark.parametrize(("how", "size"), [*((how, 2) for how in HOW), ("of kinds", 3)])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_whole_batch(group, name, how, size):
    for granularity in granularities_of(name):
        whole = loss_of(name, granularity, how, None, size, backend="eager")
        for backend in ("auto", "chunked"):
            results = group(size)(run_loss, size, name, granularity, how, None, backend)
            assert_equal_to_one_process(results, whole, size)


COMPILED = {  # a width each, of losses that sum unlike things over ranks: a compilation on every rank takes seconds
    "nt-xent": "sample",
    "sigmoid": "subspace",
    "vicreg in subspaces": "dimension",
    "cosine": None,
    "normalised invariance": "sample",
}


@pytest.mark.parametrize(("name", "granularity"), COMPILED.items())
def test_losses_under_compile(group, name, granularity):
    whole = loss_of(name, granularity, "of kinds", None, 2, backend="eager")
    results = group(2)(run_loss, 2, name, granularity, "of kinds", "aot_eager", "auto")
    assert_equal_to_one_process(results, whole, 2)


def multi_view_loss_of(where: slice, size: int):
    """Three views, the last of them local, and what differs in pairs with it is another kind."""
    z, masks, log_variance, row, _ = batch(size, K)
    views = FactorizedViews(
        dict.fromkeys("abc", torch.nn.Identity()),
        pairs=KINDS,
        batched=True,
        num_local_views=1,
        local_augmentations={"a": torch.nn.Identity()},
    )
    loss = MultiViewLoss(SubspaceVICRegLoss(gather_distributed=where != slice(None)), views)

    def call(z, masks, log_variance):
        views_of = zip([*z, z[0] * z[1]], [*log_variance, log_variance.sum(0)], strict=True)
        return loss([SubspaceOutput(a, masks, v, views.kinds, "subspace") for a, v in views_of], kind=row[where])

    return value_and_gradients(call, (z[:, where], masks, log_variance[:, where]))


def run_multi_view_loss(rank: int, size: int):
    return multi_view_loss_of(part(rank, size), size)


def test_the_mean_over_pairs_of_views_is_that_of_the_whole_batch(group):
    whole = multi_view_loss_of(slice(None), 2)
    assert all(grad.abs().sum() > 0 for grad in whole[1])
    assert_equal_to_one_process(group(2)(run_multi_view_loss, 2), whole, 2)


def run_loss_and_listen(rank: int, *args):
    """Also how many numbers each sum over ranks has, forwards and backwards, in the order that this rank tells them."""
    told, tell = [], dist.all_reduce
    dist.all_reduce = lambda x, *args, **options: told.append(x.numel()) or tell(x, *args, **options)
    try:
        return run_loss(rank, *args), told
    finally:
        dist.all_reduce = tell


def test_losses_under_inductor(group):
    """Ranks of unlike shapes: where nothing ties collectives together, Inductor runs them in another order on each."""
    whole = loss_of("vicreg", None, "of kinds", None, 2, backend="eager")
    how = (2, "vicreg", None, "of kinds")  # pairs, moments and sensitivity
    results, told = zip(*group(2)(run_loss_and_listen, *how, "inductor", "chunked"), strict=True)
    assert_equal_to_one_process(results, whole, 2)
    _, eager = zip(*group(2)(run_loss_and_listen, *how, None, "chunked"), strict=True)
    assert told[0] == told[1]
    assert eager[0] == eager[1]
    assert sorted(told[0]) == sorted(eager[0])


def sensitivity_of(weighted: bool, where: slice | None, size: int, compiler=None, backend="auto"):
    """Pairs closer than random ones are, so that the hinge is open; the last alone differs on the first rank only."""
    z, masks, _, row, _ = batch(size)
    first = torch.arange(z.shape[1]) < SIZES[size][0]
    row = torch.where(first | (row >= K), row, row % (K - 1))
    row[0] = K - 1
    weight = torch.linspace(0.2, 3.0, z.shape[1], dtype=z.dtype) if weighted else None
    where, gather = where or slice(None), where is not None

    def call(z, masks):
        z0, z1 = z[0], z[0] + 0.4 * z[1]
        own = None if weight is None else weight[where]
        return MF.subspace_sensitivity(
            z0, z1, masks, kinds=KINDS, kind=row[where], weight=own, gather_distributed=gather, backend=backend
        ) @ torch.arange(1.0, K + 1, dtype=z.dtype)

    run = torch.compile(call, fullgraph=True, backend=compiler) if compiler else call
    return value_and_gradients(run, (z[:, where], masks))


def run_sensitivity(rank: int, size: int, weighted: bool, *how):
    torch._dynamo.reset()
    return sensitivity_of(weighted, part(rank, size), size, *how)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("compiler", "backend", "size"),
    [*((None, backend, size) for backend in ("eager", "chunked") for size in (2, 3)), ("aot_eager", "auto", 2)],
)
def test_sensitivity_is_that_of_the_whole_batch(group, weighted, compiler, backend, size):
    whole = sensitivity_of(weighted, None, size, backend="eager")
    assert whole[0] > 0
    assert all(grad.abs().sum() > 0 for grad in whole[1])
    results = group(size)(run_sensitivity, size, weighted, compiler, backend)
    assert_equal_to_one_process(results, whole, size)


def sums_told(rank: int, name: str, sensitivity: float):
    """How often this rank tells the others something, forwards and backwards."""
    z = torch.randn(2, 4, D, requires_grad=True)
    out = SubspaceOutput(z[0], torch.rand(K, D, requires_grad=True), torch.randn(4, K, requires_grad=True))
    out = out._replace(kinds=KINDS, granularity="subspace")
    loss = LOSSES[name](gather_distributed=True)
    loss.sensitivity_param = sensitivity
    told, tell = [], dist.all_reduce
    dist.all_reduce = lambda *args, **options: told.append(1) or tell(*args, **options)
    try:
        value = loss(out, z[1], kind=torch.arange(4) + 1)
        forwards = len(told)
        value.backward()
    finally:
        dist.all_reduce = tell
    return forwards, len(told) - forwards


@pytest.mark.parametrize("name", LOSSES)
def test_constants_of_sensitivity_do_not_go_round_in_the_backward_pass(group, name):
    """A mean and a variance of each view, the mean of weights where pairs have any, and the sums by kind, of which
    alone there is a gradient."""
    sums = 6 if name.startswith("vicreg") else 5
    with_it, without = (group(2)(sums_told, name, weight) for weight in (1.0, 0.0))
    for (forwards, backwards), (forwards_without, backwards_without) in zip(with_it, without, strict=True):
        assert (forwards - forwards_without, backwards - backwards_without) == (sums, 1)


FORMS = {
    "one way": {},
    "both ways": {"symmetric": True},
    "one at a time": {"how": "one at a time"},
    "of kinds": {"how": "of kinds"},
    "nt-xent": {"nt_xent": True},
    "nt-xent one at a time": {"nt_xent": True, "how": "one at a time"},
    "nt-xent of kinds": {"nt_xent": True, "how": "of kinds"},
}


def form_of(form: str, row, where: slice):
    """The function of a form, and what it is told beside views and masks."""
    options = dict(FORMS[form])
    function = MF.subspace_nt_xent if options.pop("nt_xent", False) else MF.subspace_info_nce
    return partial(function, **pairs_of(options.pop("how", "in every mask"), row, where), **options)


def contrast_of(form: str, where: slice | None, size: int, dtype=torch.float64, backend="auto", reduction="mean"):
    z, masks, _, row, temperature = batch(size, 1, dtype)
    where, gather = where or slice(None), where is not None
    function = form_of(form, row, where)

    def call(z, masks, temperature):
        losses = function(
            *z, masks, temperature=temperature, reduction=reduction, gather_distributed=gather, backend=backend
        )
        return losses if reduction == "mean" else (losses * torch.arange(1.0, losses.numel() + 1).view_as(losses)).sum()

    return value_and_gradients(call, (z[:, where], masks, temperature))


def run_contrast(rank: int, size: int, form: str, *args):
    return contrast_of(form, part(rank, size), size, *args)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_all_pairs_go_round_the_ring(group, form, size):
    whole = contrast_of(form, None, size, backend="eager")
    assert_equal_to_one_process(group(size)(run_contrast, size, form), whole, size)


@pytest.mark.parametrize("form", FORMS)
def test_the_triton_kernels_go_round_too(group, form):
    whole = contrast_of(form, None, 3, backend="eager")
    whole = whole[0].float(), [g.float() for g in whole[1]]
    results = group(3)(run_contrast, 3, form, torch.float32, "triton")
    assert_equal_to_one_process(results, whole, 3, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_no_worse_than_one_process(group, form, dtype):
    def error(values):
        return [
            (got.double() - wanted).abs().max() / wanted.abs().max() for got, wanted in zip(values, exact, strict=True)
        ]

    exact = contrast_of(form, None, 3, backend="eager")[1]
    plain = error(contrast_of(form, None, 3, dtype, "eager")[1])
    parts = [grads for _, grads in group(3)(run_contrast, 3, form, dtype)]
    z, *others = zip(*parts, strict=True)
    ours = error([torch.cat(z, 1) / 3, *(torch.stack(x).double().mean(0) for x in others)])
    for got, allowed in zip(ours, plain, strict=True):
        assert got <= allowed + 4 * torch.finfo(dtype).eps


def local_losses(rank: int, size: int, form: str):
    z, masks, _, row, _ = batch(size)
    where = part(rank, size)
    function = form_of(form, row, where)
    return function(*z[:, where], masks, temperature=0.2, reduction="none", gather_distributed=True)


@pytest.mark.parametrize("form", FORMS)
def test_no_reduction_gives_the_own_anchors(group, form):
    z, masks, _, row, _ = batch(3)
    wanted = form_of(form, row, slice(None))(*z, masks, temperature=0.2, reduction="none", backend="eager")
    torch.testing.assert_close(torch.cat(group(3)(local_losses, 3, form)), wanted)


def upstream_of_its_own(rank: int):
    z = torch.randn(2, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(rank), requires_grad=True)
    losses = MF.subspace_info_nce(
        *z, torch.ones(K, D).double(), temperature=0.5, reduction="none", gather_distributed=True
    )
    (losses * (rank + 1)).sum().backward()
    return z.detach(), z.grad


def test_every_rank_may_weigh_its_losses_as_it_likes(group):
    views, grads = zip(*group(2)(upstream_of_its_own), strict=True)
    z = torch.cat(views, 1).requires_grad_()
    losses = MF.subspace_info_nce(*z, torch.ones(K, D).double(), temperature=0.5, reduction="none", backend="eager")
    (losses * torch.tensor([1, 1, 1, 2, 2, 2])[:, None]).sum().backward()
    torch.testing.assert_close(torch.cat(grads, 1), z.grad)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", range(1, 12))
def test_every_pair_of_ranks_meets_once(size, symmetric):
    ring = object.__new__(_Ring)
    ring.size, ring.symmetric, ring.both_ways = size, symmetric, False
    met = [(rank, rank) for rank in range(size)]
    for step in ring._steps():
        for rank in range(size):
            other = (rank + step.distance) % size
            met += [(rank, other)] + ([(other, rank)] if step.both_ways else [])
    assert sorted(met) == [(a, b) for a in range(size) for b in range(size)]


def backbone_and_head():
    torch.manual_seed(3)
    projector = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, D))
    head = MaskedSubspaceHead(projector, K, kinds=KINDS, uncertainty="subspace")
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), head).double()


def step(model, loss, x, kind):
    out0, out1 = model(x[0]), model(x[1])
    assert torch.equal(out0.kinds, KINDS)
    assert out0.granularity == "subspace"
    loss(out0, out1, kind=kind).backward()


def images(size: int):
    g = torch.Generator().manual_seed(1)
    n = 4 * size
    return torch.randn(2, n, 4, generator=g, dtype=torch.float64), torch.randint(len(KINDS), (n,), generator=g)


def train_parallel(rank: int, size: int, name: str, how: str):
    x, kind = images(size)
    mine = slice(4 * rank, 4 * rank + 4)
    model, loss = backbone_and_head(), LOSSES[name](gather_distributed=True)
    if how == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (size,))
        fully_shard(model[2], mesh=mesh)
        step(fully_shard(model, mesh=mesh), loss, x[:, mine], kind[mine])
        return {n: p.grad.full_tensor() for n, p in model.named_parameters()}
    parallel = nn.parallel.DistributedDataParallel(model)
    if how == "compiled":
        torch._dynamo.reset()
        parallel, loss = (torch.compile(x, backend="aot_eager") for x in (parallel, loss))
    step(parallel, loss, x[:, mine], kind[mine])
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("how", ["ddp", "compiled", "fsdp"])
@pytest.mark.parametrize("name", ["nt-xent", "vicreg"])
def test_parameters_get_the_gradients_of_one_process(group, name, how):
    x, kind = images(2)
    model = backbone_and_head()
    step(model, LOSSES[name](backend="eager"), x, kind)
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for grads in group(2)(train_parallel, 2, name, how):
        if isinstance(grads, Exception):
            raise grads
        assert {n for n, g in grads.items() if g is not None} >= set(wanted)
        for n, grad in wanted.items():
            torch.testing.assert_close(grads[n], grad, msg=lambda text, n=n: f"{n}: {text}")


def train_with_doubt(rank: int, name: str, uncertainty: str):
    """DDP starts a second step only after every parameter had a gradient in the first."""
    torch.manual_seed(rank)
    head = MaskedSubspaceHead(nn.Linear(4, D), K, kinds=KINDS, uncertainty=uncertainty)
    parallel, loss = nn.parallel.DistributedDataParallel(head), LOSSES[name](gather_distributed=True)
    for _ in range(3):
        kind = torch.randint(len(KINDS), (6,))
        loss(parallel(torch.randn(6, 4)), parallel(torch.randn(6, 4)), kind=kind).backward()
    return head.uncertainty.last.weight.grad


@pytest.mark.parametrize("name", LOSSES)
def test_ddp_goes_on_where_a_loss_has_no_use_for_a_variance(group, name):
    for uncertainty in granularities_of(name)[1:]:
        for grad in group(2)(train_with_doubt, name, uncertainty):
            if isinstance(grad, Exception):
                raise grad
            assert grad.any() == ("vicreg" in name or "invariance" in name)


def ranks_of_late_masks(rank: int, how: str):
    """A model is made parallel, and then its head wraps its projector; what is said in three steps, and the masks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    late = how.startswith("late")
    if not late:
        model[1] = MaskedSubspaceHead(model[1], K, kinds=KINDS)
    if "ignored" in how:
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, {"1.masks.weight"})
    if "fsdp" in how:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if "part" in how:
            fully_shard(model[1], mesh=init_device_mesh("cpu", (2,)))
        parallel = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    else:
        parallel = nn.parallel.DistributedDataParallel(model)
    if late:
        model[1] = MaskedSubspaceHead(model[1], K, kinds=KINDS)
    groups = [{"params": [p]} for p in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    torch.manual_seed(rank)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            x = torch.randn(2, 6, 4)
            SubspaceVICRegLoss()(parallel(x[0]), parallel(x[1]), kind=torch.randint(len(KINDS), (6,))).backward()
            optimizer.step()
            optimizer.zero_grad()
    weight = model[1].masks.weight.detach()
    return [str(one.message) for one in told], weight.full_tensor() if hasattr(weight, "full_tensor") else weight


@pytest.mark.parametrize("how", ["late, ddp", "late, fsdp", "late, fsdp, part"])
def test_masks_that_are_made_after_ddp_or_fsdp_are_named(group, how):
    for got in group(2)(ranks_of_late_masks, how):
        if how == "late, ddp":
            assert "MaskedSubspaceHead: got masks.weight, which the DistributedDataParallel around it does n" in str(
                got
            )
        else:
            assert [text.split(",")[0] for text in got[0]] == [
                "MaskedSubspaceHead: got masks.weight whole beside shards of FSDP"
            ]


@pytest.mark.parametrize("how", ["ddp", "ddp, ignored", "fsdp", "fsdp, part"])
def test_masks_that_are_made_in_time_are_not_named(group, how):
    (told, weight), (told1, weight1) = group(2)(ranks_of_late_masks, how)
    assert told + told1 == []
    assert torch.equal(weight, weight1) != ("ignored" in how)


def learned_on_ranks(rank: int, name: str, gather: bool, how: str):
    """What a loss itself learns in three steps of plain SGD, where the model alone is in DDP; and what is said."""
    torch.manual_seed(0)
    parallel = nn.parallel.DistributedDataParallel(MaskedSubspaceHead(nn.Linear(4, D), K, kinds=KINDS))
    given = {"temperature": nn.Parameter(torch.tensor(0.5))} if name == "nt-xent" else {}
    loss = {"nt-xent": SubspaceNTXentLoss, "sigmoid": SubspaceSigmoidLoss}[name](gather_distributed=gather, **given)
    learned = list(loss.parameters())
    called = loss
    if how == "compiled":
        torch._dynamo.reset()
        called = torch.compile(loss, fullgraph=True, backend="aot_eager")
    elif how == "ddp":
        called = nn.parallel.DistributedDataParallel(loss)
    elif how == "of views":
        called = lambda out0, out1, kind: MultiViewLoss(loss)([out0, out1, out0], kind=kind)  # noqa: E731
    optimizer = torch.optim.SGD([*parallel.parameters(), *learned], lr=0.1)
    x, kind = images(2)
    mine = slice(4 * rank, 4 * rank + 4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.zero_grad()
            called(*(parallel(one[mine].float()) for one in x), kind=kind[mine]).backward()
            optimizer.step()
    return [one.item() for one in learned], [str(one.message) for one in told]


@pytest.mark.parametrize("how", ["plain", "compiled", "ddp", "of views"])
@pytest.mark.parametrize("name", ["nt-xent", "sigmoid"])
def test_what_a_loss_learns_is_alike_on_all_ranks(group, name, how):
    (first, told), (second, _) = group(2)(learned_on_ranks, name, True, how)
    assert first == second
    assert told == []
    if how == "plain":
        torch.testing.assert_close(first, learned_on_one(name), rtol=1e-5, atol=0)


def learned_on_one(name: str):
    """The same of the whole batch."""
    torch.manual_seed(0)
    head = MaskedSubspaceHead(nn.Linear(4, D), K, kinds=KINDS)
    loss = SubspaceSigmoidLoss() if name == "sigmoid" else SubspaceNTXentLoss(nn.Parameter(torch.tensor(0.5)))
    optimizer = torch.optim.SGD([*head.parameters(), *loss.parameters()], lr=0.1)
    x, kind = images(2)
    for _ in range(3):
        optimizer.zero_grad()
        loss(*(head(one.float()) for one in x), kind=kind).backward()
        optimizer.step()
    return [one.item() for one in loss.parameters()]


@pytest.mark.parametrize("name", ["nt-xent", "sigmoid"])
def test_a_loss_that_learns_on_each_rank_alone_says_so_once(group, name):
    names = {"nt-xent": "temperature", "sigmoid": "log_scale, bias"}[name]
    for how in ("plain", "of views"):
        (first, told), (second, _) = group(2)(learned_on_ranks, name, False, how)
        assert first != second
        (text,) = told
        assert f"got {names} to learn on each of 2 ranks, which would each train its own; wanted gather" in text
    (first, told), (second, _) = group(2)(learned_on_ranks, name, False, "ddp")
    assert (first, told) == (second, [])


def difficulty_of(where: slice, gather: bool):
    """The terms of predicted difficulty, without and with a reference, and the gradients of log-variances of both.

    Nothing else in NT-Xent moves these.
    """
    z, masks, log_variance, row, _ = batch(2, K)
    loss = SubspaceNTXentLoss(0.3, difficulty_param=1.0, gather_distributed=gather)
    doubts = log_variance[:, where].detach().requires_grad_()
    outs = [SubspaceOutput(a, masks, v, KINDS, "subspace") for a, v in zip(z[:, where], doubts, strict=True)]
    calls = [
        loss(*outs, kind=row[where], reference=reference, return_components=True)
        for reference in (None, z[:, where].mean(0))
    ]
    terms = torch.stack([parts["difficulty"] for _, parts in calls])
    return terms, torch.autograd.grad(sum(total for total, _ in calls), doubts)


def run_difficulty(rank: int):
    return difficulty_of(part(rank, 2), True)


def test_predicted_difficulty_is_the_mean_over_all_ranks(group):
    """Pairs are ranked in the batch of their own rank, and every pair counts alike."""
    n = sum(SIZES[2])
    alone = [(difficulty_of(part(rank, 2), False), size / n) for rank, size in enumerate(SIZES[2])]
    value = sum(value * share for (value, _), share in alone)
    grads = torch.cat([share * grad for (_, (grad,)), share in alone], 1)
    assert grads.any()
    assert_equal_to_one_process(group(2)(run_difficulty), (value, [grads]), 2)


@pytest.mark.parametrize("name", measure.MEASURED)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_model_of_bytes_is_what_is_sent(group, name, size):
    setup = model.Setup(size, 12, 600, 3, element=4)
    for result in group(size)(measure.rank, name, setup):
        assert result["sent"] == pytest.approx(model.SCHEMES[name](setup).sent, rel=1e-12)


def bytes_on_a_rank(rank: int, size: int):
    g = torch.Generator().manual_seed(rank)
    n, d, k = 256, 128, 4
    z = torch.randn(2, n, d, generator=g).requires_grad_()
    masks = torch.rand(k, d, generator=torch.Generator().manual_seed(9)).requires_grad_()

    def loss(z, masks):
        return MF.subspace_info_nce(*z, masks, temperature=0.1, symmetric=True, gather_distributed=True)

    return memory.measure(loss, Inputs([z, masks], []))


def test_memory_of_a_rank_does_not_grow_with_their_number(group):
    four, five = (group(size)(bytes_on_a_rank, size)[0] for size in (4, 5))  # with fewer, not all is under way at once
    view, scores = 256 * 128 * 4, 256 * 256 * 4
    assert five["peak"] <= four["peak"] + view / 4
    # Two blocks of scores of one subspace; packed sides, blocks that visit or arrive, and gradients are views.
    assert five["peak"] < 2 * scores + 14 * view
    assert five["saved"] == four["saved"] < view


def bytes_of_labels(rank: int):
    products.BLOCK["cpu"], n = 1 << 14, 600
    z = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(rank)).requires_grad_()
    masks = torch.ones(1, 8, requires_grad=True)
    loss = SubspaceSigmoidLoss(3.0, -1.0, gather_distributed=True)

    def labelled(z, masks):
        return loss(*(SubspaceOutput(x, masks) for x in z), sample=torch.arange(n) % 2)

    try:
        return memory.measure(labelled, Inputs([z, masks], []))
    finally:
        products.BLOCK["cpu"] = 1 << 20


def test_labels_list_no_pairs_on_any_rank(group):
    """Half of the pairs with each rank are positives: a list of them would be larger than the scores."""
    for got in group(2)(bytes_of_labels):
        assert got["peak"] < 600 * 600 * 4


def run_disagreeing(rank: int, what: str, compiled: bool):
    """One rank differs from the others in one thing, and they have compared nothing yet."""
    agreement._agreed.clear()
    odd = rank == 1
    d, k = (D + 1 if what == "D" and odd else D), (K + 1 if what == "K" and odd else K)
    dtype = torch.bfloat16 if what == "dtype" and odd else torch.float16
    z, masks, kinds = torch.randn(2, 4, d).to(dtype), torch.ones(k, d), torch.eye(k, dtype=torch.bool)
    if what == "kinds" and odd:
        kinds = kinds.flip(0)
    if what == "masks" and odd:
        masks = masks / 2
    if what == "function" and odd:
        loss = SubspaceBarlowTwinsLoss(gather_distributed=True)
    else:
        scope, normalize = ("subspace" if what == "scope" and odd else "embedding"), not (what == "normalize" and odd)
        weight = 0.0 if what == "sensitivity" and odd else 1.0
        loss = SubspaceVICRegLoss(scope=scope, normalize=normalize, sensitivity_param=weight, gather_distributed=True)
        loss.backend = "chunked" if what == "backend" and odd else "auto"
    kind = None if what == "kind" and odd else torch.tensor([0, 1, 2, 0])
    doubt = None if what == "granularity" and odd else "sample"
    outs = [SubspaceOutput(x, masks, torch.zeros(4, 1) if doubt else None, kinds, doubt) for x in z]
    if compiled:
        torch._dynamo.reset()
        loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    return loss(*outs, kind=kind)


DISAGREEMENTS = {
    "D": (D, D + 1),
    "K": (K, K + 1),
    "dtype": (torch.float16, torch.bfloat16),
    "masks": tuple(f"those of weighed sums [{', '.join([one] * K)}]" for one in ("7.5", "3.75")),
    "kinds": ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
    "function": ("SubspaceVICRegLoss", "SubspaceBarlowTwinsLoss"),
    "scope": ("embedding", "subspace"),
    "normalize": (True, False),
    "sensitivity": (True, False),
    "backend": ("auto", "chunked"),
    "kind": (True, False),
    "granularity": ("sample", None),
}


@pytest.mark.parametrize(
    ("what", "compiled"), [*((what, False) for what in DISAGREEMENTS), ("dtype", True), ("backend", True)]
)
def test_ranks_that_disagree_all_say_so(group, what, compiled):
    most, odd = DISAGREEMENTS[what]
    for rank, error in enumerate(group(3)(run_disagreeing, what, compiled)):
        got, wanted, other = (odd, most, 0) if rank == 1 else (most, odd, 1)
        words = f"gather_distributed: got {what} = {got} on rank {rank}, wanted {wanted}, that of rank {other}"
        assert words in str(error)


def disagree(rank: int, dtypes: tuple[torch.dtype, ...], dims: tuple[int, ...]):
    z = torch.randn(2, 4, dims[rank], dtype=dtypes[rank])
    return MF.subspace_nt_xent(*z, torch.ones(2, dims[rank]), temperature=0.5, gather_distributed=True)


def test_functions_compare_as_losses_do(group):
    for rank, error in enumerate(group(2)(disagree, (torch.float32,) * 2, (5, 6))):
        assert f"gather_distributed: got D = {5 + rank} on rank {rank}, wanted {6 - rank}" in str(error)
    first, second = map(str, group(2)(disagree, (torch.float16, torch.bfloat16), (5, 5)))  # elements are as wide
    assert "gather_distributed: got dtype = torch.float16 on rank 0, wanted torch.bfloat16, that of rank 1" in first
    assert "gather_distributed: got dtype = torch.bfloat16 on rank 1, wanted torch.float16, that of rank 0" in second


def odd_call(rank: int, what: str):
    """Two calls, of which the second differs on a rank in what a call before had as well, or in what is of no shape."""
    agreement._agreed.clear()
    odd = rank == 1
    z, kind = torch.randn(2, 4, D), torch.tensor([0, 1, 2, 0])
    masks = (torch.arange(K * D).view(K, D) / 10).requires_grad_()
    table = torch.eye(K, dtype=torch.bool)

    def call(loss=None, pairs=z, masks=masks, kinds=table, **given):
        loss = SubspaceVICRegLoss(gather_distributed=True) if loss is None else loss
        return loss(*pairs, masks=masks, kinds=kinds, **({"kind": kind} | given))

    def temperature(value):
        return SubspaceNTXentLoss(value, gather_distributed=True)

    calls = {
        "D": lambda: (
            call(pairs=z[..., :4], masks=masks[:, :4]),
            call(pairs=z[..., : 5 - odd], masks=masks[:, : 5 - odd]),
        ),
        "function": lambda: (call(), call(temperature(0.5)), call(temperature(0.5) if odd else None)),
        "masks": lambda: (call(), call(masks=masks * (1 - 0.01 * odd))),
        "kinds": lambda: (call(), call(kinds=table.flip(0) if odd else table)),
        "temperature": lambda: (call(temperature(0.5)), call(temperature(0.4 if odd else 0.5))),
        "lambda_param": lambda: call(SubspaceVICRegLoss(24.0 if odd else 25.0, gather_distributed=True)),
        "gradients": lambda: call(temperature(nn.Parameter(torch.tensor(0.5)) if odd else 0.5)),
        "gradients, none": lambda: call(masks=masks.detach() if odd else masks),
        "dtype of masks": lambda: call(masks=masks.bfloat16() if odd else masks),
        "reduction": lambda: MF.masked_distance(
            *z, masks, reduction="none" if odd else "mean", gather_distributed=True
        ),
        "weight": lambda: MF.subspace_sensitivity(
            *z, masks, kind=kind, weight=torch.ones(4) if odd else None, gather_distributed=True
        ),
        "an error": lambda: call(kind=kind.int() if odd else kind),
        "an error, at first": lambda: MF.subspace_variance("z" if odd else z[0], masks, gather_distributed=True),
        "pair of views": lambda: MultiViewLoss(SubspaceVICRegLoss(gather_distributed=True))(
            [*z, *z][: 2 if odd else 3], masks=masks
        ),
    }
    calls[what]()


@pytest.mark.parametrize(
    "what",
    [
        "D",
        "function",
        "masks",
        "kinds",
        "temperature",
        "lambda_param",
        "gradients",
        "gradients, none",
        "dtype of masks",
        "reduction",
        "weight",
        "an error",
        "an error, at first",
        "pair of views",
    ],
)
def test_a_rank_that_differs_later_or_in_a_number_is_told_on_all(group, what):
    errors = [str(one) for one in group(2)(odd_call, what)]
    if what.startswith("an error"):
        assert "got an error on rank 1, wanted none: TypeError" in errors[0]
        assert errors[1].startswith("TypeError: ")
    else:
        for rank, error in enumerate(errors):
            assert f"ValueError: gather_distributed: got {what.split(',')[0]} = " in error
            assert f" on rank {rank}, wanted " in error


def comparisons(rank: int):
    """How often ranks speak of what they call, in calls of two ways, each made thrice, with other samples each time."""
    compared, compare = [], agreement._gather
    agreement._gather = lambda own: compared.append(float(own[1])) or compare(own)
    loss = SubspaceVICRegLoss(gather_distributed=True)
    agreement._agreed.clear()
    try:
        for n in (3, 4, 5):
            for width in (7, 8):
                loss.lambda_param = float(n)  # a weight may be scheduled
                loss(*torch.randn(2, n + rank, width), masks=torch.ones(2, width))
    finally:
        agreement._gather = compare
    return compared


def test_ranks_compare_in_each_call_and_know_what_is_new(group):
    """On a GPU what is not new is asserted there: nothing waits for it."""
    assert group(2)(comparisons) == [[1, 1, 0, 0, 0, 0]] * 2


def slow_then_quick(rank: int, seconds: float):
    time.sleep(seconds * rank)
    return seconds


def test_a_late_answer_is_no_answer_to_the_next_call():
    ranks = Ranks(2)
    try:
        first = ranks(slow_then_quick, 3.0, patience=1)
        assert isinstance(first[1], TimeoutError)
        assert ranks(slow_then_quick, 0.0) == [0.0, 0.0]
    finally:
        ranks.close()


def nan_on_one(rank: int, name: str):
    z = torch.randn(2, 4, D)
    if rank == 1:
        z[0, 2, 1] = torch.nan
    return LOSSES[name](gather_distributed=True)(*z, masks=torch.ones(K, D)).detach()


@pytest.mark.parametrize("name", LOSSES)
def test_a_nan_on_one_rank_reaches_all(group, name):
    assert all(torch.isnan(loss) for loss in group(2)(nan_on_one, name))


def sensitivity_with_nan_on_one(rank: int):
    z, weight = torch.randn(2, 4, D), torch.ones(4)
    if rank == 1:
        weight[2] = torch.nan
    kind = torch.arange(4) % K
    return MF.subspace_sensitivity(*z, torch.zeros(K, D), kind=kind, weight=weight, gather_distributed=True).mean()


def test_a_nan_weight_on_one_rank_reaches_all(group):
    assert all(torch.isnan(value) for value in group(2)(sensitivity_with_nan_on_one))


def plain_formula(rank: int):
    z = torch.randn(2, 4, D)
    return MF.subspace_nt_xent(*z, torch.ones(K, D), temperature=0.5, gather_distributed=True, backend="eager")


def test_all_pairs_over_ranks_have_no_plain_formula(group):
    for error in group(2)(plain_formula):
        assert "backend: got 'eager' with gather_distributed, wanted 'auto', 'chunked' or 'triton'" in str(error)


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_process_group_there_is_one_rank(name):
    z = torch.randn(2, 4, D)
    one, plain = (LOSSES[name](gather_distributed=asked)(*z, masks=torch.ones(K, D)) for asked in (True, False))
    torch.testing.assert_close(one, plain)


def test_positives_by_sample_stay_on_a_rank():
    index = torch.arange(2)
    with pytest.raises(ValueError, match="gather_distributed: got True beside sample0 and sample1, wanted False"):
        MF.subspace_info_nce(
            *torch.randn(2, 2, D),
            torch.ones(K, D),
            temperature=0.5,
            sample0=index,
            sample1=index,
            gather_distributed=True,
        )


def test_a_build_without_distributed_says_so(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(ValueError, match="gather_distributed: got True, wanted False: this build"):
        SubspaceVICRegLoss(gather_distributed=True)


def lose_a_rank(rank: int, how: str, name: str):
    if rank == 1:
        if how == "dies":
            os._exit(1)
        time.sleep(30)
    begin = time.monotonic()
    try:
        LOSSES[name](gather_distributed=True)(*torch.randn(2, 4, D), masks=torch.ones(K, D))
    except Exception as error:
        return type(error).__name__, time.monotonic() - begin
    return "no error", 0.0


@pytest.mark.parametrize("how", ["dies", "hangs"])
@pytest.mark.parametrize("name", ["nt-xent", "vicreg"])
def test_a_lost_rank_is_an_error_and_no_hang(how, name):
    ranks = Ranks(2, timeout=3)
    try:
        for pipe in ranks._pipes:
            pipe.send((lose_a_rank, (how, name)))
        error, seconds = ranks._pipes[0].recv() if ranks._pipes[0].poll(60) else ("no answer", 60)
    finally:
        ranks.close()
    assert error not in ("no error", "no answer")
    assert seconds < 20
