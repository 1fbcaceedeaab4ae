"""Composed masks: the product of the others as the last row, and all that a head does with masks."""

import copy
import io
import json

import pytest
import torch
from torch import nn
from torch.func import functional_call

from mast_ops import (
    BinaryMasks,
    ComposedMasks,
    HardConcreteMasks,
    MaskCoverage,
    MaskedSubspaceHead,
    MaskEntropy,
    MaskExpectedL0,
    MaskHoyer,
    MaskL1,
    MaskOverlap,
    NormalizedMasks,
    ReLUMasks,
    SigmoidMasks,
    SoftplusMasks,
    SubspaceVICRegLoss,
    param_groups,
)
from mast_ops.__main__ import main
from mast_ops.checkpoints import load_heads
from mast_ops.head import decode_state, encode_state

NAMES = ["crop", "color", "blur", "all"]
EACH = {
    "binary": lambda k=3: BinaryMasks(k, 8, coverage=0.7),
    "normalized": lambda k=3: NormalizedMasks(k, 8),
    "sigmoid": lambda k=3: SigmoidMasks(k, 8),
    "relu": lambda k=3: ReLUMasks(k, 8),
    "softplus": lambda k=3: SoftplusMasks(k, 8),
    "hard_concrete": lambda k=3: HardConcreteMasks(k, 8),
}


def head(masks: str = "binary", **options) -> MaskedSubspaceHead:
    projector = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8))
    return MaskedSubspaceHead(projector, NAMES, masks=EACH[masks](), composed="all", **options)


class Own(SigmoidMasks):
    """A parameterisation that the library does not know."""


@pytest.mark.parametrize("kind", EACH)
def test_the_last_row_is_the_product_of_the_others(kind):
    masks = ComposedMasks(EACH[kind]()).eval()
    got, each = masks(), masks.each()
    assert (masks.num_subspaces, masks.dim) == got.shape == (4, 8)
    assert torch.equal(got[:3], each)
    torch.testing.assert_close(got[3].double(), each[0].double() * each[1].double() * each[2].double())
    if kind == "binary":
        assert torch.equal(got[3] == 1, (each == 1).all(0))
    alone = ComposedMasks(EACH[kind](1)).eval()()
    assert torch.equal(alone[0], alone[1])


def test_one_draw_of_random_gates_makes_both():
    masks = ComposedMasks(HardConcreteMasks(3, 40))
    first, second = masks(), masks()
    assert not torch.equal(first, second)
    for drawn in (first, second):
        torch.testing.assert_close(drawn[3], drawn[0] * drawn[1] * drawn[2])


class Table(SigmoidMasks):
    """The weight itself as masks: zeros where one puts them."""

    def forward(self) -> torch.Tensor:
        return self.weight


@pytest.mark.parametrize("zeros", [(), ((0, 1),), ((0, 1), (1, 1)), ((0, 1), (1, 1), (2, 1), (2, 3))])
@pytest.mark.parametrize("kind", [Table, SigmoidMasks])
def test_gradients_are_right_with_any_number_of_zeros(kind, zeros):
    masks = ComposedMasks(kind(3, 5))
    weight = torch.rand(3, 5, dtype=torch.float64) + 0.5
    for place in zeros:
        weight[place] = 0
    weight.requires_grad_()

    def product(w):
        return functional_call(masks, {"each.weight": w}, ())

    assert torch.autograd.gradcheck(product, (weight,))
    assert torch.autograd.gradgradcheck(product, (weight,))


def test_neither_pass_makes_the_cpu_wait():
    masks = ComposedMasks(BinaryMasks(3, 40))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        masks().sum().backward()
    assert not {"aten::item", "aten::_local_scalar_dense"} & {event.key for event in profile.key_averages()}


