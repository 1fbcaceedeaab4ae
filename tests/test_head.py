"""The head in the places where users put it."""

import copy
import io
import pickle

import pytest
import torch
from outputs import assert_same
from torch import nn

from mast_ops import BinaryMasks, MaskedSubspaceHead, NormalizedMasks, SubspaceOutput, SubspaceVICRegLoss
from mast_ops.head._state import decode_state
from mast_ops.head._widths import infer_width
from mast_ops.masks import MASKS

NAMES = ["crop", "color", "blur"]
KINDS = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]], dtype=torch.bool)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.Dropout(0.0))


class OneChild(nn.Module):
    """As lightly's projection heads are built."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        return self.layers(x)


class TwoChildren(nn.Module):
    """Its layers stand in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = nn.Linear(12, 8), nn.Linear(16, 12)

    def forward(self, x):
        return self.second(self.first(x))


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 8))

    def forward(self, x):
        return x @ self.weight


class TwoEntries(nn.Module):
    """Takes two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(16, 8), nn.Linear(12, 8)

    def forward(self, x):
        return self.wide(x) if x.shape[1] == 16 else self.narrow(x)


@pytest.mark.parametrize(
    "projector",
    [nn.Linear(16, 8), mlp(), nn.Sequential(mlp(), nn.LayerNorm(8)), OneChild(), TwoChildren()],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize(("uncertainty", "width"), [(None, 0), ("sample", 1), ("subspace", 3), ("dimension", 8)])
def test_widths_are_read_off_the_projector(projector, uncertainty, width):
    out = MaskedSubspaceHead(projector, NAMES, uncertainty=uncertainty)(torch.randn(4, 16))
    assert out.embedding.shape == (4, 8)
    assert out.masks.shape == (3, 8)
    assert (out.log_variance is None) if uncertainty is None else (out.log_variance.shape == (4, width))


@pytest.mark.parametrize("projector", [Bare(), TwoEntries()], ids=lambda module: type(module).__name__)
def test_widths_in_doubt_are_asked_for(projector):
    with pytest.raises(ValueError, match="pass output_dim="):
        MaskedSubspaceHead(projector, NAMES)
    with pytest.raises(ValueError, match="pass input_dim="):
        MaskedSubspaceHead(projector, NAMES, output_dim=8, uncertainty="sample")
    head = MaskedSubspaceHead(projector, NAMES, input_dim=16, output_dim=8, uncertainty="sample")
    assert head(torch.randn(4, 16)).embedding.shape == (4, 8)
    with pytest.raises(ValueError, match=r"h: got shape \(4, 12\), wanted \(N, 16\)"):
        head(torch.randn(4, 12))


class Counts(nn.Module):
    """Notes every call, and holds what a call in training would change."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop, self.calls = nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), []

    def forward(self, x):
        self.calls.append(len(x))
        return self.drop(self.norm(self.layer(x)))


def test_reading_widths_leaves_the_projector_and_the_generator_alone():
    projector = Counts()
    before, random = copy.deepcopy(projector.state_dict()), torch.get_rng_state()
    assert (infer_width(projector, "input"), infer_width(projector, "output")) == (16, 8)
    assert projector.calls == []
    assert projector.training
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(projector.state_dict(), before, rtol=0, atol=0)


def test_output_unpacks_moves_and_detaches():
    out = MaskedSubspaceHead(mlp(), 3)(torch.randn(4, 16))
    embedding, masks, log_variance, kinds, granularity, observer, knows_kinds = out
    assert log_variance is kinds is granularity is observer is None
    assert not knows_kinds
    assert embedding.requires_grad
    assert masks.requires_grad
    assert not out.detach().masks.requires_grad
    moved = out.to(torch.float64)
    assert isinstance(moved, SubspaceOutput)
    assert moved.masks.dtype == torch.float64


