"""Embeddings of earlier batches, kept as further negatives."""

import numbers
from typing import Any

import torch
from torch import Tensor, nn

from mast_ops._checks import check_count, listed, shown


class MemoryBank(nn.Module):
    """The last ``size`` embeddings, first in, first out. Like all state of a loss it is in the ``state_dict``.

    An embedding that is not finite is not kept: the step that made it shows it, and the steps after it do not.

    Args:
        size: Number of embeddings M and their width D. They start as random unit vectors.
    """

    bank: Tensor
    position: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("bank", torch.empty(size))
        self.register_buffer("position", torch.empty((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bank)
        with torch.no_grad():
            self.bank.copy_(nn.functional.normalize(self.bank, dim=-1))
            self.position.zero_()

    def negatives(self, z: Tensor) -> Tensor:
        """A copy, (M, D): later batches do not change it."""
        size, dim = self.bank.shape
        if z.shape[1] != dim or z.device != self.bank.device:
            raise ValueError(
                f"memory_bank_size: got ({size}, {dim}) on {self.bank.device}, "
                f"wanted ({size}, {z.shape[1]}) on {z.device}, the D and device of the embeddings"
            )
        return self.bank.clone()

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.bank.shape)

    @torch.no_grad()
    def add(self, z: Tensor) -> None:
        """In the place of the oldest; of a batch larger than the bank, the last."""
        size = len(self.bank)
        z = z[-size:].to(self.bank.dtype)
        places = (self.position + torch.arange(len(z), device=z.device)) % size
        finite = z.isfinite().all(1, keepdim=True)
        self.bank.index_copy_(0, places, torch.where(finite, z, self.bank[places]))
        self.position.copy_((self.position + len(z)) % size)


def check_memory_bank_size(size: object) -> tuple[int, int] | None:
    """None for 0: no bank."""
    both = listed(size)
    if both is not None and len(both) == 2:
        counted = check_count("memory_bank_size[0]", both[0], 0), check_count("memory_bank_size[1]", both[1])
        return counted if counted[0] else None
    is_whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
    if not is_whole or size:
        some = size if is_whole and size > 0 else "M"  # type: ignore[operator]
        raise ValueError(f"memory_bank_size: got {shown(size)}, wanted 0 or ({some}, D), D the width of the embeddings")
    return None


def say_other_bank(loss: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """Says the argument that torch's words of keys and sizes mean, among them.

    Whether loading is strict nobody tells a module. What is no more than missing or unexpected goes with those keys,
    and so is no error where it is not.
    """
    _, _, missing, unexpected, errors = others  # metadata and strict, which is always True
    stored, own = state_dict.get(f"{prefix}memory_bank.bank"), getattr(loss, "memory_bank", None)
    size = tuple(stored.shape) if isinstance(stored, Tensor) else None
    wanted = None if own is None else tuple(own.bank.shape)
    if size == wanted:
        return
    where = errors if size and wanted else missing if wanted else unexpected
    where.append(
        f"memory_bank_size: got a checkpoint with {'no bank' if size is None else f'a bank of {size}'}, "
        f"wanted {'none' if wanted is None else f'one of {wanted}'}, as this loss was made: make it with the same"
        + ("" if size and wanted else ", or load with strict=False, which leaves the bank out")
    )
