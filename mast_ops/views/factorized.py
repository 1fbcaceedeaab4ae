"""Pairs of views that differ in known augmentations: what gives every pair its kind.

A pair shares every random draw but those of the augmentations in which it differs, and which those are is a row
of a table, `mast_ops.kinds`. A draw of any callable is shared by calling it twice under one seed.
"""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils.data import get_worker_info

from mast_ops._checks import check_count, check_flag, check_names
from mast_ops.kinds import kinds_of, names_of_kinds, with_further
from mast_ops.views._batch import views_of_batch
from mast_ops.views._compose import take_apart
from mast_ops.views._draws import Augmentation, draw, outer_states_kept
from mast_ops.views._images import check_input, check_one_type
from mast_ops.views._item import views_of_item
from mast_ops.views._shares import checked_shares, proportioned
from mast_ops.views._steps import Step, Which, local_name
from mast_ops.views._trials import Trials


class ViewPair(NamedTuple):
    """Two views and their kind, a row of the table: int64 of shape (N,) for a batch, an int for one item."""

    view0: Any
    view1: Any
    kind: Any


class FactorizedViews:
    """Makes pairs of views that share every augmentation's random draw except those in which they differ.

    Args:
        augmentations: ordered mapping of name to callable, applied in that order to both views. Each takes
            and returns an image batch, or one image, should draw per sample, and may work in place. It must be
            random: what is not (to tensor, normalise) belongs to finalize. It should not mix the samples of a
            batch: some draws are made for a part of the batch.
        pairs: what the pairs differ in. Default "mixed": half of them in one augmentation, which teaches each mask
            what its augmentation moves; half in all, as in plain training. This is the setting that our evidence
            recommends (benchmarks/evidence). Further "single", "all", "all_but_one"; a float p, with which each
            augmentation differs with probability p, given that one at least does; or a boolean table (S, K), a row
            for each kind of pair and True where it differs. `mast_ops.kinds.kinds_of` says more.
        weights: the share of each kind, S finite numbers >= 0 that are not all 0; divided by their sum. Default:
            those of the name, or even ones for a table. Not beside a float p, which says the shares itself.
        batched: whether x is a batch or one item. Asked, because guessing from the axes goes wrong unseen.
        finalize: deterministic callable applied to both views last (to tensor, normalise). Default: none.
        generator: CPU generator of all decisions and seeds. Default: torch's global one, so that
            `torch.manual_seed` makes the views repeatable.
        num_views: how many views of an image, V >= 2; 2 as in plain training. What an image's kind names, each view
            draws for itself; the rest all share. So any two of them are a pair of that kind.
        num_local_views: how many more, small ones, as in multi-crop (SwAV, DINO); 0.
        local_augmentations: name -> what local views have in the place of the augmentation of that name, as a crop
            to fewer pixels. They draw it for themselves: a pair with a local view differs in the named ones as well.
            The other augmentations' draws are shared with local views, as far as they do not depend on an image's size.

    `views(x)` returns a `ViewPair(view0, view1, kind)`, or with more views a tuple of all, local ones last, and kind;
    it leaves x as it was. :class:`mast_ops.MultiViewLoss` averages a loss over their pairs. What goes to the head,
    `MaskedSubspaceHead(..., views)`, and for the rest to a reader:

    * `views.augmentations`: the K names, in order.
    * `views.kinds`: the table, bool of shape (S, K), on the CPU.
    * `views.weights`: the shares, float64 of shape (S,), with a sum of 1.
    * `views.local_kinds`: the kind of an image's pairs with a local view, for each of its kinds: int64 of shape (S,).
      The table ends with those that `pairs` does not name, at a share of 0.
    * `views.kind_names`: S names: "color", "color+blur", and "all" for all of several.

    The two ways to call it:

    * batched: x is an (N, C, H, W) tensor of any dtype; kind is int64 of shape (N,) on its device. Of N pairs,
      N * weights[s] are of kind s, rounded up or down at random so that the mean is exact; their order is random.
      But for its first uses and for redraws, an augmentation handles no more samples than for two independent views.
    * one item: x is a PIL image, a numpy array, or a tensor of up to three axes; kind is an int (int64 once
      collated) from a shuffled deck of S cards, made like a batch: of even weights, each kind comes once a round.

    The two views of a pair are never equal. An augmentation that acts with a probability (a flip, grey) would leave
    half of its own pairs without a difference: where the last of a kind's augmentations leaves the views equal, it
    is drawn anew for both until they differ, at most 32 times. So a pair of one augmentation follows the law of two
    draws that differ; in a pair of several, each is drawn on its own, as in plain training, and it may be that only
    one of them shows. Of more than two views, not all are equal: a flip has but two outcomes. On a device a batch waits
    for these comparisons.

    A draw runs under a seed for torch (the CPU, and x's device), `random`, and numpy's global state where numpy is
    imported, and all of them are put back: a call advances `generator` by its decisions and seeds, and nothing
    else. These states are the process's, so calls from several threads wait for one another; other code that draws
    from them in a thread of its own meanwhile still spoils the replay. A compiled step may hold the views: they run
    outside of its graphs.
    A callable's method `set_random_seed(seed)`, as albumentations >= 2 have it for generators of their own,
    is called too; and albumentations are applied as `augmentation(image=x)["image"]`.

    Workers of a data loader each have their own deck and, with torch's global generator, their own stream in
    every epoch, repeatable by `torch.manual_seed` in the main process or by `DataLoader(generator=)`. A given
    `generator` arrives as the same copy in all of them, so there it is mixed with the worker's seed.

    Raises:
        TypeError: an argument, x or an augmentation's result is of a wrong type.
        ValueError: augmentations is empty, or its names make two kinds' names one; pairs or weights are none of the
            above; local views without augmentations of theirs, or the reverse; generator is not on the CPU; x is
            empty, its axes do not go with batched, or its device's generator cannot be seeded; a callable, at its first
            use, does not replay (or finalize is random); an augmentation draws nothing and gives one result under every
            seed (in its first batch, or in all of the first eight items); an augmentation makes one draw for a whole
            batch, as torchvision's do, changes its number of rows, gives its samples several shapes or dtypes, or gives
            one image a batch axis.

    Warns:
        UserWarning: once for each augmentation that leaves two views equal after all redraws in one of a hundred pairs,
            and in three at least, as on blank images, or where it acts in a fiftieth of its calls; or that has a
            generator of its own, whose draws we cannot see, and in its first eight uses gives one result under every
            seed; or whose result for an image of the first batch depends on the images beside it.

    Source: ours. The abstract of the MAST paper (ICLR 2023) does not say how pairs are sampled.

    >>> def brightness(x):
    ...     return x + torch.rand(len(x), 1, 1, 1)
    >>> def noise(x):
    ...     return x + torch.randn_like(x)
    >>> views = FactorizedViews({"brightness": brightness, "noise": noise}, batched=True)
    >>> views.kind_names
    ('brightness', 'noise', 'all')
    >>> view0, view1, kind = views(torch.rand(8, 3, 8, 8))
    >>> torch.bincount(kind)
    tensor([2, 2, 4])
    >>> same_noise = (view1 - view0).std(dim=(1, 2, 3)) < 1e-5  # only a constant is between them
    >>> torch.equal(same_noise, kind == views.kind_names.index("brightness"))
    True
    """

    def __init__(
        self,
        augmentations: Mapping[str, Augmentation],
        *,
        pairs: Any = "mixed",
        weights: Sequence[float] | Tensor | None = None,
        batched: bool = False,
        finalize: Augmentation | None = None,
        generator: torch.Generator | None = None,
        num_views: int = 2,
        num_local_views: int = 0,
        local_augmentations: Mapping[str, Augmentation] | None = None,
    ) -> None:
        names, calls = _named("augmentations", augmentations)
        local = {} if local_augmentations is None else local_augmentations
        local_names, local_calls = _named("local_augmentations", local, least=0)
        if strangers := [name for name in local_names if name not in names]:
            known = ", ".join(map(repr, names))
            raise ValueError(f"local_augmentations: got {strangers[0]!r}, wanted names of augmentations: {known}")
        if finalize is not None and not callable(finalize):
            raise TypeError(f"finalize: got {type(finalize).__name__}, wanted a callable")
        check_flag("batched", batched)
        check_count("num_views", num_views, 2)
        if check_count("num_local_views", num_local_views, 0) > 0 and not local_names:
            raise ValueError("local_augmentations: got None beside num_local_views, wanted the crop of local views")
        if local_names and num_local_views == 0:
            raise ValueError("num_local_views: got 0 beside local_augmentations, wanted how many views have them")
        kinds, shares = kinds_of(pairs, len(names))
        if weights is not None:
            if isinstance(pairs, float):
                raise ValueError(f"weights: got some beside the probability {pairs}, wanted None: it says the shares")
            shares = checked_shares(weights, len(kinds))
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: got {type(generator).__name__}, wanted a torch.Generator or None")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator: got one on {generator.device}, wanted one on the CPU")

        self._num_drawn = len(kinds)  # the others are of pairs with a local view
        kinds, local_kinds = with_further(kinds, [names.index(name) for name in local_names])
        self.augmentations: tuple[str, ...] = names
        self.num_views, self.num_local_views = num_views, num_local_views
        self.kinds, self.local_kinds = kinds, local_kinds
        self.weights = torch.cat((shares, shares.new_zeros(len(kinds) - len(shares))))
        self.kind_names = names_of_kinds(kinds, names)
        self._calls, self._local_calls = calls, local_calls  # by the names that errors give them
        self._batched = batched
        self._finalize = finalize
        self._generator = generator
        self._trials = Trials(calls | local_calls, batched)
        # The last of a kind's augmentations sees to it that the views differ.
        self._is_last = kinds & (kinds.flip(1).cumsum(1).flip(1) == 1)
        self._deck: list[int] = []
        self._process: int | None = None

    @classmethod
    def from_compose(
        cls,
        compose: Any,
        *,
        groups: Mapping[str, str | Sequence[str]] | None = None,
        image: Any = None,
        batched: bool = False,
        **options: Any,
    ) -> "FactorizedViews":
        """Views out of a composition: torchvision's or albumentations' ``Compose``, kornia's
        ``AugmentationSequential``, ``nn.Sequential``, or a transform of lightly that treats both views alike.

        Each random step is an augmentation, and keeps its probability; one whose probability is 0 is left out. What
        draws nothing and gives one result under eight seeds is fixed: after the last random step it goes to finalize,
        and before it with the random step that follows. A step's name is its class's, without "Random" and in small
        letters: "resized_crop", "horizontal_flip", "color_jitter". What is applied as a whole with a probability
        (``RandomApply``, ``OneOf``) is one step.

        Args:
            compose: the composition.
            groups: new name -> the name of a step, or of several that follow one another. Default: a step each.
            image: what the first step takes, to try the steps on. Default: noise, as a PIL image where PIL is
                imported, or else as a tensor; an array for albumentations, and a tensor for kornia and for a batch.
            batched: as in the constructor; kornia's augmentations take batches, and one image with keepdim=True.
            options: pairs, weights, generator and those of more views, as in the constructor.

        Raises:
            TypeError: compose is no composition, or groups are none.
            ValueError: no step is random; a transform treats its views in several ways, or gives several; a step does
                not take what comes before it (pass image); groups name a step that is not there, twice, or steps
                that are apart.

        Warns:
            UserWarning: one step alone is random, as where compose is a function that does everything: it is one
                augmentation, of one mask.

        >>> class RandomShift(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x + torch.rand(len(x), 1, 1, 1)
        >>> class RandomNoise(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x + torch.randn_like(x)
        >>> compose = torch.nn.Sequential(RandomShift(), RandomNoise(), torch.nn.Sigmoid())
        >>> views = FactorizedViews.from_compose(compose, groups={"brightness": "shift"}, batched=True)
        >>> views.augmentations
        ('brightness', 'noise')
        >>> bool((views(torch.rand(8, 3, 8, 8)).view0 < 1).all())
        True
        """
        check_flag("batched", batched)
        if "finalize" in options:
            raise TypeError("finalize: got one beside a composition, wanted it as the composition's last step")
        if image is not None:
            check_input(image, batched, "image")
        augmentations, finalize = take_apart(compose, groups, image, batched)
        return cls(augmentations, finalize=finalize, batched=batched, **options)

    def __repr__(self) -> str:
        shares = list(zip(self.kind_names, self.weights.tolist(), strict=True))[: self._num_drawn]
        kinds = [f"{name} {share:.3g}" for name, share in shares[:12]] + ["..."] * (len(shares) > 12)
        views = f"{self.num_views}+{self.num_local_views} views" if self.num_local_views else f"{self.num_views} views"
        names = ", ".join(self.augmentations)
        return f"FactorizedViews({names}; kinds: {', '.join(kinds)}; {views}, batched={self._batched})"

    def __getstate__(self) -> dict[str, Any]:
        """The generator as bytes: a pickled one kills a spawned worker (pytorch/pytorch#146828)."""
        return self.__dict__ | {"_generator": self._generator and bytes(self._generator.get_state().tolist())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if numbers := state["_generator"]:
            self._generator = torch.Generator()
            self._generator.set_state(torch.tensor(list(numbers), dtype=torch.uint8, device="cpu"))

    def __call__(self, x: Any) -> Any:
        return self._uncompiled(x) if torch.compiler.is_dynamo_compiling() else self._make(x)

    @_disable_dynamo  # what torch.compiler.disable is, but for its import, which workers of a loader need not pay
    def _uncompiled(self, x: Any) -> Any:
        """Seeds and comparisons are Python's, and would be compiled again and again."""
        return self._make(x)

    def _make(self, x: Any) -> Any:
        check_input(x, self._batched)
        with _lock:
            views, kind = self._call(x)
        return ViewPair(views[0], views[1], kind) if len(views) == 2 else (*views, kind)

    def _call(self, x: Any) -> tuple[list[Any], Any]:
        generator = self._generator_of_this_process()
        # On the CPU: choosing a batch's rows by their kind then never waits for a device.
        kind: Any = proportioned(self.weights, len(x), generator) if self._batched else self._dealt(generator)
        # torch's CPU generator reads 32 bits of a seed.
        shape = (len(self._calls), 1 + self.num_views + self.num_local_views)
        seeds = torch.randint(2**32, shape, generator=generator, device="cpu").tolist()
        with outer_states_kept(x):
            views: list[Any]
            if self._batched:
                batch = self._steps(seeds, self.kinds[kind].T, self._is_last[kind].T)
                views = views_of_batch(x, batch, self._trials)
            else:
                one = self._steps(seeds, self.kinds[kind].tolist(), self._is_last[kind].tolist())
                views = views_of_item(x, one, self._trials)
            if self._finalize is not None:
                self._trials.use("finalize", self._finalize, views[0])
                views = [draw("finalize", self._finalize, view, 0) for view in views]
            check_one_type(views)
        return views, kind.to(x.device) if self._batched else kind

    def _steps(self, seeds: list[list[int]], differs: Iterable[Which], is_last: Iterable[Which]) -> list[Step[Which]]:
        """A turn of each augmentation."""
        return [
            Step(name, call, seed, differ, last, self.num_views, self._local_calls.get(local_name(name)))
            for (name, call), seed, differ, last in zip(self._calls.items(), seeds, differs, is_last, strict=True)
        ]

    def _dealt(self, generator: torch.Generator | None) -> int:
        if not self._deck:
            self._deck = proportioned(self.weights, self._num_drawn, generator).tolist()
        return self._deck.pop()

    def _generator_of_this_process(self) -> torch.Generator | None:
        """A fork or pickle brings every worker the same deck and generator: drop the one, mix the other."""
        if self._process != os.getpid():
            self._process, self._deck = os.getpid(), []
            worker = get_worker_info()
            if self._generator is not None and worker is not None:
                # worker.seed is new for each worker and epoch, and by xor no two of them give one mixed seed.
                mixed = int(torch.randint(2**32, (), generator=self._generator, device="cpu")) ^ (worker.seed % 2**32)
                self._generator = torch.Generator().manual_seed(mixed)
        return self._generator


def _named(argument: str, calls: Any, least: int = 1) -> tuple[tuple[str, ...], dict[str, Augmentation]]:
    """Their names, and each callable by the name that an error gives it."""
    if isinstance(calls, nn.ModuleDict):  # no Mapping to Python
        calls = dict(calls.items())
    if not isinstance(calls, Mapping):
        wanted = "name -> callable, or FactorizedViews.from_compose for a composition"
        if argument == "local_augmentations":
            wanted = "name -> callable, of those alone that local views have otherwise, such as their crop"
        raise TypeError(f"{argument}: got {type(calls).__name__}, wanted {wanted}")
    names = check_names(argument, tuple(calls)) if least or calls else ()
    for name in names:
        if not callable(calls[name]):
            raise TypeError(f"{argument}[{name!r}]: got {type(calls[name]).__name__}, wanted a callable")
    return names, {f"{argument}[{name!r}]": calls[name] for name in names}


_lock = threading.RLock()  # one for all objects: the random states are the process's


def _renew_lock() -> None:
    """For a forked child: the thread that held the parent's lock does not live on in it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