def test_log_variance_does_not_train_what_is_under_it_and_is_bounded():
    head = MaskedSubspaceHead(mlp(), 3, uncertainty="sample")
    nn.init.constant_(head.uncertainty.last.bias, 1e4)
    h = torch.randn(4, 16, requires_grad=True)
    log_variance = head(h).log_variance
    assert log_variance.max() <= 8
    log_variance.sum().backward()
    assert h.grad is None
    assert head.uncertainty.last.bias.grad is not None


@pytest.mark.parametrize("make", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_copies_are_equal_and_apart(make):
    masks = BinaryMasks(3, 8, coverage=0.5)  # of eight entries the default closes none
    head = MaskedSubspaceHead(mlp(), NAMES, masks=masks, uncertainty="subspace").eval()
    twin = make(head)
    h = torch.randn(4, 16)
    assert_same(twin(h), head(h))
    with torch.no_grad():
        twin.masks.weight.neg_()
    assert not torch.equal(head(h).masks, twin(h).masks)


@pytest.mark.parametrize("masks", MASKS)
def test_state_dict_roundtrip(masks):
    head, twin = (MaskedSubspaceHead(mlp(), NAMES, masks=masks, uncertainty="subspace").eval() for _ in range(2))
    buffer = io.BytesIO()
    torch.save(head.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    h = torch.randn(4, 16)
    assert_same(twin(h), head(h))
    assert all(isinstance(value, torch.Tensor) for value in head.state_dict().values())


def test_features_by_name_and_index():
    head = MaskedSubspaceHead(mlp(), NAMES).eval()
    out = head(torch.randn(4, 16))
    wanted = out.embedding * out.masks[1]
    assert torch.equal(head.features(out, free_of="color"), wanted)
    assert torch.equal(head.features(out.embedding, free_of=1), wanted)
    assert MaskedSubspaceHead(mlp(), 2).subspaces == ("0", "1")


def test_autocast_keeps_masks_and_log_variance_in_float32():
    head = MaskedSubspaceHead(mlp(), NAMES, uncertainty="subspace")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out0, out1 = head(torch.randn(6, 16)), head(torch.randn(6, 16))
        loss = SubspaceVICRegLoss()(out0, out1)
    assert [t.dtype for t in out0[:3]] == [torch.bfloat16, torch.float32, torch.float32]
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_compiles_whole_with_its_loss():
    head, criterion = MaskedSubspaceHead(mlp(), NAMES, kinds=KINDS, uncertainty="subspace"), SubspaceVICRegLoss()

    def step(h0, h1, kind):
        out0, out1 = head(h0), head(h1)
        return criterion(out0, out1, kind=kind), out0

    h0, h1, kind = torch.randn(6, 16), torch.randn(6, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")  # Inductor: in test_losses.py
    loss, out = compiled(h0, h1, kind)
    wanted, plain = step(h0, h1, kind)
    torch.testing.assert_close(loss, wanted)
    assert_same(out, plain, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize(
    ("uncertainty", "kinds", "strict"),
    [
        *((uncertainty, kinds, False) for uncertainty in (None, "sample", "subspace") for kinds in (None, KINDS)),
        (None, None, True),
        ("dimension", KINDS, True),
    ],
)
def test_exports_with_any_batch_and_survives_saving(uncertainty, kinds, strict):
    if strict and torch.__version__ < "2.13":
        pytest.skip("strict export fails inside torch 2.11")
    head = MaskedSubspaceHead(mlp(), NAMES, kinds=kinds, uncertainty=uncertainty).eval()
    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(head, (torch.randn(4, 16),), dynamic_shapes=({0: batch},), strict=strict)
    assert_same(program.module()(torch.ones(5, 16)), head(torch.ones(5, 16)), rtol=1e-5, atol=1e-6)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    h = torch.randn(9, 16)
    assert_same(torch.export.load(buffer).module()(h), head(h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("masks", "uncertainty", "kinds"), [("binary", None, None), ("relu", "subspace", KINDS)])
def test_onnx_with_any_batch(tmp_path, masks, uncertainty, kinds):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    head = MaskedSubspaceHead(mlp(), NAMES, masks=masks, kinds=kinds, uncertainty=uncertainty).eval()
    options = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},), "dynamo": True, "verbose": False}
    torch.onnx.export(head, (torch.randn(4, 16),), tmp_path / "head.onnx", **options)
    model = onnx.load(tmp_path / "head.onnx")
    h = torch.randn(9, 16)
    found = reference.ReferenceEvaluator(model).run(None, {model.graph.input[0].name: h.numpy()})
    wanted = [x.detach() for x in head(h) if isinstance(x, torch.Tensor)]
    torch.testing.assert_close([torch.tensor(x) for x in found], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit", "error::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("masks", "uncertainty", "kinds"),
    [*((masks, None, None) for masks in MASKS), ("binary", "subspace", KINDS), ("sigmoid", "sample", None)],
)
def test_traces_with_any_batch_and_survives_saving(masks, uncertainty, kinds):
    head = MaskedSubspaceHead(mlp(), NAMES, masks=masks, kinds=kinds, uncertainty=uncertainty).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(head, torch.randn(4, 16)), buffer)
    buffer.seek(0)
    h = torch.randn(9, 16)
    wanted = [x for x in head(h) if isinstance(x, torch.Tensor)]
    torch.testing.assert_close(list(torch.jit.load(buffer)(h)), wanted)


@pytest.mark.filterwarnings("ignore:`torch.jit", "error::torch.jit.TracerWarning")
def test_parts_of_an_output_are_traced():
    class Use(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = MaskedSubspaceHead(mlp(), NAMES, uncertainty="subspace").eval()

        def forward(self, h):
            out = self.head(h)
            first, _ = out._replace(embedding=2 * out.embedding).detach().chunk(2)
            assert (out.kinds, out.granularity) == (None, "subspace")
            return self.head.features(out, keeping="color"), first.embedding, first.log_variance

    use, h = Use(), torch.randn(10, 16)
    torch.testing.assert_close(torch.jit.trace(use, torch.randn(4, 16))(h), use(h))


@pytest.mark.filterwarnings("ignore")  # of torch, at its old exporter
def test_onnx_by_torchscript(tmp_path):
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    head, h = MaskedSubspaceHead(mlp(), NAMES, kinds=KINDS, uncertainty="subspace").eval(), torch.randn(9, 16)
    options = {"dynamo": False, "input_names": ["h"], "dynamic_axes": {"h": {0: "batch"}}}
    torch.onnx.export(head, (torch.randn(4, 16),), str(tmp_path / "head.onnx"), **options)
    found = reference.ReferenceEvaluator(onnx.load(tmp_path / "head.onnx")).run(None, {"h": h.numpy()})
    wanted = [x.detach() for x in head(h) if isinstance(x, torch.Tensor)]
    torch.testing.assert_close([torch.tensor(x) for x in found], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_torchscript_cannot_do_is_said():
    head = MaskedSubspaceHead(mlp(), NAMES)
    for module in (head, head.masks, SubspaceVICRegLoss()):
        with pytest.raises(
            TypeError, match=rf"^torch.jit.script: got {type(module).__name__}, wanted .*torch.jit.trace"
        ):
            torch.jit.script(module)
    with pytest.raises(TypeError, match=r"^h: got a Proxy of torch.fx, wanted .*torch.export"):
        torch.fx.symbolic_trace(head)
    hard = MaskedSubspaceHead(mlp(), NAMES, masks="hard_concrete")
    with pytest.raises(RuntimeError, match=r"^torch.jit.trace: got hard-concrete masks in training mode.*eval"):
        torch.jit.trace(hard, torch.randn(4, 16))
    masks, loss = head.masks().detach(), SubspaceVICRegLoss()
    with pytest.raises(RuntimeError, match=r"^torch.jit.trace: got a loss, whose number of samples"):
        torch.jit.trace(lambda x, y: loss(x, y, masks=masks), (torch.randn(4, 8), torch.randn(4, 8)))


@pytest.mark.usefixtures("alone")
def test_trains_under_ddp():
    head = MaskedSubspaceHead(mlp(), NAMES, uncertainty="subspace")
    parallel = nn.parallel.DistributedDataParallel(head)
    SubspaceVICRegLoss()(*parallel(torch.randn(12, 16)).chunk(2)).backward()  # two calls are too many for torch 2.11
    assert all(p.grad is not None for p in head.parameters())


def with_kinds(**options) -> MaskedSubspaceHead:
    return MaskedSubspaceHead(mlp(), NAMES, kinds=KINDS, **options).eval()


def assert_knows(head: nn.Module, kinds: torch.Tensor, **tensor) -> None:
    """The table in the output, where the weights are."""
    table = head(torch.randn(4, 16, **tensor)).kinds
    assert table.dtype == torch.bool
    assert torch.equal(table, kinds)


def test_kinds_are_in_the_output_and_by_default_one_at_a_time():
    head = with_kinds()
    assert torch.equal(head.kinds, KINDS)
    assert_knows(head, KINDS)
    for plain in (MaskedSubspaceHead(mlp(), NAMES), MaskedSubspaceHead(mlp(), NAMES, kinds=torch.eye(3) > 0)):
        assert torch.equal(plain.kinds, torch.eye(3, dtype=torch.bool))
        assert plain(torch.randn(4, 16)).kinds is None  # no product of masks is asked for


def test_names_alone_go_with_no_kind():
    """The table might be any: with K kinds of all but one, each pair would count in the one mask that it should not."""
    kind, loss = torch.tensor([0, 1, 2, 0]), SubspaceVICRegLoss()
    head = MaskedSubspaceHead(mlp(), NAMES)
    for one in (head, with_kinds().with_subspaces(NAMES)):
        out0, out1 = one(torch.randn(4, 16)), one(torch.randn(4, 16))
        with pytest.raises(ValueError, match=r"^kind: got indices with a head that was told names alone, wanted Mask"):
            loss(out0, out1, kind=kind)
        loss(out0, out1)
    out0, out1 = head(torch.randn(4, 16)), head(torch.randn(4, 16))
    table = torch.eye(3, dtype=torch.bool)
    torch.testing.assert_close(loss(out0, out1, kind=kind, kinds=table), loss(*map(known, (out0, out1)), kind=kind))


def known(out: SubspaceOutput) -> SubspaceOutput:
    return out._replace(knows_kinds=True)


def test_a_forgotten_kind_is_warned_of():
    head = with_kinds()
    with pytest.warns(UserWarning, match="kind: got None with a head that knows kinds") as caught:
        SubspaceVICRegLoss()(head(torch.randn(4, 16)), head(torch.randn(4, 16)))
    assert caught[0].filename == __file__


def test_a_head_has_kinds_of_its_own():
    given = KINDS.clone()
    head = MaskedSubspaceHead(mlp(), NAMES, kinds=given).eval()
    given.fill_(True)
    assert_knows(head, KINDS)


@pytest.mark.parametrize(
    ("kinds", "error", "words"),
    [
        (torch.ones(2, 4, dtype=torch.bool), ValueError, r"kinds: got shape \(2, 4\), wanted \(S, 3\)"),
        (torch.ones(2, 3), TypeError, "kinds: got dtype torch.float32, wanted torch.bool"),
        (torch.eye(4, 3, dtype=torch.bool), ValueError, "kinds: got row 3 all False"),
        ([[True] * 3], TypeError, "kinds: got list, wanted a boolean tensor"),
    ],
)
def test_kinds_are_checked_when_the_head_is_made(kinds, error, words):
    with pytest.raises(error, match=words):
        MaskedSubspaceHead(mlp(), NAMES, kinds=kinds)
    with pytest.raises(error, match=words):
        MaskedSubspaceHead(mlp(), NAMES).with_subspaces(NAMES, kinds=kinds)


def test_kinds_go_through_any_move():
    """A dtype is for weights: a table stays one of booleans."""
    for move, dtype in (
        (lambda head: head.half(), torch.float16),
        (lambda head: head.double(), torch.float64),
        (lambda head: head.to(torch.bfloat16), torch.bfloat16),
        (lambda head: head.to("cpu", torch.float64), torch.float64),
        (lambda head: head.half().float(), torch.float32),
        (copy.deepcopy, torch.float32),
        (lambda head: pickle.loads(pickle.dumps(head.half())), torch.float16),
    ):
        assert_knows(move(with_kinds()), KINDS, dtype=dtype)


def test_kinds_move_with_the_output():
    out = with_kinds()(torch.randn(4, 16))
    assert out.to(torch.float64).kinds.dtype == torch.bool
    assert torch.equal(out.detach().kinds, KINDS)
    assert all(torch.equal(part.kinds, KINDS) for part in out.chunk(2, dim=0))


IN_PLACE_OF_A_TENSOR = {
    "normalize": lambda out: nn.functional.normalize(out, dim=1),
    "mse_loss": lambda out: nn.functional.mse_loss(out, out),
    "cat": lambda out: torch.cat([out, out]),
    "mean": lambda out: torch.mean(out, 0),
    "linear": nn.Linear(32, 2),
    "std": lambda out: out.std(0),
    "shape": lambda out: out.shape,
    "T": lambda out: out @ out.T,
    "float": lambda out: out.float(),
}


@pytest.mark.parametrize("name", IN_PLACE_OF_A_TENSOR)
def test_an_output_in_place_of_a_tensor_says_what_to_pass(name):
    out = MaskedSubspaceHead(mlp(), 3)(torch.randn(4, 16))
    for autocast in (False, True):
        with (
            torch.autocast("cpu", enabled=autocast),
            pytest.raises((TypeError, AttributeError), match=rf"^{name}: got a SubspaceOutput.*pass its \.embedding"),
        ):
            IN_PLACE_OF_A_TENSOR[name](out)


def test_an_output_has_what_a_named_tuple_has():
    out = MaskedSubspaceHead(mlp(), 3)(torch.randn(4, 16))
    assert not hasattr(out, "shape")
    with pytest.raises(AttributeError, match=r"^embeding: a SubspaceOutput has none$"):
        out.embeding  # noqa: B018


def test_data_parallel_is_refused():
    """It would put the masks of several devices together as it does samples."""
    with pytest.raises(RuntimeError, match=r"^DataParallel: got a MaskedSubspaceHead on several devices"):
        nn.Sequential(MaskedSubspaceHead(mlp(), 3))[0]._replicate_for_data_parallel()


def test_a_head_is_not_wrapped_again():
    """As by a notebook's cell that is run twice."""
    with pytest.raises(TypeError, match=r"^projector: got a MaskedSubspaceHead, wanted .* its \.projector"):
        MaskedSubspaceHead(with_kinds(), ["crop"], output_dim=16)
    with pytest.raises(TypeError, match=r"^projector: got list, wanted a module"):
        MaskedSubspaceHead(["crop"], mlp())  # the other way round
    with pytest.raises(TypeError, match=r"^projector: got the class Linear, wanted a module"):
        MaskedSubspaceHead(nn.Linear, ["crop"])


@pytest.mark.parametrize("part", ["chunk", "split"])
def test_an_output_is_parted_along_samples_alone(part):
    out = with_kinds()(torch.randn(4, 16))
    assert [len(one.embedding) for one in getattr(out, part)(2, dim=0)] == [2, 2]
    with pytest.raises(ValueError, match=r"^dim: got 1, wanted 0, the samples"):
        getattr(out, part)(2, dim=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kinds_go_to_the_device():
    head = with_kinds().cuda()
    assert_knows(head, KINDS.cuda(), device="cuda")
    assert_knows(head.cpu(), KINDS)


@pytest.mark.parametrize("made", ["on meta", "moved to meta"])
def test_kinds_outlive_the_meta_device(made):
    """As with FSDP: parameters are without values until a checkpoint comes, but no checkpoint has kinds."""
    full = with_kinds()
    if made == "on meta":
        with torch.device("meta"):
            head = MaskedSubspaceHead(mlp(), NAMES, kinds=torch.tensor(KINDS.tolist(), device="cpu")).eval()
    else:
        head = with_kinds().to("meta")
    assert head(torch.randn(4, 16, device="meta")).kinds.is_meta
    head.to_empty(device="cpu").load_state_dict(full.state_dict())
    h = torch.randn(4, 16)
    assert_same(head(h), full(h))
    assert torch.equal(head.kinds, KINDS)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("how", ["ddp", "fsdp", "fsdp from meta"])
def test_kinds_stay_in_a_parallel_head(how):
    full = with_kinds()
    if how == "ddp":
        parallel = nn.parallel.DistributedDataParallel(full)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        head = copy.deepcopy(full) if how == "fsdp" else copy.deepcopy(full).to("meta")
        parallel = fully_shard(head, mesh=init_device_mesh("cpu", (1,)))
        if how == "fsdp from meta":
            parallel.to_empty(device="cpu")
    for _ in range(2):
        assert_knows(parallel, KINDS)


def test_other_subspaces_have_kinds_of_their_own():
    head = with_kinds()
    pairs = torch.tensor([[True, True], [False, True]])
    fewer = head.with_subspaces(["blur", "crop"], kinds=pairs)
    assert_knows(fewer, pairs)
    assert torch.equal(head.with_subspaces(["blur", "crop"]).kinds, torch.eye(2, dtype=torch.bool))
    assert_knows(head, KINDS)


def test_a_checkpoint_says_its_kinds_and_loads_into_a_head_of_others():
    """Nothing in the weights depends on them: training may go on with other pairs."""
    head, plain = with_kinds(), MaskedSubspaceHead(mlp(), NAMES).eval()
    assert decode_state(head.state_dict()["_extra_state"])["kinds"] == KINDS.tolist()
    assert decode_state(plain.state_dict()["_extra_state"])["kinds"] is None
    one_at_a_time = MaskedSubspaceHead(mlp(), NAMES, kinds=torch.eye(3) > 0)
    assert decode_state(one_at_a_time.state_dict()["_extra_state"])["kinds"] == torch.eye(3).bool().tolist()
    assert head.state_dict().keys() == plain.state_dict().keys()
    for one, other in ((head, plain), (plain, head), (head, MaskedSubspaceHead(mlp(), NAMES, kinds=KINDS[1:]).eval())):
        kinds = other.kinds
        other.load_state_dict(one.state_dict())
        assert torch.equal(other.kinds, kinds)
        h = torch.randn(4, 16)
        assert_same(other(h)._replace(kinds=None), one(h)._replace(kinds=None))


@pytest.mark.parametrize(
    ("mine", "other"), [("subspace", "sample"), ("sample", "dimension"), ("dimension", "subspace")]
)
def test_uncertainty_of_another_granularity_is_refused_by_name(mine, other):
    """Even where the widths agree, as with D = K."""
    state = MaskedSubspaceHead(nn.Linear(16, 3), NAMES, uncertainty=other).state_dict()
    head = MaskedSubspaceHead(nn.Linear(16, 3), NAMES, uncertainty=mine)
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(ValueError, match=f"got uncertainty per {other}, wanted it per {mine}.*; nothing was loaded"):
        head.load_state_dict(state)
    torch.testing.assert_close(head.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("uncertainty", ["sample", "subspace", "dimension"])
def test_granularity_goes_with_the_log_variance(uncertainty):
    out = with_kinds(uncertainty=uncertainty)(torch.randn(4, 16))
    assert out.granularity == uncertainty
    assert out.detach().granularity == out.to(torch.float64).granularity == uncertainty
    assert {part.granularity for part in out.chunk(2)} == {uncertainty}


@pytest.mark.parametrize("uncertainty", [None, "sample", "subspace", "dimension"])
def test_subspaces_change_by_name(uncertainty):
    head = MaskedSubspaceHead(mlp(), NAMES, masks="sigmoid", uncertainty=uncertainty).eval()
    if head.uncertainty is not None:
        nn.init.normal_(head.uncertainty.last.bias)
    other = head.with_subspaces(["blur", "noise", "crop"], new=["noise"])
    h = torch.randn(6, 16)
    out, wanted = other(h), head(h)
    torch.testing.assert_close(out.embedding, wanted.embedding)
    torch.testing.assert_close(out.masks[[0, 2]], wanted.masks[[2, 0]])
    if uncertainty == "subspace":
        torch.testing.assert_close(out.log_variance[:, [0, 2]], wanted.log_variance[:, [2, 0]])
        assert out.log_variance[:, 1].eq(0).all()
    elif uncertainty is not None:
        torch.testing.assert_close(out.log_variance, wanted.log_variance)
    fresh = MaskedSubspaceHead(mlp(), ["blur", "noise", "crop"], masks="sigmoid", uncertainty=uncertainty)
    fresh.load_state_dict(other.state_dict())  # it is a head like any other
    assert head.subspaces == tuple(NAMES)


@pytest.mark.parametrize(
    ("subspaces", "new", "words"),
    [
        (["crop", "colour"], [], "subspaces: got 'colour', wanted one of 'crop'"),
        (["crop"], ["crop"], "new: got 'crop', wanted a name that the head does not have"),
        (["crop"], ["noise"], "new: got 'noise', wanted one of subspaces"),
        ([], [], "subspaces: got no names"),
        (["crop", "crop"], [], "more than once"),
    ],
)
def test_other_subspaces_are_named_with_care(subspaces, new, words):
    with pytest.raises(ValueError, match=words):
        MaskedSubspaceHead(mlp(), NAMES).with_subspaces(subspaces, new=new)


def test_masks_that_mean_something_else_are_not_loaded():
    state = MaskedSubspaceHead(mlp(), NAMES, masks=NormalizedMasks(3, 8, coverage=0.5)).state_dict()
    head = MaskedSubspaceHead(mlp(), NAMES, masks=NormalizedMasks(3, 8, coverage=0.75))
    before = head.masks.weight.clone()
    with pytest.raises(ValueError, match=r"got masks of .*0\.5.*, wanted .*0\.75.*; nothing was loaded"):
        head.load_state_dict(state)
    assert torch.equal(head.masks.weight, before)
    with pytest.raises(ValueError, match=r"got masks of .*normalized.*, wanted .*binary.*; nothing was loaded"):
        MaskedSubspaceHead(mlp(), NAMES).load_state_dict(state)


@pytest.mark.parametrize("masks", MASKS)
def test_one_subspace_of_a_trained_model_exports(masks):
    class Features(nn.Module):
        def __init__(self, head: MaskedSubspaceHead) -> None:
            super().__init__()
            self.head = head

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return self.head.features(self.head(h), keeping="color")

    module = Features(MaskedSubspaceHead(mlp(), NAMES, masks=masks).eval()).eval()
    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(module, (torch.randn(4, 16),), dynamic_shapes=({0: batch},))
    h = torch.randn(7, 16)
    torch.testing.assert_close(program.module()(h), module(h))
