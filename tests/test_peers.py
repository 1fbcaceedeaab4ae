"""At home with the peers: losses equal to theirs with one mask of ones, and their heads wrapped as they are."""

import copy
import importlib
import importlib.util
import io
from pathlib import Path

import lightly.loss as theirs
import pytest
import pytorch_metric_learning.losses as pml
import timm
import torch
import torch.nn.functional as F
from lightly.models import modules
from lightly.models.modules import heads
from outputs import assert_same
from timm.layers import ClassifierHead, Mlp, NormMlpClassifierHead
from torch import nn

from mast_ops import (
    MaskedSubspaceHead,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceOutput,
    SubspaceVICRegLoss,
)

NAMES = ("crop", "color", "blur")
ONE_AT_A_TIME = torch.eye(3, dtype=torch.bool)
SHAPES = [(2, 1), (3, 7), (8, 4), (5, 33), (64, 16)]


# ---- Losses ---------------------------------------------------------------------------------------------


class LabelledNTXent(nn.Module):
    """pytorch-metric-learning takes one batch and labels; the two views of a sample share one."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.loss = pml.NTXentLoss(**options)

    def forward(self, z0, z1):
        return self.loss(torch.cat([z0, z1]), torch.arange(len(z0)).repeat(2))


class ReferencedVICReg(nn.Module):
    """pytorch-metric-learning takes the second view as the reference."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.loss = pml.VICRegLoss(**options)

    def forward(self, z0, z1):
        return self.loss(z0, ref_emb=z1)


def assert_equal(ours, peer, z0, z1):
    """Values and gradients of both views, in float64, with K = 1 and a mask of ones."""
    masks = torch.ones(1, z0.shape[1], dtype=torch.float64)
    got, wanted = ours(z0, z1, masks=masks), peer(z0, z1)
    assert got.dtype == wanted.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    grads = (torch.autograd.grad(loss, (z0, z1)) for loss in (got, wanted))
    for name, ours_, theirs_ in zip(("z0", "z1"), *grads, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-8, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


def views(n: int, d: int):
    return (torch.randn(n, d, dtype=torch.float64, requires_grad=True) for _ in range(2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("ours", "peer"),
    [
        (SubspaceNTXentLoss, theirs.NTXentLoss),
        (SubspaceVICRegLoss, theirs.VICRegLoss),
        (SubspaceBarlowTwinsLoss, theirs.BarlowTwinsLoss),
        (SubspaceCosineLoss, theirs.NegativeCosineSimilarity),
        (SubspaceVICRegLoss, ReferencedVICReg),
    ],
    ids=lambda loss: loss.__name__,
)
def test_losses_at_their_defaults_are_the_peers(ours, peer, shape):
    assert_equal(ours(), peer(), *views(*shape))


@pytest.mark.parametrize("shape", [(3, 7), (64, 16)], ids=str)
@pytest.mark.parametrize(
    ("ours", "peer", "options"),
    [
        *((SubspaceNTXentLoss, theirs.NTXentLoss, {"temperature": t}) for t in (0.05, 0.1, 1.0)),
        *((SubspaceNTXentLoss, LabelledNTXent, {"temperature": t}) for t in (0.07, 0.1, 0.5)),
        (SubspaceVICRegLoss, theirs.VICRegLoss, {"lambda_param": 2.0, "mu_param": 3.0, "nu_param": 0.5, "eps": 1e-2}),
        (SubspaceBarlowTwinsLoss, theirs.BarlowTwinsLoss, {"lambda_param": 0.1}),
        (SubspaceCosineLoss, theirs.NegativeCosineSimilarity, {"eps": 1.0}),
    ],
    ids=lambda x: " ".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else x.__name__,
)
def test_losses_take_the_peers_options_by_the_same_names(ours, peer, options, shape):
    assert_equal(ours(**options), peer(**options), *views(*shape))


def test_embeddings_that_vary_little_or_agree():
    """Where the variance hinge is active and where it is not, and views that are the same."""
    z = torch.randn(16, 8, dtype=torch.float64)
    for scale in (1e-3, 1.0, 30.0):
        pair = (z * scale).requires_grad_(), (z.flip(0) * scale).requires_grad_()
        assert_equal(SubspaceVICRegLoss(), theirs.VICRegLoss(), *pair)
        assert_equal(SubspaceNTXentLoss(), theirs.NTXentLoss(), *pair)
    same = z.clone().requires_grad_(), z.clone().requires_grad_()
    for ours, peer in (
        (SubspaceVICRegLoss(), theirs.VICRegLoss()),
        (SubspaceBarlowTwinsLoss(), theirs.BarlowTwinsLoss()),
        (SubspaceNTXentLoss(), theirs.NTXentLoss()),
        (SubspaceCosineLoss(), theirs.NegativeCosineSimilarity()),
    ):
        assert_equal(ours, peer, *same)


def test_a_target_without_gradient_as_byol_gives_it():
    prediction, target = views(6, 5)
    ones = torch.ones(1, 5, dtype=torch.float64)
    grads = []
    for loss in (
        SubspaceCosineLoss()(prediction, target.detach(), masks=ones),
        theirs.NegativeCosineSimilarity()(prediction, target.detach()),
    ):
        grads += torch.autograd.grad(loss, prediction)
    torch.testing.assert_close(*grads)


# ---- What the training steps of solo-learn and stable-pretraining have ----------------------------------
# Written out from the definitions of solo-learn 1.0.2, which differ from the above by a constant or a weight.


def solo_vicreg(z1, z2):
    """The hinges of both views are added; lightly, and ours, take their mean."""
    hinge = sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (z1, z2))
    return 25 * F.mse_loss(z1, z2) + 25 * hinge + sum(off_diagonal(torch.cov(z.T)) for z in (z1, z2)) / z1.shape[1]


def off_diagonal(c):
    return c.square().sum() - c.diagonal().square().sum()


def solo_barlow(z1, z2):
    """Scaled by 0.025."""
    a, b = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
    c = a.T @ b / len(z1)
    return 0.025 * ((c.diagonal() - 1).square().sum() + 5e-3 * off_diagonal(c))


def nt_xent_at(temperature):
    def loss(z1, z2):
        z = F.normalize(torch.cat([z1, z2]))
        logits = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z1)))

    return loss