def test_it_compiles_whole():
    masks = ComposedMasks(BinaryMasks(3, 40, coverage=0.5))
    got, wanted = torch.compile(masks, fullgraph=True)(), masks()
    assert torch.equal(got, wanted)
    upstream = torch.randn(4, 40)
    gradients = [torch.autograd.grad(x, masks.weight, upstream)[0] for x in (got, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", EACH)
def test_rows_are_selected_with_the_product_or_without(kind):
    masks = ComposedMasks(EACH[kind]()).eval()
    smaller = masks.select([2, None, 3])
    assert isinstance(smaller, ComposedMasks)
    assert torch.equal(smaller.each.weight[0], masks.each.weight[2])
    torch.testing.assert_close(smaller()[2], smaller()[0] * smaller()[1])
    plain = masks.select([1, 0])
    assert type(plain) is type(masks.each)
    assert torch.equal(plain(), masks()[[1, 0]])
    with torch.no_grad():
        smaller.weight.zero_()
        plain.weight.zero_()
    assert masks.weight.abs().sum() > 0


@pytest.mark.parametrize("rows", [[3, 0], [0, 3, 1], [3], [0, 3, 3]])
def test_the_product_elsewhere_than_last_is_refused(rows):
    with pytest.raises(ValueError, match=r"rows: got \[.*\], wanted 3, the product of the others"):
        ComposedMasks(SigmoidMasks(3, 8)).select(rows)


@pytest.mark.parametrize(("rows", "words"), [([], "rows: got none"), ([7], "rows: got 7"), ([-1, 3], "rows: got -1")])
def test_rows_that_are_not_there_are_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        ComposedMasks(SigmoidMasks(3, 8)).select(rows)


@pytest.mark.parametrize("each", ["binary", torch.rand(3, 8), ComposedMasks(SigmoidMasks(3, 8))])
def test_what_cannot_be_composed_is_named(each):
    with pytest.raises(TypeError, match=f"each: got {type(each).__name__}, wanted masks of single augmentations"):
        ComposedMasks(each)


# ---- in a head


def test_a_head_makes_them_and_takes_them():
    by_name = MaskedSubspaceHead(nn.Linear(4, 40), NAMES, composed="all")
    assert isinstance(by_name.masks, ComposedMasks)
    assert isinstance(by_name.masks.each, BinaryMasks)
    out = by_name(torch.randn(2, 4))
    assert torch.equal(out.masks[3], out.masks[:3].prod(0))
    assert torch.equal(by_name.subspace_view(out, "all"), out.embedding * out.masks[:3].prod(0))
    ready = ComposedMasks(SigmoidMasks(3, 40))
    for options in ({}, {"composed": "all"}):
        assert MaskedSubspaceHead(nn.Linear(4, 40), NAMES, masks=ready, **options).masks is ready
    assert MaskedSubspaceHead(nn.Linear(4, 40), 3, composed="2").masks.num_subspaces == 3


@pytest.mark.parametrize(
    ("subspaces", "masks", "composed", "words"),
    [
        (NAMES, "binary", "crop", "composed: got 'crop', wanted the last of at least two subspaces"),
        (NAMES, "binary", "any", "composed: got 'any', wanted the last"),
        (["all"], "binary", "all", "composed: got 'all', wanted the last of at least two"),
        (NAMES, SigmoidMasks(4, 8), "all", r"masks: got \(K, D\) = \(4, 8\), wanted \(3, 8\)"),
        (NAMES, ComposedMasks(SigmoidMasks(4, 8)), "all", r"masks: got \(K, D\) = \(5, 8\), wanted \(4, 8\)"),
        (NAMES, "tanh", "all", "masks: got 'tanh'"),
    ],
)
def test_heads_that_cannot_be_composed_say_why(subspaces, masks, composed, words):
    with pytest.raises(ValueError, match=words):
        MaskedSubspaceHead(nn.Linear(4, 8), subspaces, masks=masks, composed=composed)


@pytest.mark.parametrize("uncertainty", [None, "subspace"])
def test_subspaces_change_by_name(uncertainty):
    one = head("sigmoid", uncertainty=uncertainty)
    if one.uncertainty is not None:
        nn.init.normal_(one.uncertainty.bias)
    other = one.with_subspaces(["blur", "noise", "all"], new=["noise"])
    h = torch.randn(5, 6)
    out, before = other(h), one(h)
    assert torch.equal(out.masks[0], before.masks[2])
    torch.testing.assert_close(out.masks[2], out.masks[0] * out.masks[1])
    if uncertainty:
        assert torch.equal(out.log_variance[:, [0, 2]], before.log_variance[:, [2, 3]])
        assert out.log_variance[:, 1].eq(0).all()
    MaskedSubspaceHead(
        copy.deepcopy(one.projector), ["blur", "noise", "all"], masks="sigmoid", uncertainty=uncertainty, composed="all"
    ).load_state_dict(other.state_dict())  # it is a head like any other
    plain = one.with_subspaces(["blur", "crop"])
    assert isinstance(plain.masks, SigmoidMasks)
    assert torch.equal(plain.masks(), one.masks()[[2, 0]])


@pytest.mark.parametrize("names", [["all", "crop"], ["all"]])
def test_a_head_with_its_product_elsewhere_is_refused_by_name(names):
    with pytest.raises(ValueError, match=r"subspaces: got \('all'.*\), wanted 'all', the product of the others, last"):
        head().with_subspaces(names)


@pytest.mark.parametrize("kind", EACH)
def test_the_state_goes_round_and_fits_no_other_head(kind):
    one, twin = head(kind).eval(), head(kind).eval()
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(twin.masks(), one.masks())
    assert torch.equal(copy.deepcopy(one).masks(), one.masks())
    plain = MaskedSubspaceHead(copy.deepcopy(one.projector), NAMES, masks=EACH[kind](4))
    for a, b in ((one, plain), (plain, one)):
        before = a.masks.weight.clone()
        with pytest.raises(ValueError, match=r"state_dict: got masks of .*, wanted .*; nothing was loaded"):
            a.load_state_dict(b.state_dict())
        assert torch.equal(a.masks.weight, before)


@pytest.mark.parametrize("kind", EACH)
def test_a_checkpoint_is_read(kind, tmp_path):
    one = head(kind).eval()
    torch.save({"model": one.state_dict()}, tmp_path / "model.pt")
    (found,) = load_heads(tmp_path / "model.pt").values()
    assert (found.subspaces, found.kind, found.is_known) == (tuple(NAMES), "composed", True)
    assert found.settings["each"]["kind"] == kind
    torch.testing.assert_close(found.masks, one.masks().detach())


def test_inspect_shows_them(tmp_path, capsys):
    torch.save(head(uncertainty="subspace").state_dict(), tmp_path / "model.pt")
    assert main(["inspect", str(tmp_path / "model.pt"), "--json", str(tmp_path / "a.json")]) == 0
    out, error = capsys.readouterr()
    assert "K=4 subspaces of D=8 dimensions, composed binary masks (coverage 0.7, temperature 1.0)" in out
    assert error == ""
    assert all(name in out for name in NAMES)
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["masks"]["each"]["kind"] == "binary"
    assert [round(8 * x) for x in written["density"]][:3] == [6, 6, 6]


def test_inspect_shows_the_bare_weights_of_masks_of_ones_own(tmp_path, capsys):
    """Their product would mean nothing, and is left out."""
    one = MaskedSubspaceHead(nn.Linear(4, 8), NAMES, masks=Own(3, 8), composed="all", uncertainty="subspace")
    torch.save(one.state_dict(), tmp_path / "model.pt")
    (found,) = load_heads(tmp_path / "model.pt").values()
    assert (found.subspaces, found.is_known) == (tuple(NAMES[:3]), False)
    torch.testing.assert_close(found.masks, one.masks.weight.detach())
    assert main(["inspect", str(tmp_path / "model.pt")]) == 0
    assert "Own is no parameterisation of mast_ops" in capsys.readouterr().err


@pytest.mark.parametrize(
    "masks",
    [
        {"kind": "composed"},
        {"kind": "composed", "each": None},
        {"kind": "composed", "each": "binary"},
        {"kind": "composed", "each": {}},
        {"kind": "composed", "each": {"kind": 3}},
        {"kind": "composed", "each": {"kind": "composed", "each": {"kind": "sigmoid"}}},
        {"kind": "composed", "each": {"kind": "binary", "coverage": 2}},
        {"kind": "composed", "each": {"kind": "binary", "coverage": "much"}},
        {"kind": "composed", "each": {"kind": "sigmoid", "__class__": 1}},
        {"kind": "sigmoid"},
    ],
)
def test_damaged_descriptions_are_refused(masks, tmp_path, capsys):
    state = head("sigmoid").state_dict()
    torch.save({**state, "_extra_state": encode_state({"subspaces": NAMES, "masks": masks})}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"^checkpoint: "):
        load_heads(tmp_path / "model.pt")
    assert main(["inspect", str(tmp_path / "model.pt")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_description_nests():
    described = decode_state(head().state_dict()["_extra_state"])["masks"]
    assert described == {"kind": "composed", "each": {"kind": "binary", "coverage": 0.7, "temperature": 1.0}}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_keeps_their_weights(dtype):
    one = head().to(dtype)
    assert one.masks.weight.dtype == one(torch.randn(2, 6, dtype=dtype)).masks.dtype == torch.float32
    assert one.projector[0].weight.dtype == dtype
    assert one.double().masks.weight.dtype == torch.float64
    assert one.to("meta").masks.weight.device.type == "meta"


def test_they_are_in_the_group_of_masks_once():
    one = head(uncertainty="subspace")
    groups = {group["name"]: group for group in param_groups(one, lr=0.1, weight_decay=0.2, mask_lr=0.3)}
    assert groups["masks"]["params"] == [one.masks.each.weight]
    assert (groups["masks"]["lr"], groups["masks"]["weight_decay"]) == (0.3, 0.0)
    listed = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in one.parameters())


@pytest.mark.parametrize("regularizer", [MaskL1, MaskHoyer, MaskCoverage, MaskOverlap, MaskEntropy])
def test_regularizers_see_all_rows(regularizer):
    one = head("sigmoid")
    value = regularizer()(one)
    torch.testing.assert_close(value, regularizer()(one.masks()))
    torch.testing.assert_close(regularizer()(one.masks), value)
    if value.requires_grad and value > 0:
        value.backward()
        assert one.masks.weight.grad.abs().sum() > 0


def test_expected_l0_counts_the_gates_that_there_are():
    one = head("hard_concrete")
    value = MaskExpectedL0()(one)
    torch.testing.assert_close(value, one.masks.each.open_probability().mean())
    torch.testing.assert_close(MaskExpectedL0()(one.masks), value)
    value.backward()
    assert (one.masks.weight.grad > 0).all()
    with pytest.raises(TypeError, match="masks: got SigmoidMasks, wanted HardConcreteMasks"):
        MaskExpectedL0()(head("sigmoid"))


def test_pairs_in_which_all_differ_teach_the_masks_of_the_others():
    one = head("sigmoid")
    x = torch.randn(2, 8, 6)
    loss = SubspaceVICRegLoss()(one(x[0]), one(x[1]), subspace=torch.full((8,), 3))
    loss.backward()
    assert (one.masks.each.weight.grad.abs().sum(1) > 0).all()


def test_a_composed_head_exports():
    one = head(uncertainty="subspace").eval()
    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(one, (torch.randn(4, 6),), dynamic_shapes=({0: batch},))
    h = torch.randn(9, 6)
    for got, wanted in zip(program.module()(h), one(h), strict=True):
        torch.testing.assert_close(got, wanted)
