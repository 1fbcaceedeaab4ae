"""Masks on several ranks: sharded weights start alike, and random gates are the same gates on every rank."""

import warnings

import explained
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer

from benchmarks.distributed.ranks import Ranks
from mast_ops import MaskedSubspaceHead, SubspaceVICRegLoss
from mast_ops._untrained import STEPS
from mast_ops.masks import MASKS, BinaryMasks

K, D = 3, 40


@pytest.fixture(scope="module")
def ranks():
    two = Ranks(2)
    yield two
    two.close()


def head(masks: str) -> MaskedSubspaceHead:
    return MaskedSubspaceHead(nn.Linear(4, D), K, masks=masks, uncertainty="subspace")


def start_sharded(rank: int, masks: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As large models are started: without memory, sharded, then given memory and values."""
    torch.manual_seed(rank)
    with torch.device("meta"):
        model = head(masks)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    weight = model.masks.weight.detach()
    weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight  # a buffer is whole
    seen = model(torch.randn(2, 4))
    return weight, seen.masks.detach(), seen.log_variance.detach()


@pytest.mark.parametrize("masks", MASKS)
def test_sharded_masks_start_as_in_one_process(ranks, masks):
    results = ranks(start_sharded, masks)
    assert not [x for x in results if isinstance(x, Exception)], results
    (weight, seen, log_variance), (other, other_seen, _) = results
    assert torch.equal(weight, other)
    assert torch.equal(seen, other_seen)
    assert torch.equal(log_variance, torch.zeros(2, K))
    if masks == "allocated":  # nothing is allocated yet
        assert not weight.any()
        return
    assert not torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])  # on another rank
    if masks == "binary":
        closed = (1 - seen).sum(0)
        assert closed.sum() == K * (D - BinaryMasks(K, D).num_open)
        assert closed.max() == 1  # each row has closed entries of its own, over ranks as well


def draw(rank: int, how: str) -> list[torch.Tensor]:
    """The gates of three steps that move the weights, on ranks that were seeded apart."""
    torch.manual_seed(rank)
    model = head("hard_concrete")
    if how == "FSDP2":
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        parallel = model
    else:
        parallel = nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=how == "DDP", find_unused_parameters=True
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for _ in range(3):
        out = parallel(torch.randn(2, 4))
        seen.append(out.masks.detach().clone())
        optimizer.zero_grad()
        (out.embedding[:, None] * out.masks).square().mean().backward()
        optimizer.step()
    assert dist.get_world_size() == 2
    return seen


@pytest.mark.parametrize("how", ["DDP", "DDP without buffers", "FSDP2"])
def test_random_gates_are_alike_on_all_ranks(ranks, how):
    results = ranks(draw, how)
    assert not [x for x in results if isinstance(x, Exception)], results
    for mine, others in zip(*results, strict=True):
        assert torch.equal(mine, others)
    assert not torch.equal(results[0][0], results[0][1])


def train(rank: int, how: str, gathered: bool) -> dict[str, torch.Tensor]:
    model = explained.head()
    model.projector = nn.Linear(explained.D, explained.D)
    nn.init.eye_(model.projector.weight)
    nn.init.zeros_(model.projector.bias)
    parallel = model
    if how == "FSDP2":
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    else:
        options = {"broadcast_buffers": how == "DDP", "find_unused_parameters": True}
        parallel = nn.parallel.DistributedDataParallel(model, **options)
    z0, z1, kind = explained.pairs(rank)
    loss = SubspaceVICRegLoss(gather_distributed=gathered)(parallel(z0), parallel(z1), kind=kind)
    loss.backward()
    return {name: buffer.clone() for name, buffer in model.masks.named_buffers()}


@pytest.mark.parametrize("gathered", [True, False])
@pytest.mark.parametrize("how", ["DDP", "DDP without buffers", "FSDP2"])
def test_allocated_masks_count_the_pairs_of_all_ranks(ranks, how, gathered):
    results = ranks(train, how, gathered)
    assert not [x for x in results if isinstance(x, Exception)], results
    mine, others = results
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    both = [explained.pairs(rank) for rank in range(2)]
    if gathered:
        wanted = explained.plain(*(torch.cat(part) for part in zip(*both, strict=True)), torch.ones(128))
    else:  # each rank's by its own variances
        wanted = sum(explained.plain(*one, torch.ones(64)) for one in both) / 2
    torch.testing.assert_close(mine["explained"], wanted.float())
    assert mine["calls"] == 1


def told(rank: int, how: str, everything: bool) -> list[str]:
    """What is said of an optimizer that has all of a head, or its projector alone."""
    model = head("binary")
    parallel = (
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        if how == "FSDP2"
        else nn.parallel.DistributedDataParallel(model)
    )
    trained = (model if everything else model.projector).parameters()
    if how == "ZeRO":  # each rank's own optimizer has some of the parameters
        optimizer = ZeroRedundancyOptimizer(trained, torch.optim.SGD, lr=0.1)
    else:
        optimizer = torch.optim.SGD(trained, lr=0.1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(STEPS + 1):
            SubspaceVICRegLoss()(*parallel(torch.randn(8, 4)).chunk(2)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [str(one.message) for one in said if "got gradients for" in str(one.message)]


@pytest.mark.parametrize("how", ["DDP", "FSDP2", "ZeRO"])
def test_masks_that_no_rank_s_optimizer_has_are_named(ranks, how):
    assert ranks(told, how, True) == [[], []]
    for said in ranks(told, how, False):
        assert len(said) == 1
        assert "masks.weight, uncertainty." in said[0]
