"""Whether ranks are about to do the same: asked once for each way of calling a loss, before they tell anything."""

from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from mast_ops.ops._library import register

_agreed: "WeakKeyDictionary[Any, set[tuple[Any, ...]]]" = WeakKeyDictionary()
"""What the ranks of a process group have compared."""


def agree(z: Tensor, masks: Tensor, kinds: Tensor | None, options: Sequence[str]) -> Tensor:
    """0, once all ranks are known to have the same D, K, dtype, masks, kinds and options, each a ``name=value``.

    The CPU waits for the other ranks the first time alone: what they have agreed on is not compared again. So it is
    not seen if one rank alone changes later to something that it has not used before, and masks that are alike at
    first may drift apart later.

    Raises:
        ValueError: Ranks differ; every rank says so, and none is left waiting.
    """
    return cast(Tensor, _agree(z.detach(), masks.detach(), kinds, list(options)))


def _run(z: Tensor, masks: Tensor, kinds: Tensor | None, options: list[str]) -> Tensor:
    agreed = _agreed.setdefault(dist.group.WORLD, set())
    call = (z.shape[1], len(masks), z.dtype, None if kinds is None else len(kinds), *options)
    if call not in agreed:
        _compare(_facts(z, masks, kinds, options))
        agreed.add(call)
    return z.new_zeros(())


def _facts(z: Tensor, masks: Tensor, kinds: Tensor | None, options: list[str]) -> dict[str, str]:
    facts = {"D": str(z.shape[1]), "K": str(len(masks)), "dtype": str(z.dtype)}
    facts |= {name: value for name, _, value in (option.partition("=") for option in options)}
    facts["kinds"] = "None" if kinds is None else str(kinds.int().tolist())
    # Few words for many numbers: each mask's sum, weighed by place, as masks of one coverage have one sum.
    sums = masks.cpu().double() @ torch.linspace(1, 2, masks.shape[1], dtype=torch.float64, device="cpu")
    return facts | {"masks": f"those of weighed sums [{', '.join(f'{one:.5g}' for one in sums.tolist())}]"}


def _compare(facts: dict[str, str]) -> None:
    rank = dist.get_rank()
    everyone: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, facts)
    for other, theirs in enumerate(everyone):
        for what in {**facts, **theirs}:
            got, wanted = facts.get(what), theirs.get(what)
            if got != wanted:
                raise ValueError(
                    f"gather_distributed: got {what} = {got} on rank {rank}, wanted {wanted}, that of rank {other}"
                )


_agree = register(
    "agree(Tensor z, Tensor masks, Tensor? kinds, str[] options) -> Tensor",
    _run,
    lambda z, masks, kinds, options: z.new_empty(()),
)