@pytest.mark.parametrize(
    ("ours", "scale", "shift", "peer"),
    [
        (SubspaceNTXentLoss(temperature=0.1), 1, 0, nt_xent_at(0.1)),
        (SubspaceVICRegLoss(mu_param=50), 1, 0, solo_vicreg),
        (SubspaceBarlowTwinsLoss(), 0.025, 0, solo_barlow),
        (SubspaceCosineLoss(), 2, 2, lambda p, z: 2 - 2 * F.cosine_similarity(p, z).mean()),
        (SubspaceCosineLoss(), 1, 0, lambda p, z: -F.cosine_similarity(p, z).mean()),
    ],
    ids=["simclr", "vicreg", "barlow twins", "byol", "simsiam"],
)
def test_the_same_as_in_solo_learn_up_to_what_it_scales(ours, scale, shift, peer):
    feats = [torch.randn(12, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert_equal(lambda *z, masks: scale * ours(*z, masks=masks) + shift, peer, *feats)


def solo_projectors(features: int = 16, hidden: int = 24, out: int = 10) -> dict[str, nn.Module]:
    """Laid out as in solo/methods/*.py of solo-learn 1.0.2."""

    def hidden_layer(width, **options):
        return nn.Linear(width, hidden, **options), nn.BatchNorm1d(hidden), nn.ReLU()

    return {
        "simclr": nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out)),
        "vicreg, barlow twins": nn.Sequential(*hidden_layer(features), *hidden_layer(hidden), nn.Linear(hidden, out)),
        "byol": nn.Sequential(*hidden_layer(features), nn.Linear(hidden, out)),
        "simsiam": nn.Sequential(
            *hidden_layer(features, bias=False),
            *hidden_layer(hidden, bias=False),
            nn.Linear(hidden, out),
            nn.BatchNorm1d(out, affine=False),
        ),
    }


class BatchNorm1dNoBias(nn.BatchNorm1d):
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.bias.requires_grad = False


class SequentialMLP(nn.Sequential):
    """A subclass that ends in dropout, and whose first layer may be lazy."""


def stable_projectors(features: int = 16, hidden: int = 24, out: int = 10) -> dict[str, nn.Module]:
    """Laid out as in stable_pretraining/{methods,backbone}/*.py of stable-pretraining 0.1.8."""

    def hidden_layer(width):
        return nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)

    last = nn.Linear(hidden, out, bias=False)
    return {
        "simclr": nn.Sequential(*hidden_layer(features), *hidden_layer(hidden), last, BatchNorm1dNoBias(out)),
        "vicreg, barlow twins": nn.Sequential(*hidden_layer(features), *hidden_layer(hidden), last),
        "byol": nn.Sequential(
            nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
        ),
        "mlp": SequentialMLP(*hidden_layer(features), nn.Dropout(0.0), nn.Linear(hidden, out), nn.Dropout(0.0)),
        "linear": nn.Linear(features, out),
    }


