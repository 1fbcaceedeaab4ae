"""The first uses of a callable: whether it replays, and whether it draws at all, said before it is relied upon."""

from collections.abc import Mapping, Sequence
from typing import Any

from mast_ops._checks import warn_user
from mast_ops.views._draws import Augmentation, copied, draw, same, seed_generators, states_of
from mast_ops.views._images import check_rows

_TRIALS = 8  # a hidden coin tossed once a call slips through with probability 2 ** -8
_TRIAL_ROWS = 4  # of a batch: the first batch should not cost much more than the others
_EQUAL, _EQUAL_SHARE = 3, 0.01  # pairs of equal views before a word
_TRIAL_ITEMS = 8  # before one is called deterministic: a random crop draws nothing where an image is of its size


class Trials:
    """Which of them are on trial still, and which a warning has named."""

    def __init__(self, calls: Mapping[str, Augmentation], batched: bool) -> None:
        self._batched = batched
        self._uses_left = {name: _uses_on_trial(call, batched) for name, call in calls.items()} | {"finalize": 1}
        self._warned: set[str] = set()
        self._pairs = dict.fromkeys(calls, 0)  # those that it had to make differ,
        self._equal = dict.fromkeys(calls, 0)  # and those of them whose views are equal all the same

    def use(self, name: str, call: Augmentation, x: Any) -> None:
        """At a callable's first use: one result for one seed; several for several, and from finalize one.

        One draw for a whole batch is seen where it shows in all eight results. A coin that the batch has in common,
        and that comes up with probability p, goes unseen where no result of eight is acted on: in (1 - p)^8 of runs,
        0.43 of them at p=0.1 and 0.66 at p=0.05. Where each image then has a strength of its own, the coin alone in
        common, it is not looked for: rows differ, as they do in many augmentations.
        """
        uses_left = self._uses_left[name]
        if uses_left == 0:
            return
        image = x[:1].repeat(_TRIAL_ROWS, 1, 1, 1) if self._batched else x
        seeds = range(uses_left * _TRIALS, (uses_left + 1) * _TRIALS)  # others in each use
        if name == "finalize":
            _check_deterministic(name, call, image, seeds)
        else:
            results, drew = _trial(name, call, image, seeds)
            if self._batched:
                check_rows(name, results[0], len(image))
            if all(same(result, results[0]) for result in results):
                if not drew and uses_left > 1:
                    self._uses_left[name] -= 1
                    return
                if not drew:
                    _refuse_deterministic(name, call)
                    self._warned.add(name)
            elif self._batched and all(same(y, y[:1].expand_as(y)) for y in results):
                raise ValueError(
                    f"{name}: got one draw for all samples of a batch, wanted one for each, as kornia's augmentations "
                    "make them; or batched=False, and a data set that calls the views on each image"
                )
            if self._batched and _mixes(name, call, x, results, seeds):
                warn_user(
                    f"{name}: got another view of an image beside other images under one seed, wanted samples that "
                    "stay apart: two views of a pair would be of several images; what mixes a batch (mixup, cutmix) "
                    "goes after the views"
                )
        self._uses_left[name] = 0

    def count(self, name: str, num_pairs: int, num_equal: int) -> None:
        """Of more pairs. What acts in a tenth of its calls leaves one of 700 equal after all redraws: no word of it."""
        self._pairs[name] += num_pairs
        self._equal[name] += num_equal
        often = num_equal > 0 and self._equal[name] >= max(_EQUAL, _EQUAL_SHARE * self._pairs[name])
        on_trial = self._uses_left[name] > 0  # which may yet refuse it, in better words
        if often and name not in self._warned and not on_trial:
            self._warned.add(name)
            warn_user(
                f"{name}: got two equal views in {self._equal[name]} of {self._pairs[name]} pairs, redraws and all, "
                "wanted views that differ in it: such a pair teaches nothing: does it act on these images, and often "
                "enough?"
            )


def _uses_on_trial(call: Augmentation, batched: bool) -> int:
    """A batch settles it, as its images are of one size; but unseen draws need many seeds to be told from none."""
    return 1 if batched and not hasattr(call, "set_random_seed") else _TRIAL_ITEMS


def _trial(name: str, call: Augmentation, image: Any, seeds: Sequence[int]) -> tuple[list[Any], bool]:
    """A result for each seed, and whether any global generator was drawn from; refuses what does not replay."""
    results, drew = [], False
    for seed in seeds:
        seed_generators(seed, image)
        fresh = states_of(image)
        results.append(draw(name, call, copied(image), seed))
        drew = drew or states_of(image) != fresh
        if not same(results[-1], draw(name, call, copied(image), seed)):
            raise ValueError(
                f"{name}: got two different results under one seed, wanted draws from torch's, Python's or "
                "numpy's global generator, or a method set_random_seed(seed) for a generator of its own"
            )
    return results, drew


def _mixes(name: str, call: Augmentation, x: Any, results: Sequence[Any], seeds: Sequence[int]) -> bool:
    """Whether what is made of the first image depends on those beside it: `results` are of copies of it alone."""
    beside = x[: min(len(x), 2)].repeat(_TRIAL_ROWS, 1, 1, 1)[:_TRIAL_ROWS]
    if same(beside[1], beside[0]):
        return False
    draws = zip(results, seeds, strict=True)
    return not all(same(draw(name, call, copied(beside), seed)[0], alone[0]) for alone, seed in draws)


def _check_deterministic(name: str, call: Augmentation, image: Any, seeds: Sequence[int]) -> None:
    for seed in seeds:
        if not same(draw(name, call, copied(image), seed), draw(name, call, copied(image), seed + 1)):
            raise ValueError(f"{name}: got two different results for one image, wanted a deterministic callable")


def _refuse_deterministic(name: str, call: Augmentation) -> None:
    got = f"{name}: got one result under all seeds, wanted random draws: a pair that differs in it would be two equal "
    got += "views; what is deterministic (to tensor, normalise) goes to finalize="
    if not hasattr(call, "set_random_seed"):
        raise ValueError(got)
    warn_user(got)
