"""Bytes: the peak beside inputs and gradients, and what waits for the backward pass."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.case import Inputs, Loss


def measure(loss: Loss, inputs: Inputs) -> dict[str, int]:
    """``peak``: the most that is allocated at once, less the gradients themselves. ``held``: what the forward
    pass leaves allocated. ``saved``: unique storages that autograd saves and that are no inputs; unlike ``held``
    it does not see what a checkpoint keeps aside.
    """
    learned, constant = inputs
    for x in learned:
        x.grad = None
    running = _cuda if learned[0].is_cuda else _host
    kept: list[Tensor] = []
    held, _ = running(lambda: kept.append(loss(*learned, *constant)))
    held -= kept.pop().nbytes
    _, peak = running(lambda: loss(*learned, *constant).backward())
    gradients = sum(x.grad.nbytes for x in learned if x.grad is not None)
    return {"peak": max(peak - gradients, 0), "held": max(held, 0), "saved": saved_bytes(loss, inputs)}


def saved_bytes(loss: Loss, inputs: Inputs) -> int:
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = loss(*inputs.learned, *inputs.constant)
    known = {x.untyped_storage().data_ptr() for x in (*inputs.learned, *inputs.constant)}
    del value  # until here no storage's address could be taken by another
    return sum(size for address, size in storages.items() if address not in known)


def _host(run: Callable[[], object]) -> tuple[int, int]:
    """(allocated at the end, at the peak), from the profiler's record of every allocation and release.

    A dispatch mode would not see inside the operators, and the host's allocator counts nothing by itself.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events: list[Any] = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]")
    running = list(itertools.accumulate((nbytes for _, _, nbytes in changes), initial=0))
    return running[-1], max(running)


def _cuda(run: Callable[[], object]) -> tuple[int, int]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
