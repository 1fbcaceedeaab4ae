"""A run that stops and goes on from its checkpoint is the run that never stopped, bit for bit."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from mast_ops import (
    LinearSchedule,
    MaskCoverage,
    MaskedSubspaceHead,
    MaskL1,
    SubspaceNTXentLoss,
    SubspaceVICRegLoss,
    param_groups,
)
from mast_ops.masks import MASKS, AllocatedMasks, BinaryMasks

NAMES = ["crop", "color", "blur"]
KINDS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.bool)
FORMS = {
    **{name: lambda name=name: name for name in MASKS},
    "binary": lambda: BinaryMasks(3, 6, coverage=0.5),  # of six entries the default closes none
    "allocated": lambda: AllocatedMasks(3, 6, warmup=2, renew=2),
}


class Run:
    """All that a training script has, from nothing; what differs between runs is loaded."""

    def __init__(self, masks: str, uncertainty: str | None, seed: int) -> None:
        torch.manual_seed(seed)
        projector = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
        self.head = MaskedSubspaceHead(projector, NAMES, masks=FORMS[masks](), uncertainty=uncertainty, kinds=KINDS)
        self.loss = SubspaceVICRegLoss() if uncertainty else SubspaceNTXentLoss(nn.Parameter(torch.tensor(0.5)))
        self.regularizer = LinearSchedule(0.0, 1.0, steps=5) * MaskL1() + 0.5 * MaskCoverage(0.6)
        groups = param_groups(self.head, self.loss, lr=1e-2, weight_decay=0.1, mask_lr=1e-1)
        self.optimizer = torch.optim.AdamW(groups)
        self.parts = {name: getattr(self, name) for name in ("head", "loss", "regularizer", "optimizer")}

    def train(self, steps: range) -> None:
        for step in steps:
            g = torch.Generator().manual_seed(step)
            x, kind = torch.randn(2, 8, 4, generator=g), torch.randint(len(KINDS), (8,), generator=g)
            out = self.head(x[0])
            value = self.loss(out, self.head(x[1]), kind=kind)
            self.optimizer.zero_grad()
            (value + self.regularizer(out)).backward()
            self.optimizer.step()
            self.regularizer.step()

    def state(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def through_a_file(state: object) -> object:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def flat(value: object, place: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, entry in value.items() for k, v in flat(entry, f"{place}.{key}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), place)
    return {place: value}


def assert_same_bits(one: object, other: object) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for place, value in one.items():
        same = torch.equal(value, other[place]) if isinstance(value, torch.Tensor) else value == other[place]
        assert same, place


@pytest.mark.parametrize("uncertainty", [None, "sample", "subspace", "dimension"])
@pytest.mark.parametrize("masks", FORMS)
def test_resuming_changes_no_bit(masks, uncertainty):
    unbroken = Run(masks, uncertainty, seed=0)
    unbroken.train(range(3))
    checkpoint = through_a_file(unbroken.state())
    unbroken.train(range(3, 7))

    resumed = Run(masks, uncertainty, seed=1)  # from other initial values, so that all of them must be loaded
    resumed.load(checkpoint)
    resumed.train(range(3, 7))
    assert_same_bits(resumed.state(), unbroken.state())
    assert not torch.equal(unbroken.head.masks.weight, checkpoint["head"]["masks.weight"])  # it went on training


@pytest.mark.parametrize("masks", FORMS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "whole module"])
def test_a_copy_goes_on_as_the_original(masks, how):
    run = Run(masks, "subspace", seed=0)
    run.train(range(2))
    if how == "deepcopy":
        head = copy.deepcopy(run.head)
    elif how == "pickle":
        head = pickle.loads(pickle.dumps(run.head))
    else:
        buffer = io.BytesIO()
        torch.save(run.head, buffer)
        buffer.seek(0)
        head = torch.load(buffer, weights_only=False)
    x = torch.randn(8, 4)
    for _ in range(2):  # hard-concrete samples differ between calls, and alike in both
        assert_same_bits(head(x)._replace(observer=None), run.head(x)._replace(observer=None))