def assert_wraps(make, loss=None, x=None):
    """Widths are read off, one step trains projector and masks, and the state_dict goes into another head."""
    torch.manual_seed(0)
    projector = make()
    head = MaskedSubspaceHead(projector, NAMES, kinds=ONE_AT_A_TIME, uncertainty="subspace")
    assert head.projector is projector
    x = torch.randn(8, head.uncertainty.in_features) if x is None else x
    alone = copy.deepcopy(projector)(x)
    out = head(x)
    torch.testing.assert_close(out.embedding, alone, rtol=0, atol=0)
    assert head.masks.dim == alone.shape[1]
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    (SubspaceVICRegLoss() if loss is None else loss)(
        out, head(x + 0.1 * torch.randn_like(x)), kind=torch.arange(len(x)) % 3
    ).backward()
    optimizer.step()
    moved = {name for name, p in head.named_parameters() if not torch.equal(p, before[name])}
    assert "masks.weight" in moved
    assert any(name.startswith("projector.") for name in moved)
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    other = MaskedSubspaceHead(make(), NAMES, kinds=ONE_AT_A_TIME, uncertainty="subspace")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(other.eval()(x), head.eval()(x))


@pytest.mark.parametrize("name", solo_projectors())
def test_projectors_laid_out_as_solo_learns(name):
    assert_wraps(lambda: solo_projectors()[name])


@pytest.mark.parametrize("name", stable_projectors())
def test_projectors_laid_out_as_stable_pretrainings(name):
    assert_wraps(lambda: stable_projectors()[name])


def test_a_lazy_first_layer_tells_the_output_and_asks_for_the_input():
    def projector():
        return SequentialMLP(nn.LazyLinear(24), nn.ReLU(), nn.Linear(24, 10), nn.Dropout(0.0))

    assert MaskedSubspaceHead(projector(), NAMES)(torch.randn(4, 16)).embedding.shape == (4, 10)
    with pytest.raises(ValueError, match="input_dim: got None, wanted the width"):
        MaskedSubspaceHead(projector(), NAMES, uncertainty="sample")


# ---- Heads ----------------------------------------------------------------------------------------------

LIGHTLY = {
    "SimCLR": lambda: modules.SimCLRProjectionHead(16, 24, 10),
    "SimCLR, three layers": lambda: modules.SimCLRProjectionHead(16, 24, 10, num_layers=3, batch_norm=False),
    "BYOL projection": lambda: modules.BYOLProjectionHead(16, 24, 10),
    "BYOL prediction": lambda: modules.BYOLPredictionHead(10, 24, 10),
    "VICReg": lambda: heads.VICRegProjectionHead(16, 24, 10),
    "Barlow Twins": lambda: modules.BarlowTwinsProjectionHead(16, 24, 10),
    "SimSiam projection": lambda: modules.SimSiamProjectionHead(16, 24, 10),
    "SimSiam prediction": lambda: modules.SimSiamPredictionHead(10, 24, 10),
    "MoCo": lambda: modules.MoCoProjectionHead(16, 24, 10),
    "SwaV": lambda: modules.SwaVProjectionHead(16, 24, 10),
}


@pytest.mark.parametrize("name", LIGHTLY)
def test_lightlys_heads_are_wrapped_unchanged(name):
    assert_wraps(LIGHTLY[name])


@pytest.mark.parametrize("loss", [SubspaceNTXentLoss(), SubspaceCosineLoss(), SubspaceBarlowTwinsLoss()])
def test_every_loss_trains_a_wrapped_head(loss):
    assert_wraps(LIGHTLY["SimCLR"], loss)


def test_timms_mlp_is_wrapped_unchanged():
    """Six children that are no nn.Sequential."""
    assert_wraps(lambda: Mlp(16, 24, 10))


def backbone(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options)


RESNET = ("resnet18", {})
VIT = ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "patch_size": 8})


