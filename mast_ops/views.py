"""Pairs of views that differ in one known augmentation: what gives every sample its subspace.

Mask k sees the part of an embedding that may react to augmentation k, so it is trained on pairs that share
every random draw but augmentation k's. A draw of any callable is shared by calling it twice under one seed.
"""

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mast_ops._checks import check_fraction, check_names

Augmentation = Callable[..., Any]

_TRIALS = 8  # a hidden coin tossed once a call slips through with probability 2 ** -8
_TRIAL_ROWS = 4  # of a batch: the first batch should not cost much more than the others


class ViewPair(NamedTuple):
    """Two views and their subspace: int64 of shape (N,) for a batch, an int for one item."""

    view0: Any
    view1: Any
    subspace: Any


class FactorizedViews:
    """Makes pairs of views that share every augmentation's random draw except that of one, their subspace.

    Args:
        augmentations: ordered mapping of name to callable, applied in that order to both views. Each takes
            and returns an image batch, or one image, may draw per sample or per batch, and may work in place.
            It should not mix the samples of a batch: some draws are made for a part of the batch.
        composed: fraction of pairs in which every augmentation is drawn anew; their index is K, the number of
            augmentations. Default 0: none. In a batch N * composed, rounded up or down at random so that the
            mean is exact; a single item is composed with this probability.
        composed_name: the name of index K, which `subspaces` has only if composed > 0.
        batched: whether x is a batch or one item. Asked, because guessing from the axes goes wrong unseen.
        finalize: deterministic callable applied to both views last (to tensor, normalise). Default: none.
        generator: CPU generator of all decisions and seeds. Default: torch's global one, so that
            `torch.manual_seed` makes the views repeatable.

    `views(x)` returns a `ViewPair(view0, view1, subspace)` and leaves x as it was; `views.subspaces` holds the
    names in order, for `MaskedSubspaceHead(..., subspaces=views.subspaces, composed=views.composed)`, where
    `views.composed` is composed_name, or None without composed pairs.

    * batched: x is an (N, C, H, W) tensor of any dtype, on any device; subspace is int64 of shape (N,) there.
      Composed pairs aside, the subspaces' counts differ by at most one; their order is random. With
      composed = 0 the augmentations handle no more samples than for two independent views.
    * one item: x is a PIL image, a numpy array, or a tensor of up to three axes; subspace is an int (int64 once
      collated) from a shuffled deck: each K items in turn, composed ones aside, hold each subspace once.

    A draw runs under a seed for torch (the CPU, and x's device if that is CUDA), `random`, and numpy's global
    state where numpy is imported, and all of them are put back: a call advances `generator` by its decisions
    and seeds, and nothing else. These states are the process's: make no views in several threads at once.
    A callable's method `set_random_seed(seed)`, as albumentations >= 2 have it for generators of their own,
    is called too; and albumentations are applied as `augmentation(image=x)["image"]`.

    Workers of a data loader each have their own deck and, with torch's global generator, their own stream in
    every epoch, repeatable by `torch.manual_seed` in the main process or by `DataLoader(generator=)`. A given
    `generator` arrives as the same copy in all of them, so there it is mixed with the worker's seed.

    Raises:
        TypeError: an argument, x or an augmentation's result is of a wrong type.
        ValueError: augmentations is empty; composed is outside [0, 1]; composed_name is an augmentation's;
            generator is not on the CPU; x is empty or its axes do not go with batched; a callable, at its first
            use, does not replay (or finalize is random); an augmentation changes a batch's number of rows, or
            gives its samples several shapes or dtypes.

    Source: ours. The abstract of the MAST paper (ICLR 2023) does not say how pairs are sampled.

    >>> def brightness(x):
    ...     return x + torch.rand(len(x), 1, 1, 1)
    >>> def noise(x):
    ...     return x + torch.randn_like(x)
    >>> views = FactorizedViews({"brightness": brightness, "noise": noise}, batched=True)
    >>> view0, view1, subspace = views(torch.rand(6, 3, 8, 8))
    >>> torch.bincount(subspace)
    tensor([3, 3])
    >>> same_noise = (view1 - view0).std(dim=(1, 2, 3)) < 1e-5  # only a constant is between them
    >>> torch.equal(same_noise, subspace == views.subspaces.index("brightness"))
    True
    """

    def __init__(
        self,
        augmentations: Mapping[str, Augmentation],
        *,
        composed: float = 0.0,
        composed_name: str = "all",
        batched: bool = False,
        finalize: Augmentation | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(augmentations, Mapping):
            raise TypeError(f"augmentations: got {type(augmentations).__name__}, wanted name -> callable")
        names = tuple(augmentations)
        check_names("augmentations", names)
        calls = {f"augmentations[{name!r}]": augmentations[name] for name in names}
        for name, call in (*calls.items(), ("finalize", finalize)):
            if not callable(call) and not (name == "finalize" and call is None):
                raise TypeError(f"{name}: got {type(call).__name__}, wanted a callable")
        check_fraction("composed", composed)
        check_names("composed_name", (composed_name,))
        if composed_name in names:
            raise ValueError(f"composed_name: got {composed_name!r}, wanted a name that no augmentation has")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: got {type(generator).__name__}, wanted a torch.Generator or None")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator: got one on {generator.device}, wanted one on the CPU")

        self.composed: str | None = composed_name if composed > 0 else None
        self.subspaces: tuple[str, ...] = (*names, composed_name) if composed > 0 else names
        self._augmentations = calls  # by the name that an error gives them
        self._composed = composed
        self._batched = batched
        self._finalize = finalize
        self._generator = generator
        self._tried: set[str] = set()
        self._deck: list[int] = []
        self._process: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The generator as bytes: a pickled one kills a spawned worker (pytorch/pytorch#146828)."""
        return self.__dict__ | {"_generator": self._generator and bytes(self._generator.get_state().tolist())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if numbers := state["_generator"]:
            self._generator = torch.Generator()
            self._generator.set_state(torch.tensor(list(numbers), dtype=torch.uint8, device="cpu"))

    def __call__(self, x: Any) -> ViewPair:
        _check_input(x, self._batched)
        with torch.device("cpu"):  # whatever torch.set_default_device says: the generator is the CPU's
            generator = self._generator_of_this_process()
            subspace: Any = self._balanced(len(x), generator) if self._batched else self._dealt(generator)
            # A shared and a new draw's seed for each augmentation; torch's CPU generator reads 32 bits of one.
            seeds = torch.randint(2**32, (len(self._augmentations), 2), generator=generator).tolist()
        make_views = self._views_of_batch if self._batched else self._views_of_item
        with _outer_states_kept(x):
            view0, view1 = make_views(x, subspace, seeds)
            if self._finalize is not None:
                self._try("finalize", self._finalize, view0)
                view0, view1 = (_draw("finalize", self._finalize, view, 0) for view in (view0, view1))
        return ViewPair(view0, view1, subspace.to(x.device) if self._batched else subspace)

    def _views_of_batch(self, x: Tensor, subspace: Tensor, seeds: list[list[int]]) -> tuple[Tensor, Tensor]:
        view0 = view1 = x.clone()  # one will do: all that is read of view1 at first is `part`
        differs = torch.zeros_like(subspace, dtype=torch.bool)
        for k, (name, augmentation) in enumerate(self._augmentations.items()):
            shared, new = seeds[k]
            anew = (subspace == k) | (subspace == len(self._augmentations))
            rows = anew.nonzero()[:, 0].to(x.device)
            part = view1[rows]  # a copy, made before the replay may work in place
            self._try(name, augmentation, view0)
            view0 = _draw(name, augmentation, view0, shared)
            _check_rows(name, view0, len(x))
            # The replay is for samples that differ already; for the others it would give view0 again.
            replay = bool((differs & ~anew).any())
            view1 = _draw(name, augmentation, view1, shared) if replay else view0.clone()
            if len(rows) > 0:
                part = _draw(name, augmentation, part, new)
                _check_rows(name, part, len(rows), like=view0)
                view1[rows] = part
            differs |= anew
        return view0, view1

    def _views_of_item(self, x: Any, subspace: int, seeds: list[list[int]]) -> tuple[Any, Any]:
        composed = subspace == len(self._augmentations)
        first = 0 if composed else subspace  # before it the views are alike, and drawn once for both
        view0 = view1 = _copied(x)
        for k, (name, augmentation) in enumerate(self._augmentations.items()):
            shared, new = seeds[k]
            if k == first:
                view1 = _copied(view0)
            self._try(name, augmentation, view0)
            view0 = _draw(name, augmentation, view0, shared)
            if k >= first:
                view1 = _draw(name, augmentation, view1, new if composed or k == subspace else shared)
        return view0, view1

    def _balanced(self, num_samples: int, generator: torch.Generator | None) -> Tensor:
        """The subspaces of a batch, on the CPU: choosing by them then never waits for a device."""
        num_augmentations = len(self._augmentations)
        num_composed = int(num_samples * self._composed + torch.rand((), generator=generator).item())
        turns = torch.arange(num_samples - num_composed) % num_augmentations
        first_has_the_remainder = torch.randperm(num_augmentations, generator=generator)
        composed = torch.full((num_composed,), num_augmentations)
        subspace = torch.cat((first_has_the_remainder[turns], composed))
        return subspace[torch.randperm(num_samples, generator=generator)]

    def _dealt(self, generator: torch.Generator | None) -> int:
        if self._composed > 0 and torch.rand((), generator=generator).item() < self._composed:
            return len(self._augmentations)
        if not self._deck:
            self._deck = torch.randperm(len(self._augmentations), generator=generator).tolist()
        return self._deck.pop()

    def _generator_of_this_process(self) -> torch.Generator | None:
        """A fork or pickle brings every worker the same deck and generator: drop the one, mix the other."""
        if self._process != os.getpid():
            self._process, self._deck = os.getpid(), []
            worker = get_worker_info()
            if self._generator is not None and worker is not None:
                # worker.seed is new for each worker and epoch, and by xor no two of them give one mixed seed.
                mixed = int(torch.randint(2**32, (), generator=self._generator)) ^ (worker.seed % 2**32)
                self._generator = torch.Generator().manual_seed(mixed)
        return self._generator

    def _try(self, name: str, call: Augmentation, x: Any) -> None:
        """At a callable's first use: one result for one seed, and from finalize one for any seed."""
        if name in self._tried:
            return
        apart, wanted = 0, "got two different results under one seed, wanted draws from torch's, Python's or "
        wanted += "numpy's global generator, or a method set_random_seed(seed) for a generator of its own"
        if name == "finalize":
            apart, wanted = 1, "got two different results for one image, wanted a deterministic callable"
        x = x[:_TRIAL_ROWS] if self._batched else x
        for seed in range(_TRIALS):
            if not _same(_draw(name, call, _copied(x), seed), _draw(name, call, _copied(x), seed + apart)):
                raise ValueError(f"{name}: {wanted}")
        self._tried.add(name)


def _draw(name: str, call: Augmentation, x: Any, seed: int) -> Any:
    """What the callable makes of x, which it may overwrite; copied, as it may hand out one buffer twice."""
    _seed(seed, x)
    if hasattr(call, "set_random_seed"):
        call.set_random_seed(seed)
    by_name = any(base.__module__.partition(".")[0] == "albumentations" for base in type(call).__mro__)
    y = call(image=x)["image"] if by_name else call(x)
    if not _is_image(y):
        raise TypeError(f"{name}: got {type(y).__name__} as its result, wanted a PIL image, array or tensor")
    return _copied(y)


def _seed(seed: int, x: Any) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device, not only x's
    if isinstance(x, Tensor) and x.is_cuda:
        torch.cuda.default_generators[x.device.index].manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed([seed, seed])  # for seed alone it would give the very bits that torch gives


@contextmanager
def _outer_states_kept(x: Any) -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng([x.device] if isinstance(x, Tensor) and x.is_cuda else []):
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


def _copied(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x.copy()


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, equal_nan=True)
    return type(x) is type(y) and bool(x.tobytes() == y.tobytes())


def _is_image(x: Any) -> bool:
    return isinstance(x, Tensor) or all(hasattr(x, name) for name in ("copy", "size", "tobytes"))


def _check_input(x: Any, batched: bool) -> None:
    wanted = "one non-empty image (PIL, array or tensor up to (C, H, W)), or batched=True for a batch"
    if batched:
        wanted = "a non-empty tensor of shape (N, C, H, W), or batched=False for one image"
    if not (isinstance(x, Tensor) if batched else _is_image(x)):
        raise TypeError(f"x: got {type(x).__name__}, wanted {wanted}")
    shape = tuple(getattr(x, "shape", x.size))
    if (len(shape) != 4 if batched else len(shape) > 3) or 0 in shape:
        raise ValueError(f"x: got shape {shape}, wanted {wanted}")


def _check_rows(name: str, y: object, num_rows: int, like: Tensor | None = None) -> None:
    """A tensor of so many rows, and with samples like those of another draw."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}: got {type(y).__name__} as its result, wanted a tensor of a batch's samples")
    if y.shape[:1] != (num_rows,):
        raise ValueError(f"{name}: got {num_rows} rows and gave shape {tuple(y.shape)}, wanted as many rows")
    if like is not None and (y.shape[1:] != like.shape[1:] or y.dtype != like.dtype):
        got = " and ".join(f"{tuple(z.shape[1:])} {z.dtype}" for z in (like, y))
        raise ValueError(f"{name}: got samples of {got} under two seeds, wanted one shape and dtype")
