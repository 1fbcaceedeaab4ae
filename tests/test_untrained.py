"""What has gradients and is in no optimizer is named, once and by name; what is no mistake is not."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from torch import nn

from mast_ops import (
    MaskedSubspaceHead,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceSigmoidLoss,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
    param_groups,
)
from mast_ops._untrained import STEPS


def train(model, *optimizers, loss=None, steps=STEPS + 2, scaler=None, every=1):
    """The warnings of some steps, in which every optimizer but the first takes one in ``every`` only."""
    loss = SubspaceVICRegLoss() if loss is None else loss
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(steps):
            value = loss(*(model(torch.randn(6, 4)) for _ in range(2)))
            value = value if scaler is None else scaler.scale(value)
            value.backward()
            for optimizer in optimizers[: None if step % every == 0 else 1]:
                optimizer.step() if scaler is None else scaler.step(optimizer)
                optimizer.zero_grad()
            if scaler is not None:
                scaler.update()
    return [str(one.message) for one in told]


def wrapped(net, **options):
    """The head in the place of the projector, after whatever was made of the model before."""
    net[1] = MaskedSubspaceHead(net[1], 3, **options)
    return net


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8))


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    "AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=True),
    "Adam, fused": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
    "rate of 0": lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    "decays": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("make", [lambda head: head, copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_that_the_optimizer_does_not_know_are_named_once(name, make):
    net = plain()
    projector, optimizer = net[1], OPTIMIZERS[name](net.parameters())
    net[1] = make(wrapped(net)[1])
    net[1].projector = projector
    (told,) = train(net, optimizer, steps=3 * STEPS)
    kind = type(optimizer).__name__
    assert told.startswith(f"MaskedSubspaceHead: got gradients for masks.weight in {STEPS} steps of {kind}, and no")
    assert "wanted an optimizer made after MaskedSubspaceHead(projector, views)" in told


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_that_an_optimizer_knows_are_not_named(name):
    net = wrapped(plain(), uncertainty="sample")
    assert train(net, OPTIMIZERS[name](net.parameters())) == []


def test_a_predictor_and_a_compiled_head_are_named_too():
    net = plain()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    compiled = torch.compile(wrapped(net, uncertainty="sample"), fullgraph=True, backend="eager")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    (told,) = train(compiled, optimizer)
    assert "masks.weight, uncertainty." in told
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.parametrize(
    "loss", [SubspaceVICRegLoss, SubspaceNTXentLoss, SubspaceCosineLoss, UncertaintyInvarianceLoss]
)
def test_a_loss_that_is_made_where_it_is_called_compiles_whole(loss):
    """As in a model whose forward computes the loss."""

    def step(z0, z1, kind):
        return loss()(z0, z1, masks=torch.ones(2, 8), kind=kind)

    given = torch.randn(6, 8), torch.randn(6, 8), torch.tensor([0, 1] * 3)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), step(*given))


def test_the_line_that_takes_the_step_is_shown():
    net = plain()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    wrapped(net)[1].masks.weight.grad = torch.ones(3, 8)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    net[0].weight.grad = torch.ones(4, 4)
    with pytest.warns(UserWarning, match="got gradients for masks") as told:
        [(scaler.step(optimizer), scaler.update()) for _ in range(STEPS)]
    assert told[0].filename == __file__


def test_steps_inside_which_gradients_are_taken_count():
    """As Lightning has them."""
    net = plain()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    wrapped(net)

    def closure():
        net.zero_grad()
        loss = SubspaceVICRegLoss()(*(net(torch.randn(6, 4)) for _ in range(2)))
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="got gradients for masks"):
        [optimizer.step(closure) for _ in range(STEPS)]


def test_a_scaler_that_skips_steps_and_one_that_does_not():
    net = plain()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    wrapped(net)
    skips = torch.amp.GradScaler("cpu", init_scale=3e38)
    assert train(net, optimizer, scaler=skips, steps=STEPS) == []
    assert len(train(net, optimizer, scaler=torch.amp.GradScaler("cpu", init_scale=8.0))) == 1


def frozen(net):
    net[1].masks.requires_grad_(False)
    return net


QUIET = {
    "frozen": lambda net: [torch.optim.SGD(frozen(net)[1].projector.parameters(), 1e-3)],
    "an optimizer of its own": lambda net: [
        torch.optim.SGD([*net[0].parameters(), *net[1].projector.parameters()], 1e-3),
        torch.optim.SGD(net[1].masks.parameters(), 1e-3),
    ],
    "a probe takes more steps": lambda net: [
        torch.optim.SGD(nn.Linear(4, 2).parameters(), 1e-3),
        torch.optim.SGD(net.parameters(), 1e-3),
    ],
    "a target": lambda net: [torch.optim.SGD(copy.deepcopy(net)[1].projector.parameters(), 1e-3)],
}


@pytest.mark.parametrize("case", QUIET)
def test_what_is_no_mistake_is_not_named(case):
    net = wrapped(plain())
    every = STEPS + 2 if case == "a probe takes more steps" else STEPS - 1
    assert train(net, *QUIET[case](net), steps=3 * STEPS, every=every) == []


def test_a_loss_whose_temperature_no_optimizer_knows_is_named():
    for loss, names in (
        (SubspaceSigmoidLoss(), "bias, log_scale"),
        (SubspaceNTXentLoss(nn.Parameter(torch.tensor(0.5))), "temperature"),
    ):
        net = wrapped(plain())
        (told,) = train(net, torch.optim.SGD(net.parameters(), 1e-3), loss=loss)
        assert told.startswith(f"{type(loss).__name__}: got gradients for {names} in {STEPS} steps of SGD")
        net = wrapped(plain())
        assert train(net, torch.optim.SGD(param_groups(net, loss, lr=1e-3)), loss=loss) == []


UNUSED = {
    "the embedding alone": (lambda out: out.embedding, {}, "masks.weight, uncertainty.hidden.weight, .*last.bias"),
    "the masks alone": (lambda out: out.masks, {}, "projector.weight, projector.bias, uncertainty.hidden.weight"),
    "no variance": (lambda out: out.embedding @ out.masks.T, {}, "uncertainty.hidden.weight"),
    "all of it": (lambda out: SubspaceNTXentLoss()(out, out), {}, None),
    "what DDP looks for": (lambda out: out.embedding, {"find_unused_parameters": True}, None),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("case", UNUSED)
def test_what_ddp_would_wait_for_is_named_in_its_first_step(case):
    """Its second step says that there is something, by no name."""
    use, options, names = UNUSED[case]
    head = MaskedSubspaceHead(nn.Linear(4, 8), 3, uncertainty="subspace")
    parallel = nn.parallel.DistributedDataParallel(head, **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with parallel.no_sync():  # more may come
            parallel(torch.randn(6, 4)).embedding.sum().backward()
        head.zero_grad()
        assert told == []
        use(parallel(torch.randn(6, 4))).sum().backward()
    assert len(told) == (names is not None)
    for one in told:
        assert re.match(f"MaskedSubspaceHead: got no gradient for {names}.* in the first backward", str(one.message))
        assert one.filename == __file__
    if names is not None:
        with pytest.raises(RuntimeError, match="finished reduction"):
            parallel(torch.randn(6, 4))


def test_masks_of_a_target_that_comes_first_are_named():
    head, x = MaskedSubspaceHead(nn.Linear(4, 8), 3), torch.randn(6, 4)
    loss = SubspaceCosineLoss()
    with pytest.warns(UserWarning, match=r"^out0.masks: got masks without a gradient .*wanted the prediction first"):
        loss(head(x).detach(), head(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(head(x), head(x).detach())
        loss(head(x).detach(), head(x).detach())