@pytest.mark.parametrize(("name", "options"), [RESNET, VIT], ids=["resnet", "vit"])
def test_a_head_on_a_timm_backbone_trains(name, options):
    body = backbone(name, num_classes=0, **options)
    projector = Mlp(body.num_features, 24, 10)
    model = nn.Sequential(body, MaskedSubspaceHead(projector, NAMES, kinds=ONE_AT_A_TIME, uncertainty="subspace"))
    step(model, body.patch_embed.proj if hasattr(body, "patch_embed") else body.conv1)


@pytest.mark.parametrize(("name", "options", "place"), [(*RESNET, "fc"), (*VIT, "head")], ids=["resnet", "vit"])
def test_the_classifier_of_a_timm_model_is_wrapped_in_place(name, options, place):
    model = backbone(name, num_classes=10, **options)
    head = MaskedSubspaceHead(model.get_classifier(), NAMES, kinds=ONE_AT_A_TIME, uncertainty="sample")
    assert (head.uncertainty.in_features, head.masks.dim) == (model.num_features, 10)
    alone = model.eval()(images())
    setattr(model, place, head)
    torch.testing.assert_close(model(images()).embedding, alone)
    step(model, head.projector)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: NormMlpClassifierHead(16, 10), (4, 16, 3, 3)),
        (lambda: ClassifierHead(16, 10), (4, 16, 3, 3)),
        (lambda: ClassifierHead(16, 10, input_fmt="NHWC"), (4, 3, 3, 16)),
    ],
    ids=["convnext", "regnet", "swin"],
)
def test_timms_heads_that_pool_tell_their_widths(make, shape):
    head = MaskedSubspaceHead(make(), NAMES, kinds=ONE_AT_A_TIME)
    assert head(torch.randn(shape)).embedding.shape == (4, 10)


def test_a_backbone_without_a_head_asks_for_the_width():
    """As timm leaves it with num_classes=0."""
    body = backbone(RESNET[0], num_classes=0)
    with pytest.raises(ValueError, match="pass output_dim="):
        MaskedSubspaceHead(body.get_classifier(), NAMES)
    head = MaskedSubspaceHead(body.get_classifier(), NAMES, kinds=ONE_AT_A_TIME, output_dim=body.num_features)
    assert head(body(images())).masks.shape == (3, 512)


def images(n: int = 4):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, watched: nn.Module):
    model.train()
    before = watched.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = images()
    out0, out1 = model(x), model(x.flip(3))
    assert isinstance(out0, SubspaceOutput)
    SubspaceVICRegLoss()(out0, out1, kind=torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    assert not torch.equal(watched.weight, before)


# ---- The codebases themselves, where they are installed --------------------------------------------------
# Neither is in the dev extra: solo-learn pins torch 1.9, and stable-pretraining brings more than a hundred packages.


def solo_loss(name: str):
    """Out of its file: solo-learn's own __init__ wants all of its dependencies."""
    package = importlib.util.find_spec("solo")
    if package is None:
        pytest.skip("solo-learn is not installed")
    file = Path(package.origin).parent / "losses" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"solo_losses_{name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, f"{name}_loss_func")


@pytest.mark.parametrize(
    ("name", "ours", "scale", "shift"),
    [
        ("simclr", SubspaceNTXentLoss(temperature=0.1), 1, 0),
        ("vicreg", SubspaceVICRegLoss(mu_param=50), 1, 0),
        ("barlow", SubspaceBarlowTwinsLoss(), 0.025, 0),
        ("byol", SubspaceCosineLoss(), 2, 2),
        ("simsiam", SubspaceCosineLoss(), 1, 0),
    ],
)
def test_solo_learns_own_losses(name, ours, scale, shift):
    peer = solo_loss(name)
    dtype = torch.float32 if name == "barlow" else torch.float64  # its normalisation is float32
    z0, z1 = (z.detach().to(dtype).requires_grad_() for z in views(12, 6))
    got, wanted = scale * ours(z0, z1, masks=torch.ones(1, 6, dtype=dtype)) + shift, peer(z0, z1)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z0)[0] for loss in (got, wanted)))


