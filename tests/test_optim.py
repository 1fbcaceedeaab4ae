"""Parameter groups: every parameter once, in the group where it belongs."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mast_ops import MaskedSubspaceHead, SubspaceNTXentLoss, param_groups


def model(**options) -> nn.Module:
    projector = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    head = MaskedSubspaceHead(projector, 3, uncertainty="subspace", **options)
    return nn.Sequential(nn.Linear(4, 4), head)


def named(groups):
    return {group["name"]: group for group in groups}


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_every_parameter_is_in_one_group(decay_vectors):
    net, loss = model(), SubspaceNTXentLoss(nn.Parameter(torch.tensor(0.1)))
    groups = named(param_groups(net, net[1], loss, lr=0.1, weight_decay=0.2, decay_vectors=decay_vectors))
    listed = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in [*net.parameters(), *loss.parameters()])
    assert groups["masks"]["params"] == [net[1].masks.weight]
    assert groups["temperature"]["params"] == [loss.temperature]
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items() if name != "vectors"} == {
        "model": (0.1, 0.2),
        "masks": (0.1, 0.0),
        "temperature": (0.1, 0.0),
    }
    vectors = [] if decay_vectors else [p for n, p in net.named_parameters() if p.dim() == 1]
    assert [id(p) for p in groups.get("vectors", {"params": []})["params"]] == [id(p) for p in vectors]


def test_masks_are_found_inside_wrappers_and_frozen_ones_are_not_trained():
    net = model()
    net[0].requires_grad_(False)
    groups = named(param_groups(torch.compile(nn.DataParallel(net)), lr=1.0, mask_lr=5.0))
    assert groups["masks"]["lr"] == 5.0
    assert groups["masks"]["params"] == [net[1].masks.weight]
    assert not {id(p) for p in net[0].parameters()} & {id(p) for g in groups.values() for p in g["params"]}


def test_masks_do_not_decay():
    net = model()
    optimizer = torch.optim.AdamW(param_groups(net, lr=0.1, weight_decay=0.5))
    before = net[1].masks.weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(net[1].masks.weight, before)
    assert net[0].weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("modules", "options", "words"),
    [
        ((), {"lr": 1.0}, "modules: got none"),
        ((nn.ReLU(),), {"lr": 1.0}, "modules: got no parameter"),
        ((model(),), {"lr": 0.0}, "lr: got 0.0"),
        ((model(),), {"lr": 1.0, "mask_lr": -1.0}, "mask_lr: got -1.0"),
        ((model(),), {"lr": 1.0, "weight_decay": -1.0}, "weight_decay: got -1.0"),
    ],
)
def test_bad_arguments_are_named(modules, options, words):
    with pytest.raises(ValueError, match=words):
        param_groups(*modules, **options)


@pytest.mark.parametrize(
    ("modules", "options", "words"),
    [
        ((model().parameters(),), {"lr": 1.0}, "modules: got generator, wanted modules"),
        ((None,), {"lr": 1.0}, "modules: got None"),
        ((model(),), {"lr": "0.1"}, "lr: got '0.1'"),
        ((model(),), {"lr": True}, "lr: got True"),
        ((model(),), {"lr": 1.0, "decay_vectors": "no"}, "decay_vectors: got 'no', wanted True or False"),
    ],
)
def test_what_is_of_another_kind_is_named(modules, options, words):
    with pytest.raises(TypeError, match=f"^{words}"):
        param_groups(*modules, **options)


FRAMEWORKS = {
    "plain": lambda net: torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5),
    "timm": lambda net: pytest.importorskip("timm.optim").create_optimizer_v2(net, "adamw", lr=0.1, weight_decay=0.5),
    "timm's own": lambda net: pytest.importorskip("timm.optim").create_optimizer_v2(
        net, "lamb", lr=0.1, weight_decay=0.5
    ),
    "lightly": lambda net: torch.optim.SGD(
        [
            {"params": params, "weight_decay": decay}
            for params, decay in zip(
                pytest.importorskip("lightly.models.utils").get_weight_decay_parameters([net]), (0.5, 0.0), strict=True
            )
        ],
        lr=0.1,
    ),
    "masks in a group of their own": lambda net: torch.optim.Adam(
        [{"params": net[0].parameters()}, {"params": net[1].masks.parameters()}], lr=0.1, weight_decay=0.5
    ),
}


@pytest.mark.parametrize("made", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_masks_do_not_decay_whatever_groups_a_framework_makes(framework, made):
    net = made(model(masks="sigmoid"))
    optimizer = FRAMEWORKS[framework](net)
    groups = [(id(group), [id(p) for p in group["params"]], group["weight_decay"]) for group in optimizer.param_groups]
    masks, layer = (p.detach().clone() for p in (net[1].masks.weight, net[0].weight))
    for _ in range(3):
        optimizer.zero_grad()
        (0 * sum(p.sum() for p in net.parameters())).backward()
        optimizer.step()
    assert torch.equal(net[1].masks.weight, masks)
    assert (net[0].weight.abs() < layer.abs()).all()
    after = [(id(group), [id(p) for p in group["params"]], group["weight_decay"]) for group in optimizer.param_groups]
    assert after == groups


def test_masks_move_by_their_gradient_as_without_decay():
    weights = []
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        net = model(masks="sigmoid")
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        for _ in range(4):
            optimizer.zero_grad()
            net[1].masks().square().sum().backward()
            optimizer.step()
            schedule.step()
        weights.append(net[1].masks.weight.detach())
        assert len(optimizer.state_dict()["param_groups"]) == 1
    assert torch.equal(*weights)


def test_groups_are_whole_after_a_step_that_failed():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)

    def fails():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        optimizer.step(fails)
    assert [group["weight_decay"] for group in optimizer.state_dict()["param_groups"]] == [0.5]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]
