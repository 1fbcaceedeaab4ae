"""Parameter groups: every parameter once, in the group where it belongs."""

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