SOLO = {
    "encoder": "resnet18", "num_classes": 10, "backbone_args": {"cifar": True}, "max_epochs": 1, "batch_size": 4,
    "optimizer": "sgd", "lars": False, "lr": 0.1, "weight_decay": 0.0, "classifier_lr": 0.1,
    "exclude_bias_n_norm": False, "accumulate_grad_batches": 1, "extra_optimizer_args": {}, "scheduler": "none",
    "min_lr": 0.0, "warmup_start_lr": 0.0, "warmup_epochs": 0, "num_large_crops": 2, "num_small_crops": 0,
    "base_tau_momentum": 0.99, "final_tau_momentum": 1.0, "momentum_classifier": False, "temperature": 0.1,
    "proj_output_dim": 10, "proj_hidden_dim": 24, "pred_hidden_dim": 24, "lamb": 5e-3, "scale_loss": 0.025,
    "sim_loss_weight": 25.0, "var_loss_weight": 25.0, "cov_loss_weight": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", ["SimCLR", "VICReg", "BarlowTwins", "BYOL", "SimSiam"])
def test_solo_learns_own_methods(name):
    methods = pytest.importorskip("solo.methods", exc_type=ImportError)
    for part in ("projector", "predictor") if name in ("BYOL", "SimSiam") else ("projector",):
        assert_wraps(lambda part=part: getattr(getattr(methods, name)(**SOLO), part))
    model = getattr(methods, name)(**SOLO)
    part = "predictor" if name in ("BYOL", "SimSiam") else "projector"
    setattr(model, part, MaskedSubspaceHead(getattr(model, part), NAMES, kinds=ONE_AT_A_TIME))
    out = model(images())["p" if part == "predictor" else "z"]
    assert isinstance(out, SubspaceOutput)
    wanted = {id(p) for p in getattr(model, part).parameters() if p.requires_grad}
    assert wanted <= {id(p) for group in model.learnable_params for p in group["params"]}


def stable(name: str):
    pytest.importorskip("stable_pretraining", exc_type=ImportError)
    return importlib.import_module(f"stable_pretraining.{name}")


@pytest.mark.parametrize(
    ("name", "ours", "scale", "shift"),
    [
        ("NTXEntLoss", SubspaceNTXentLoss(), 1, 0),
        ("VICRegLoss", SubspaceVICRegLoss(), 1, 0),
        ("NegativeCosineSimilarity", SubspaceCosineLoss(), 1, 0),
        ("BYOLLoss", SubspaceCosineLoss(), 2, 2),
    ],
)
def test_stable_pretrainings_own_losses(name, ours, scale, shift):
    """All but Barlow Twins, which it standardises by the unbiased deviation."""
    peer = getattr(stable("losses"), name)()
    assert_equal(lambda *z, masks: scale * ours(*z, masks=masks) + shift, peer, *views(12, 6))


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 16)

    def forward(self, x):
        return self.layer(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["SimCLR", "VICReg", "BarlowTwins"])
def test_stable_pretrainings_own_projectors(name):
    method = getattr(stable("methods"), name)
    assert_wraps(lambda: method(Pooled(), projector_dims=(24, 24, 10)).projector)


def test_stable_pretrainings_own_predictors():
    methods = stable("methods")
    assert_wraps(lambda: methods.BYOL(Pooled(), projector_dims=(24, 10), predictor_dims=(24, 10)).predictor)
    assert_wraps(lambda: methods.SimSiam(Pooled(), projector_dim=10, predictor_hidden_dim=24).predictor)


@pytest.mark.parametrize(
    ("forward", "argument", "loss"),
    [
        ("simclr", "simclr_loss", SubspaceNTXentLoss()),
        ("vicreg", "vicreg_loss", SubspaceVICRegLoss()),
        ("barlow_twins", "barlow_loss", SubspaceBarlowTwinsLoss()),
        ("byol", "byol_loss", SubspaceCosineLoss()),
    ],
)
def test_stable_pretrainings_own_forward_takes_head_and_loss(forward, argument, loss):
    """Every pair in all subspaces: its forward functions pass on two views and nothing else."""
    spt = pytest.importorskip("stable_pretraining", exc_type=ImportError)
    body, projector = Pooled(), nn.Linear(16, 10)
    parts = {"backbone": body, "projector": MaskedSubspaceHead(projector, NAMES, kinds=ONE_AT_A_TIME)}
    if forward == "byol":
        parts = {"backbone": spt.TeacherStudentWrapper(body), "projector": spt.TeacherStudentWrapper(projector)}
        parts["predictor"] = MaskedSubspaceHead(nn.Linear(10, 10), NAMES, kinds=ONE_AT_A_TIME)
    model = spt.Module(forward=getattr(stable("forward"), forward), optim=None, **parts, **{argument: loss})
    x = images()
    model.forward({"views": [{"image": x}, {"image": x.flip(1)}]}, "train")["loss"].backward()
    head = model.predictor if forward == "byol" else model.projector
    assert head.masks.weight.grad.abs().sum() > 0
