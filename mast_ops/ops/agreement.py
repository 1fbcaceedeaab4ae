"""Whether ranks are about to do the same: asked in each call of a loss, before it tells them anything."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from mast_ops.ops._library import register

P = ParamSpec("P")
T = TypeVar("T")

_KNOWN, _NEW, _FAILED = range(3)
_agreed: "WeakKeyDictionary[Any, set[int]]" = WeakKeyDictionary()
"""What the ranks of a process group have compared: alike on all of them."""
_calls = 0  # how often this process has asked
# A rank's row: the ways of calling as one number, what it knows of it, and sums of masks, kinds and numbers.
_COLUMNS, _SUMS = 12, 2
# Of float32 masks that another kind of processor has made.
_TOLERANCE = 1e-6


def agree(
    z: Tensor, masks: Tensor, kinds: Tensor | None, numbers: Sequence[Tensor] = (), facts: Sequence[str] = ()
) -> Tensor:
    """0, once all ranks are known to make the same call: of one D, K and dtype, with masks, kinds, numbers and facts
    that are alike.

    Every call sends 96 bytes to each rank. On a CPU what comes back is looked at, and every rank raises where one
    differs. On another device that is asked for what ranks have not done before; later it would wait for the device,
    which asserts it instead.

    Args:
        z: Its D, dtype and device count.
        masks: (K, D), compared by a sum that weighs each entry by its place.
        kinds: (S, K), likewise.
        numbers: Of one element each, likewise.
        facts: Each a ``name=value``; that of ``numbers`` has their names, with spaces between.

    Raises:
        ValueError: Ranks differ, or one of them has raised an error of its own; every rank says so.
        RuntimeError: One of them has not come within the timeout of the process group.
    """
    return cast(Tensor, _agree(z.detach(), masks.detach(), kinds, [x.detach() for x in numbers], list(facts)))


def raised_by_all(function: Callable[P, T]) -> Callable[P, T]:
    """Of what ranks call together: an error of one of them, before they have compared, is told to the others, who wait.

    Not of compiled code, which raises while it is traced.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or not _are_several():
            return function(*args, **kwargs)
        asked = _calls
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if asked == _calls and _gathers(args[:1], kwargs):
                tensors = (x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor))
                _tell(error, next((x.device for x in tensors), None))
            raise

    return call


