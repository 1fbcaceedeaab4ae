"""What ranks tell one another: sums with a gradient, and an agreement on shapes. One process is a world of one.

Every rank must call these in the same order, as with all of torch.distributed; they run on the default process group.
A compiler is free to swap two that do not depend on one another, and swaps them otherwise on a rank whose batch has
another shape. So each must depend on the one before: :func:`after` says it where the data do not.

The convention of gradients is that of ``torch.distributed.nn.functional``: every rank holds the same value and calls
``backward`` on its own copy, and the gradient is that of the sum of the copies. DDP and FSDP, which average gradients
over ranks, so end up with the gradient of the one value.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mast_ops._checks import check_flag
from mast_ops.ops._library import differentiate, register

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def ranks(gather_distributed: bool) -> int:
    """How many processes share the batch: 1 unless asked, and where no process group was initialised.

    Raises:
        ValueError: It is asked for, and this build of PyTorch has no torch.distributed.
        TypeError: ``gather_distributed`` is no bool.
    """
    check_flag("gather_distributed", gather_distributed)
    if not gather_distributed:
        return 1
    if not dist.is_available():
        raise ValueError("gather_distributed: got True, wanted False: this build of PyTorch has no torch.distributed")
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank()


def all_reduce(x: Tensor) -> Tensor:
    """Sum over ranks, differentiable any number of times."""
    return cast(Tensor, _all_reduce(x))


def all_reduce_(x: Tensor) -> Tensor:
    """Sum over ranks in place, for kernels that make gradients by hand."""
    dist.all_reduce(x)
    return x


def after(x: Tensor, before: Tensor) -> Tensor:
    """``x`` itself, once ``before`` is there; gradients come the other way round. It copies: tie small tensors."""
    return cast(Tensor, _after(x, before))


def averaged(x: Tensor) -> Tensor:
    """``x`` itself, alike on all ranks; the gradient is the mean of theirs."""
    return cast(Tensor, _averaged(x))


def batch_sizes(z: Tensor, masks: Tensor) -> list[int]:
    """How many samples each rank has. The CPU waits for the device once.

    Raises:
        ValueError: Ranks disagree in D, K or dtype; every rank says so, and none is left waiting.
    """
    own = torch.tensor([len(z), z.shape[1], len(masks), _DTYPES.index(z.dtype)], device=z.device)
    everyone = own.new_empty(dist.get_world_size(), len(own))
    dist.all_gather(list(everyone.unbind()), own)
    table = everyone.tolist()
    rank = dist.get_rank()
    for other, row in enumerate(table):
        for what, got, wanted in zip(("D", "K", "dtype"), table[rank][1:], row[1:], strict=True):
            if got != wanted:
                if what == "dtype":
                    got, wanted = _DTYPES[got], _DTYPES[wanted]
                raise ValueError(
                    f"gather_distributed: got {what} = {got} on rank {rank}, wanted {wanted}, that of rank {other}"
                )
    return [row[0] for row in table]


def _run(x: Tensor) -> Tensor:
    return all_reduce_(x.clone(memory_format=torch.contiguous_format))


_all_reduce = register(
    "all_reduce(Tensor x) -> Tensor",
    _run,
    lambda x: torch.empty_like(x, memory_format=torch.contiguous_format),
)
differentiate(_all_reduce, lambda ctx, inputs, output: None, lambda ctx, grad: all_reduce(grad))

# Operators, so that no compiler sees that they do nothing.
_averaged = register("averaged(Tensor x) -> Tensor", lambda x: x.clone(), lambda x: torch.empty_like(x))
differentiate(_averaged, lambda ctx, inputs, output: None, lambda ctx, grad: all_reduce(grad) / dist.get_world_size())

_after = register("after(Tensor x, Tensor before) -> Tensor", lambda x, before: x.clone(), lambda x, before: x.clone())
_after_backward = register(
    "after_backward(Tensor grad, Tensor before) -> (Tensor, Tensor)",
    lambda grad, before: (grad.clone(), torch.zeros_like(before)),
    lambda grad, before: (grad.clone(), torch.zeros_like(before)),
)


def _save_before(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


differentiate(_after, _save_before, lambda ctx, grad: _after_backward(grad, *ctx.saved_tensors))
differentiate(_after_backward, lambda ctx, inputs, output: None, lambda ctx, grad, _: (grad, None))