def _gathers(module: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Of a loss, one of more views, or a function."""
    for one in module:
        if isinstance(one, torch.nn.Module):
            return getattr(getattr(one, "criterion", one), "gather_distributed", False) is True
    return options.get("gather_distributed", False) is True


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _tell(error: Exception, device: torch.device | None) -> None:
    """In the place of what this rank would have compared."""
    if device is None:
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    own = torch.zeros(_COLUMNS, dtype=torch.float64, device=device)
    own[1] = _FAILED
    table = _gather(own)
    if device.type == "cpu" or bool((table[:, 1] != _KNOWN).all()):
        _gather_words({"error": f"{type(error).__name__}: {error}"})


def _run(z: Tensor, masks: Tensor, kinds: Tensor | None, numbers: list[Tensor], facts: list[str]) -> Tensor:
    global _calls
    agreed = _agreed.setdefault(dist.group.WORLD, set())
    num_kinds = None if kinds is None else len(kinds)
    call = (z.device.type, z.shape[1], len(masks), z.dtype, masks.dtype, num_kinds, len(numbers), facts)
    code = int.from_bytes(hashlib.blake2b(repr(call).encode(), digest_size=6).digest(), "big")  # a float64 holds it
    is_new = code not in agreed
    own = torch.zeros(_COLUMNS, dtype=torch.float64, device=z.device)
    own[0], own[1] = code, _NEW if is_new else _KNOWN
    own[_SUMS] = _sum(masks)
    own[_SUMS + 1] = 0 if kinds is None else _sum(kinds)
    for i, number in enumerate(numbers):
        own[_SUMS + 2 + i % (_COLUMNS - _SUMS - 2)] += number.sum()
    _calls += 1
    table = _gather(own)
    same = (table[:, 1] < _FAILED).all() & (table[:, 0] == own[0]).all()
    same = same & torch.isclose(table, own, rtol=_TOLERANCE, atol=0, equal_nan=True)[:, _SUMS:].all()
    if not is_new and z.device.type != "cpu":
        torch._assert_async(same, "gather_distributed: got ranks that differ in what they call, or with what")
    elif not same:
        can_say = z.device.type == "cpu" or bool((table[:, 1] != _KNOWN).all())
        _refuse(_words(z, masks, kinds, numbers, facts) if can_say else None)
    agreed.add(code)
    return z.new_zeros(())


def _sum(x: Tensor) -> Tensor:
    """Each weighed otherwise: masks of one coverage, and kinds of as many augmentations, have one plain sum."""
    return x.double().flatten() @ _weights_of_places(x.numel(), x.device)


@functools.lru_cache(maxsize=16)  # each call asks for those of the masks and of the kinds
def _weights_of_places(count: int, device: torch.device) -> Tensor:
    place = torch.arange(count, dtype=torch.float64, device=device)
    return 1.5 + torch.cos(place * place)


def _gather(own: Tensor) -> Tensor:
    size, rank = dist.get_world_size(), dist.get_rank()
    table = own.new_empty(size, len(own))
    try:
        if not _agreed.get(dist.group.WORLD):
            _wait_for_all(rank, size)
        dist.all_gather(list(table.unbind()), own)
    except RuntimeError as error:
        raise RuntimeError(
            f"gather_distributed: got no answer on rank {rank}, wanted one from each of {size} ranks: all of them must "
            f"make this call, with gather_distributed=True ({error})"
        ) from error
    return table


def _wait_for_all(rank: int, size: int) -> None:
    """Before the first time, apart from the group: one that does other things there would abort who waits for it."""
    store = dist.distributed_c10d._get_default_store()
    if store is not None:
        store.set(f"mast_ops/{rank}", "here")
        store.wait([f"mast_ops/{other}" for other in range(size)])


def _words(z: Tensor, masks: Tensor, kinds: Tensor | None, numbers: list[Tensor], facts: list[str]) -> dict[str, str]:
    words = {"D": str(z.shape[1]), "K": str(len(masks)), "dtype": str(z.dtype), "device": z.device.type}
    words |= {name: value for name, _, value in (fact.partition("=") for fact in facts)}
    names = words.pop("numbers", "").split()
    words |= {name: f"{float(x.sum()):.7g}" for name, x in zip(names, numbers, strict=True)}
    words["kinds"] = "None" if kinds is None else str(kinds.int().tolist())
    words["dtype of masks"] = str(masks.dtype)
    # Few words for many numbers: each mask's sum, weighed by place.
    sums = masks.cpu().double() @ torch.linspace(1, 2, masks.shape[1], dtype=torch.float64, device="cpu")
    return words | {"masks": f"those of weighed sums [{', '.join(f'{one:.7g}' for one in sums.tolist())}]"}


def _gather_words(own: dict[str, str]) -> list[dict[str, str]]:
    everyone: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


def _refuse(own: dict[str, str] | None) -> None:
    rank = dist.get_rank()
    everyone = [] if own is None else _gather_words(own)
    for other, theirs in enumerate(everyone):
        if "error" in theirs:
            raise ValueError(f"gather_distributed: got an error on rank {other}, wanted none: {theirs['error']}")
    for other, theirs in enumerate(everyone):
        assert own is not None
        for what in {**own, **theirs}:
            got, wanted = own.get(what), theirs.get(what)
            if got != wanted:
                raise ValueError(
                    f"gather_distributed: got {what} = {got} on rank {rank}, wanted {wanted}, that of rank {other}"
                )
    raise ValueError("gather_distributed: got ranks that differ in what they call, or with what, wanted them alike")


_agree = register(
    "agree(Tensor z, Tensor masks, Tensor? kinds, Tensor[] numbers, str[] facts) -> Tensor",
    _run,
    lambda z, masks, kinds, numbers, facts: z.new_empty(()),
)
