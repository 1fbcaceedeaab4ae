"""Pairs that share every draw but those of their kind: read off augmentations that write their draw into the image."""

import doctest
import importlib.util
import itertools
import math
import multiprocessing
import os
import pickle
import random
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

import mast_ops.views.factorized
from mast_ops import FactorizedViews, ViewPair

NAMES = ("crop", "color", "blur")
DRAWS = {
    "torch": lambda n: torch.rand(n),
    "random": lambda n: torch.tensor([random.random() for _ in range(n)]),
    "numpy": lambda n: torch.from_numpy(np.random.rand(n)).float(),
}


class Stamp:
    """Adds its draw to one column of the image, in place: one draw for each sample, or one for the call."""

    def __init__(self, column: int, source: str = "torch", per_sample: bool = True):
        self.column, self.source, self.per_sample = column, source, per_sample
        self.samples = 0

    def __call__(self, x: Tensor) -> Tensor:
        num_samples = len(x) if x.dim() == 4 else 1
        assert num_samples > 0
        self.samples += num_samples
        draw = DRAWS[self.source](num_samples if self.per_sample else 1)
        x[..., self.column] += draw[:, None, None] if x.dim() == 4 else draw
        return x


def stamps(num: int = 3, **options) -> dict[str, Stamp]:
    return {name: Stamp(column, **options) for column, name in zip(range(num), "abcdefgh", strict=False)}


def nothing(x: Any) -> Any:
    """Draws, as an augmentation must, and makes nothing of it."""
    random.random()
    return x


def images(num: int) -> Tensor:
    return torch.full((num, 1, 2, 9), -1.0)


def assert_factorized(pair: ViewPair, kinds: Tensor, x: Tensor) -> None:
    """Column k, -1 plus a draw, agrees just where the pair's kind shares augmentation k; the rest is x's."""
    view0, view1, kind = pair
    num = kinds.shape[1]
    assert torch.equal(view0[..., 0, 0, :num] != view1[..., 0, 0, :num], kinds[kind])
    for view in (view0, view1):
        assert ((view > -1) & (view < 0))[..., :num].all()  # once, not twice
        assert torch.equal(view[..., num:], x[..., num:])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


PAIRS = ["single", "all", "mixed", "all_but_one", 0.4, [[True, True, False], [False, False, True]]]


@pytest.mark.parametrize("source", DRAWS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_batch_differs_in_its_kinds_alone(source, pairs):
    x = images(8)
    views = FactorizedViews(stamps(source=source), batched=True, pairs=pairs)
    seen = []
    for _ in range(3):
        pair = views(x)
        assert_factorized(pair, views.kinds, x)
        drawn = pair.view0[:, 0, 0, :3]
        assert len(drawn.unique()) == 24
        seen.append(drawn[0])
    assert len(torch.stack(seen).unique()) == 9  # each call draws anew
    assert (x == -1).all()


@pytest.mark.parametrize("source", DRAWS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_item_differs_in_its_kind_alone(source, pairs):
    x = images(1)[0]
    views = FactorizedViews(stamps(source=source), pairs=pairs)
    pairs_made = [views(x) for _ in range(28)]
    for pair in pairs_made:
        assert type(pair.kind) is int
        assert_factorized(pair, views.kinds, x)
    assert {pair.kind for pair in pairs_made} == set(range(len(views.kinds)))
    assert len({float(pair.view0[0, 0, 0]) for pair in pairs_made}) == 28
    assert (x == -1).all()


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    num=st.integers(1, 5),
    num_samples=st.integers(1, 17),
    seed=st.integers(0, 2**32),
)
def test_any_table_and_weights_are_kept_to(data, num, num_samples, seed):
    row = st.lists(st.booleans(), min_size=num, max_size=num).filter(any)
    table = data.draw(st.lists(row, min_size=1, max_size=6, unique_by=tuple), label="table")
    weight = st.one_of(st.integers(0, 5), st.floats(0, 1e6))
    weights = data.draw(st.lists(weight, min_size=len(table), max_size=len(table)).filter(any), label="weights")
    x = images(num_samples)
    views = FactorizedViews(
        stamps(num),
        pairs=table,
        weights=weights,
        batched=True,
        generator=torch.Generator().manual_seed(seed),
    )
    pair = views(x)
    assert_factorized(pair, torch.tensor(table), x)
    assert pair.kind.shape == (num_samples,)
    assert pair.kind.dtype == torch.int64
    counts = torch.bincount(pair.kind, minlength=len(table)).tolist()
    for count, weight in zip(counts, weights, strict=True):
        expected = Fraction(weight) / sum(map(Fraction, weights)) * num_samples
        nearest = round(expected) if abs(expected - round(expected)) < 1e-9 else expected  # but for rounding
        assert math.floor(nearest) <= count <= math.ceil(nearest)


@settings(deadline=None)
@given(num=st.integers(1, 6), num_samples=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_even_weights_give_counts_one_apart_at_most(num, num_samples, seed):
    generator = torch.Generator().manual_seed(seed)
    kind = FactorizedViews(stamps(num), pairs="single", batched=True, generator=generator)(images(num_samples)).kind
    counts = torch.bincount(kind, minlength=num)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("drawn", [0, 2**32 - 1])
def test_shares_that_go_up_are_kept_to_whatever_rounding_does(monkeypatch, drawn):
    """The sum of eight tenths, say, is less than 0.8 in float64."""
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(drawn))
    for num in range(1, 40):
        weights = torch.full((num,), 1 / num, dtype=torch.float64)
        for times in (1, 3, 1000):
            kind = mast_ops.views._shares.proportioned(weights, times * num, None)
            assert torch.bincount(kind, minlength=num).tolist() == [times] * num


def test_remainder_and_order_of_a_batch_are_random():
    views = FactorizedViews(stamps(), pairs="single", batched=True)
    kinds = [views(images(4)).kind for _ in range(60)]
    assert {int(kind.bincount().argmax()) for kind in kinds} == {0, 1, 2}
    assert {int(kind[0]) for kind in kinds} == {0, 1, 2}


@pytest.mark.parametrize("batched", [True, False])
def test_shares_are_exact_on_average(batched):
    weights = [0.25, 0.1, 0.65]
    views = FactorizedViews(stamps(2), pairs="mixed", weights=weights, batched=batched)
    kinds = [torch.as_tensor(views(images(5) if batched else images(1)[0]).kind) for _ in range(600)]
    # A count of one batch, or one round of the deck, has a standard deviation of at most 1/2; four of the sum's.
    counts = torch.bincount(torch.stack(kinds).flatten(), minlength=3)
    rounds = 600 if batched else 200
    assert (counts / counts.sum()).tolist() == pytest.approx(weights, abs=4 * 0.5 * rounds**0.5 / int(counts.sum()))


def test_mixed_is_half_and_half_to_the_pair():
    views = FactorizedViews(stamps(3), batched=True)
    assert all(int((views(images(10)).kind == 3).sum()) == 5 for _ in range(20))


@pytest.mark.parametrize(("pairs", "num_kinds"), [("single", 4), ("all_but_one", 4), (0.5, 15)])
def test_deck_of_even_weights_holds_each_kind_once(pairs, num_kinds):
    views = FactorizedViews(stamps(4), pairs=pairs)
    dealt = [views(images(1)[0]).kind for _ in range(12 * num_kinds)]
    decks = list(zip(*[iter(dealt)] * num_kinds, strict=True))
    assert all(sorted(deck) == list(range(num_kinds)) for deck in decks)
    assert len(set(decks)) > 5


def test_deck_of_mixed_is_half_of_all():
    views = FactorizedViews(stamps(3))
    dealt = [views(images(1)[0]).kind for _ in range(80)]
    decks = list(zip(*[iter(dealt)] * 4, strict=True))
    assert all(deck.count(3) == 2 for deck in decks)
    assert all(max(map(deck.count, range(3))) == 1 for deck in decks)


def test_what_a_head_reads():
    views = FactorizedViews(dict(zip(NAMES, stamps().values(), strict=True)))
    assert views.augmentations == NAMES
    assert views.kind_names == (*NAMES, "all")
    assert torch.equal(views.kinds, torch.cat((torch.eye(3), torch.ones(1, 3))).bool())
    assert views.weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert FactorizedViews(stamps(), pairs="all_but_one").kind_names == ("b+c", "a+c", "a+b")


def test_a_compiled_step_runs_the_views_outside_of_its_graphs():
    """Inside, each seed would be a constant, and every call compiled anew."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph.code)
        return graph

    views = FactorizedViews({"shift": lambda x: x + torch.rand(len(x), 1, 1, 1)}, batched=True)
    x = torch.rand(8, 3, 4, 4)
    step = torch.compile(lambda x: [2 * view for view in views(x)[:2]], backend=backend)
    for seed in range(2):
        torch.manual_seed(seed)
        got = step(x)
        torch.manual_seed(seed)
        assert all(map(torch.equal, got, [2 * view for view in views(x)[:2]]))
    assert len(graphs) == 1


def test_printed_it_says_its_kinds_and_their_shares():
    wanted = "FactorizedViews(a, b, c; kinds: a 0.167, b 0.167, c 0.167, all 0.5; 2 views, batched=False)"
    assert repr(FactorizedViews(stamps())) == wanted
    more = FactorizedViews(stamps(), pairs="all", num_local_views=4, local_augmentations={"a": stamps()["a"]})
    assert repr(more) == "FactorizedViews(a, b, c; kinds: all 1; 2+4 views, batched=False)"
    assert len(repr(FactorizedViews({f"n{i}": stamps()["a"] for i in range(10)}, pairs=0.5))) < 400


@pytest.mark.parametrize("scale", [1, 1e-300, 1e308])
def test_weights_are_divided_by_their_sum(scale):
    for weights in ([scale, 0, scale], torch.tensor([1.0, 0, 1.0]), np.array([2, 0, 2])):
        views = FactorizedViews(stamps(), pairs="single", weights=weights)
        assert views.weights.dtype == torch.float64
        assert views.weights.tolist() == [0.5, 0, 0.5]


def test_kind_of_weight_nought_is_never_drawn():
    views = FactorizedViews(stamps(3), pairs="single", weights=[1, 0, 1])
    assert {views(images(1)[0]).kind for _ in range(40)} == {0, 2}


@pytest.mark.parametrize("pairs", PAIRS)
def test_no_more_samples_than_two_independent_views(pairs):
    aug = stamps()
    trials = 3 * 8 * 2  # eight, twice each

    def handled(call) -> tuple[int, Any]:
        before = sum(a.samples for a in aug.values())
        made = call()
        return sum(a.samples for a in aug.values()) - before, made

    views = FactorizedViews(aug, pairs=pairs, batched=True)
    beside = 2 * 8  # once more each, beside another image; before the first of the three all images are alike
    for extra in ((trials + beside) * 4, 0):  # of four samples
        num, (*_, kind) = handled(lambda: views(images(100)))
        differ = views.kinds[kind].cumsum(1) > 0  # before that, one stands for both
        assert num == 3 * 100 + int(differ.sum()) + extra
    views = FactorizedViews(aug, pairs=pairs)
    num, made = handled(lambda: [views(images(1)[0]) for _ in range(4)])
    assert num == 4 * 3 + sum(int((views.kinds[kind].cumsum(0) > 0).sum()) for *_, kind in made) + trials


@pytest.mark.parametrize("num_samples", [1, 2])
def test_batch_smaller_than_the_kinds(num_samples):
    views = FactorizedViews(stamps(5), batched=True)
    seen = set()
    for _ in range(60):
        pair = views(images(num_samples))
        assert_factorized(pair, views.kinds, images(num_samples))
        seen.update(pair.kind.tolist())
    assert seen == set(range(6))


# --- augmentations with habits of their own


class OneBuffer:
    """Hands out the same memory at every call, as a compiled augmentation under CUDA graphs does."""

    def __call__(self, x: Tensor) -> Tensor:
        if not hasattr(self, "memory") or self.memory.shape != x.shape:
            self.memory = torch.empty_like(x)
        return torch.add(x, torch.rand(len(x), 1, 1, 1), out=self.memory)


@pytest.mark.parametrize(
    "noise",
    [
        OneBuffer(),
        lambda x: torch.rand(len(x), 1, 1, 1).expand(x.shape),
        lambda x: x + torch.rand(len(x), 1, 1, 1, dtype=torch.float64),
        lambda x: x[..., :4] + torch.rand(len(x), 1, 1, 1),
        lambda x: (x + torch.rand(len(x), 1, 1, 1)).to(memory_format=torch.channels_last),
    ],
    ids=["one buffer", "expanded", "other dtype", "other size", "channels last"],
)
def test_results_that_cannot_be_overwritten_blindly(noise):
    def overwrite(x):
        x[..., 0] = torch.rand(len(x), 1, 1)
        return x

    views = FactorizedViews({"noise": noise, "overwrite": overwrite}, pairs="single", batched=True)
    view0, view1, kind = views(images(9))
    assert torch.equal((view0 == view1)[:, 0, 0, 1], kind != 0)
    assert torch.equal((view0 == view1)[:, 0, 0, 0], kind != 1)


@pytest.mark.filterwarnings("ignore:.*two equal views")
@pytest.mark.parametrize("batched", [True, False])
def test_views_and_input_share_no_memory(batched):
    x = images(4) if batched else images(1)[0]
    view0, view1, _ = FactorizedViews({"nothing": nothing}, batched=batched, finalize=lambda x: x)(x)
    assert len({t.untyped_storage().data_ptr() for t in (x, view0, view1)}) == 3


@pytest.mark.parametrize("batched", [True, False])
def test_finalize_comes_last_on_both_views(batched):
    def finalize(x):
        assert (x[..., :3] > -1).all()
        return x.mul_(2)

    x = images(6) if batched else images(1)[0]
    view0, view1, kind = FactorizedViews(stamps(), pairs="single", batched=batched, finalize=finalize)(x)
    assert_factorized(ViewPair(view0 / 2, view1 / 2, kind), torch.eye(3).bool(), x)


def test_numpy_image():
    def stamp(x):
        x[0, 0] = np.random.rand()
        return x

    x = np.zeros((4, 4, 3))
    views = FactorizedViews({"stamp": stamp, "noise": lambda x: x + np.random.rand() * (x == 0)}, pairs="single")
    for _ in range(6):
        view0, view1, kind = views(x)
        assert (view0[0, 0] == view1[0, 0]).all() == (kind != 0)
        assert (view0[1:] == view1[1:]).all() == (kind != 1)
    assert (x == 0).all()


def test_pil_image():
    def brighter(image):
        by = random.randint(1, 100)
        return image.point(lambda value: value + by)

    image = pytest.importorskip("PIL.Image").new("L", (8, 8), 100)
    views = FactorizedViews(
        {
            "bright": brighter,
            "size": lambda im: im.resize((random.randint(2, 1000), 4)),
        },
        pairs="single",
    )
    for _ in range(6):
        view0, view1, kind = views(image)
        assert (view0.getpixel((0, 0)) == view1.getpixel((0, 0))) == (kind != 0)
        assert (view0.size == view1.size) == (kind != 1)
    assert image.getcolors() == [(64, 100)]


class OwnGenerator:
    """Ignores the global seeds as albumentations >= 2 do, and like them has set_random_seed."""

    def __init__(self, column: int):
        self.column, self.random = column, np.random.default_rng()

    def set_random_seed(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, x: Tensor) -> Tensor:
        draws = self.random.random(len(x) if x.dim() == 4 else 1)
        x[..., self.column] += torch.from_numpy(draws).float().view(-1, *[1] * (x.dim() - 2))
        return x


class ByName(OwnGenerator):
    __module__ = "albumentations.augmentations"

    def __call__(self, *, image: Tensor) -> dict[str, Tensor]:
        return {"image": super().__call__(image)}


class OwnByName(ByName):
    """A user's subclass of an albumentation."""


@pytest.mark.parametrize("own", [OwnGenerator, ByName, OwnByName])
@pytest.mark.parametrize("batched", [True, False])
def test_set_random_seed_and_calls_by_name(own, batched):
    x = images(6) if batched else images(1)[0]
    views = FactorizedViews({"a": own(0), "b": Stamp(1), "c": own(2)}, batched=batched)
    for _ in range(4):
        assert_factorized(views(x), views.kinds, x)


class HiddenCoin:
    """Flips on a coin that no seed reaches."""

    def __init__(self):
        self.random = random.Random(5)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flip(-1) if self.random.random() < 0.5 else x


class HiddenNoise:
    def __init__(self):
        self.generator = torch.Generator()

    def __call__(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, generator=self.generator)


@pytest.mark.parametrize("hidden", [HiddenCoin, HiddenNoise])
@pytest.mark.parametrize("batched", [True, False])
def test_callable_that_does_not_replay_is_named(hidden, batched):
    x = torch.rand(4, 1, 2, 9) if batched else torch.rand(1, 2, 9)
    views = FactorizedViews({"stamp": Stamp(0), "hidden one": hidden()}, batched=batched)
    for _ in range(2):  # and it is not let through the second time
        with pytest.raises(ValueError, match=r"'hidden one'.*two different results under one seed.*set_random_seed"):
            views(x)


def test_image_that_does_not_replay_is_named():
    hidden = np.random.default_rng(0)
    views = FactorizedViews({"hidden": lambda x: x + hidden.random()})
    with pytest.raises(ValueError, match=r"'hidden'.*two different results under one seed"):
        views(np.zeros((2, 2)))


def test_random_finalize_is_refused():
    views = FactorizedViews(stamps(), finalize=lambda x: x + torch.rand(()))
    with pytest.raises(ValueError, match="finalize: got two different results for one image"):
        views(images(1)[0])


def test_nan_replays():
    view0, view1, _ = FactorizedViews({"nan": lambda x: x * torch.nan * torch.rand(())}, batched=True)(images(3))
    assert view0.isnan().all()
    assert view1.isnan().all()


def never(x: Any) -> Any:
    return x


def rarely(x: Tensor) -> Tensor:
    """Once in fifty times."""
    return x.flip(-1) if random.random() < 0.02 else x


@pytest.mark.parametrize("image", [torch.rand(1, 2, 9), torch.zeros(1, 2, 9)], ids=["random", "black"])
@pytest.mark.parametrize("call", [never, torch.nn.Identity(), lambda x: (x - 0.5) / 0.2])
def test_augmentation_that_is_not_random_is_refused(call, image):
    views = FactorizedViews({"stamp": Stamp(0), "same": call}, batched=True)
    for _ in range(2):  # and it is not let through the second time
        with pytest.raises(ValueError, match=r"'same'.*one result under all seeds.*finalize="):
            views(image[None].repeat(3, 1, 1, 1))
    views = FactorizedViews({"stamp": Stamp(0), "same": call})
    for _ in range(7):
        views(image)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'same'.*one result under all seeds.*finalize="):
            views(image)


@pytest.mark.parametrize("batched", [True, False])
def test_augmentation_that_seldom_acts_or_finds_nothing_to_do_is_let_through_with_a_word(batched, recwarn):
    x = torch.zeros(4, 3, 8, 8) if batched else torch.zeros(3, 8, 8)  # black, and the same however it is turned
    views = FactorizedViews({"rarely": rarely, "flip": lambda x: x.flip(random.choice([-1, -2]))}, batched=batched)
    for _ in range(20):
        views(x)
    assert sorted(str(warning.message).partition(": got two equal views")[0] for warning in recwarn) == [
        "augmentations['flip']",
        "augmentations['rarely']",
    ]
    assert {warning.filename for warning in recwarn} == {__file__}


@pytest.mark.parametrize("batched", [True, False])
def test_augmentation_that_acts_in_a_tenth_of_its_calls_is_not_warned_of(batched, recwarn):
    """As BYOL's and VICReg's solarization: a word in each run of theirs would be of one pair in 700."""
    views = FactorizedViews(coins(flip=0.5, solarize=0.1), pairs="single", batched=batched)
    equal = 0
    for _ in range(16 if batched else 2000):
        view0, view1, _ = views(images(500) if batched else images(1)[0])
        equal += int((view0 == view1).flatten(1).all(1).sum()) if batched else torch.equal(view0, view1)
    assert equal > 0
    assert not recwarn


class Coin:
    """Adds one to a column with a probability, by a draw for each sample."""

    def __init__(self, column: int, p: float):
        self.column, self.p = column, p

    def __call__(self, x: Tensor) -> Tensor:
        acts = (torch.rand(len(x) if x.dim() == 4 else 1) < self.p).float()
        x[..., self.column] += acts[:, None, None] if x.dim() == 4 else acts
        return x


def coins(**p: float) -> dict[str, Coin]:
    return {name: Coin(column, probability) for column, (name, probability) in enumerate(p.items())}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("pairs", ["mixed", "all_but_one"])
def test_views_of_a_pair_differ_though_its_augmentations_may_not_act(batched, pairs, recwarn):
    """Half of the pairs of a flip, and two thirds of those of a rare grey, were two equal views."""
    views = FactorizedViews(coins(flip=0.5, grey=0.2, blur=0.7), pairs=pairs, batched=batched)
    for _ in range(4 if batched else 100):
        view0, view1, kind = views(images(50) if batched else images(1)[0])
        differs = (view0 != view1)[..., 0, 0, :3]
        assert differs.any(-1).all()
        assert not (differs & ~views.kinds[kind]).any()
    assert not recwarn


@pytest.mark.parametrize("batched", [True, False])
def test_redrawn_pair_follows_the_law_of_two_draws_that_differ(batched):
    """Either view is grey as often as the other, whatever the probability; pairs of several are two plain draws."""
    views = FactorizedViews(coins(flip=0.5, grey=0.2), weights=[0, 1, 1], batched=batched)
    grey: dict[int, list[tuple[bool, bool]]] = {1: [], 2: []}
    for _ in range(2 if batched else 1200):
        view0, view1, kind = views(images(600) if batched else images(1)[0])
        both = torch.stack((view0, view1), -1)[..., 0, 0, 1, :] == 0
        for s, pair in zip(torch.as_tensor(kind).reshape(-1).tolist(), both.reshape(-1, 2).tolist(), strict=True):
            grey[s].append(tuple(pair))
    assert all(a != b for a, b in grey[1])
    assert sum(a for a, _ in grey[1]) / len(grey[1]) == pytest.approx(0.5, abs=0.08)
    # In pairs of both, where the flips are equal greys must differ: 0.32 or, given equal flips, 1.
    apart = [a != b for a, b in grey[2]]
    assert sum(apart) / len(apart) == pytest.approx(0.5 * 0.32 + 0.5, abs=0.08)


def test_a_round_of_redraws_is_one_call_for_all_views():
    """A call has its own cost; how many views are equal says how many draws are enough."""
    rows = []

    def rare(x):
        rows.append(len(x))
        return x + (torch.rand(len(x), 1, 1, 1) < 0.2)

    views = FactorizedViews({"rare": rare}, pairs="single", batched=True)
    x = torch.rand(64, 1, 2, 2)
    views(x)
    calls = []
    for _ in range(50):
        rows.clear()
        view0, view1, _ = views(x)
        assert not (view0 == view1).flatten(1).all(1).any()
        calls.append(len(rows))
    assert sum(calls) / len(calls) < 5  # two of the views themselves, and two rounds or three


def test_redraws_are_repeatable_and_take_nothing_from_the_generator():
    x = images(20)
    made, states = [], []
    for p in (0.2, 0.2, 0.6):
        generator = torch.Generator().manual_seed(3)
        made.append(FactorizedViews({"a": Coin(0, p), "b": Stamp(1)}, batched=True, generator=generator)(x))
        states.append(generator.get_state())
    assert all(torch.equal(a, b) for a, b in zip(made[0], made[1], strict=True))
    assert torch.equal(states[0], states[2])


@pytest.mark.filterwarnings("ignore:.*two equal views")
def test_random_crop_of_an_image_of_its_size_is_let_through():
    """torchvision's draws nothing there; images of other sizes follow."""

    def crop(x: Tensor) -> Tensor:
        start = random.randrange(x.shape[-1] - 8) if x.shape[-1] > 8 else 0
        return x[..., start : start + 8]

    views = FactorizedViews({"crop": crop})
    for width in (8, 8, 12, *[8] * 20):
        views(torch.rand(1, 8, width))


@pytest.mark.parametrize("batched", [True, False])
def test_unseen_draws_without_effect_are_warned_of_once(batched):
    """A generator of its own: that it is not random is likely, but not certain."""

    class Still(OwnGenerator):
        def __call__(self, x: Tensor) -> Tensor:
            return x

    x = images(6) if batched else images(1)[0]
    views = FactorizedViews({"still": Still(0)}, batched=batched)
    with pytest.warns(UserWarning, match=r"'still'.*one result under all seeds.*finalize=") as caught:
        [views(x) for _ in range(20)]
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("num_samples", [1, 6])
def test_one_draw_for_a_batch_is_refused(num_samples):
    views = FactorizedViews({"own": Stamp(0), "one": Stamp(1, per_sample=False)}, batched=True)
    with pytest.raises(ValueError, match=r"'one'.*one draw for all samples.*kornia.*batched=False.*each image"):
        views(images(num_samples))


@pytest.mark.parametrize(
    "call",
    [
        Stamp(0),
        lambda x: torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x),
        lambda x: torch.where(torch.rand(len(x), 1, 1, 1) < 0.3, x.flip(-1), x),
        nothing,
    ],
    ids=["each its draw", "flip", "seldom", "nothing seen"],
)
@pytest.mark.parametrize("num_samples", [1, 2, 9])
def test_a_draw_for_each_sample_is_not_warned_of(call, num_samples, recwarn):
    views = FactorizedViews({"call": call}, batched=True)
    for _ in range(5):
        views(torch.rand(num_samples, 1, 2, 9))
    assert not [warning for warning in recwarn if re.search("one draw|beside other", str(warning.message))]


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x[torch.randperm(len(x))] + torch.rand(len(x), 1, 1, 1),
        lambda x: torch.lerp(x, x.flip(0), torch.rand(len(x), 1, 1, 1)),
    ],
    ids=["shuffle", "mixup"],
)
def test_what_mixes_the_images_of_a_batch_is_warned_of_once(mix):
    """The views of a pair would be of several images, and nothing else would show it."""
    views = FactorizedViews({"shift": lambda x: x + torch.rand(len(x), 1, 1, 1), "mix": mix}, batched=True)
    with pytest.warns(UserWarning, match=r"'mix'.*beside other images.*stay apart.*after the views$") as caught:
        [views(images(6)) for _ in range(5)]
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("image", "call"),
    [
        (images(1)[0], lambda x: (x + torch.rand(()))[None]),
        (np.zeros((4, 4, 3)), lambda x: (x + np.random.rand())[None]),
    ],
)
def test_batch_axis_given_to_one_image_is_refused(image, call):
    views = FactorizedViews({"axis": call})
    with pytest.raises(ValueError, match=r"'axis'.*got one image and gave shape \(1, .*batched=True"):
        views(image)


# --- random states


def all_states():
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


def greedy(x: Tensor) -> Tensor:
    np.random.rand(50), random.random()
    return x + torch.rand(100).sum() + torch.rand(len(x), *[1] * (x.dim() - 1))


def fails(x: Tensor) -> Tensor:
    greedy(x)
    raise RuntimeError("broken")


@pytest.mark.parametrize("batched", [True, False])
def test_only_the_given_generator_advances(batched):
    x = images(4) if batched else images(1)[0]
    generator = torch.Generator().manual_seed(1)
    before, given_before = all_states(), generator.get_state()
    FactorizedViews({"greedy": greedy}, batched=batched, generator=generator)(x)
    with pytest.raises(RuntimeError, match="broken"):
        FactorizedViews({"fails": fails}, batched=batched, generator=generator)(x)
    assert all_states() == before
    assert not torch.equal(generator.get_state(), given_before)


@pytest.mark.filterwarnings("ignore:.*two equal views")
@pytest.mark.parametrize("batched", [True, False])
def test_global_generator_advances_by_decisions_and_seeds_alone(batched):
    x = images(4) if batched else images(1)[0]
    states = []
    for aug in (greedy, nothing):
        tried = FactorizedViews({"a": aug, "b": aug}, batched=batched)
        torch.manual_seed(7)
        for _ in range(2):  # the first use with its trials, and the next
            tried(x)
            states.append(all_states())
    assert states[:2] == states[2:]
    assert states[0][0] != states[1][0]
    assert states[0][1:] == states[1][1:]


@pytest.mark.filterwarnings("ignore:.*two equal views")
def test_libraries_do_not_draw_the_same_bits():
    seen = []

    def listen(x):
        ours = torch.empty(8, dtype=torch.int32).random_().tolist()
        pythons = [random.getrandbits(32) & 0x7FFFFFFF for _ in range(8)]
        numpys = (np.random.randint(0, 2**32, 8, dtype=np.uint32) & 0x7FFFFFFF).tolist()
        seen.append((ours, pythons, numpys))
        return x

    FactorizedViews({"listen": listen})(images(1)[0])
    for three in seen:
        assert all(not set(a) & set(b) for a, b in itertools.combinations(three, 2))


def test_without_numpy(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy")
    views = FactorizedViews(stamps(), batched=True)
    assert_factorized(views(images(6)), views.kinds, images(6))


def sequence(views: FactorizedViews, x: Tensor) -> Tensor:
    pairs = [views(x) for _ in range(4)]
    return torch.stack([torch.cat((p.view0.flatten(), p.view1.flatten())) for p in pairs])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given_generator", [True, False])
def test_seedable(batched, given_generator):
    x = images(4) if batched else images(1)[0]

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed) if given_generator else None
        if generator is None:
            torch.manual_seed(seed)
        return sequence(FactorizedViews(stamps(), batched=batched, generator=generator), x)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_pickled_views_go_on_alike():
    views = FactorizedViews(stamps(), generator=torch.Generator().manual_seed(1))
    sequence(views, images(1)[0])
    copy = pickle.loads(pickle.dumps(views))
    assert torch.equal(sequence(copy, images(1)[0]), sequence(views, images(1)[0]))


@pytest.mark.filterwarnings("ignore:.*two equal views")
def test_default_device_is_left_alone():
    with torch.device("meta"):  # stands for a device that the CPU's generator cannot draw on
        pair = FactorizedViews({"a": nothing, "b": nothing}, batched=True)(images_on_cpu(4))
    assert pair.kind.device.type == pair.view1.device.type == "cpu"


def images_on_cpu(num: int) -> Tensor:
    return torch.zeros(num, 1, 2, 9, device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("batched", [True, False])
def test_cuda_draws_replay_and_its_state_is_kept(batched):
    def stamp(column):
        def write(x):
            x[..., column] += torch.rand((len(x), 1, 1) if batched else (1,), device=x.device)
            return x

        return write

    x = (images(7) if batched else images(1)[0]).cuda()
    views = FactorizedViews({"a": stamp(0), "b": stamp(1), "c": stamp(2)}, batched=batched)
    before = torch.cuda.get_rng_state(x.device)
    for _ in range(5):
        view0, view1, kind = views(x)
        assert view0.is_cuda
        if batched:
            assert kind.device == x.device
        assert_factorized(ViewPair(view0.cpu(), view1.cpu(), torch.as_tensor(kind).cpu()), views.kinds, x.cpu())
    assert torch.equal(torch.cuda.get_rng_state(x.device), before)


class Elsewhere(Tensor):
    """Says that it is on a device which this machine may not have."""

    device = torch.device("mps", 0)


def test_draws_of_another_device_replay_and_its_state_is_kept(monkeypatch):
    theirs = torch.Generator().manual_seed(5)
    monkeypatch.setattr(torch.mps, "manual_seed", theirs.manual_seed)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: theirs.get_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: theirs.set_state(state))

    def stamp(column):
        def write(x):
            x[..., column] += torch.rand(1, generator=theirs)
            return x

        return write

    x = images(1)[0].as_subclass(Elsewhere)
    views = FactorizedViews({"a": stamp(0), "b": stamp(1)})
    before = theirs.get_state()
    for _ in range(6):
        view0, view1, kind = views(x)
        pair = ViewPair(view0.as_subclass(Tensor), view1.as_subclass(Tensor), kind)
        assert_factorized(pair, views.kinds, images(1)[0])
    assert torch.equal(theirs.get_state(), before)


@pytest.mark.parametrize("batched", [True, False])
def test_device_that_cannot_be_seeded_is_refused(batched):
    x = torch.zeros(*[2] * (4 if batched else 3), device="meta")
    with pytest.raises(ValueError, match="x: got a tensor on meta, wanted one on a device whose generator"):
        FactorizedViews(stamps(), batched=batched)(x)


# --- threads


class Slow(Stamp):
    """Between its seed and its draw another thread has time to draw as well."""

    def __call__(self, x: Tensor) -> Tensor:
        time.sleep(0.001)
        return super().__call__(x)


@pytest.mark.parametrize("batched", [True, False])
def test_threads_do_not_spoil_each_others_draws(batched):
    x = images(6) if batched else images(1)[0]
    shared, other = (FactorizedViews({"a": Slow(0), "b": Slow(1)}, batched=batched) for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        pairs = list(pool.map(lambda views: views(x), [shared, other] * 8))
    for pair in pairs:
        assert_factorized(pair, shared.kinds, x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_a_thread_makes_views_does_not_stop_the_child():
    started, forked = threading.Event(), threading.Event()

    def wait(x):
        started.set()
        forked.wait(60)
        return x + torch.rand(())

    def views_of_a_child():
        torch.set_num_threads(1)  # as a data loader's worker does: threads of OpenMP do not live on in a fork
        FactorizedViews(stamps())(images(1)[0])

    thread = threading.Thread(target=FactorizedViews({"wait": wait}), args=(images(1)[0],))
    thread.start()
    started.wait(60)
    child = multiprocessing.get_context("fork").Process(target=views_of_a_child)
    child.start()
    forked.set()
    thread.join()
    child.join(60)
    child.kill()
    assert child.exitcode == 0


# --- data loaders


class Items(Dataset[ViewPair]):
    def __init__(self, views: FactorizedViews):
        self.views = views

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> ViewPair:
        return self.views(torch.full((1, 2, 9), -1.0))


def epochs(context: str, num: int, seed: int, given: int | None, persistent: bool = False) -> list[ViewPair]:
    """The batches of several epochs; each batch of six is one worker's deck. The parent's deck is begun."""
    torch.manual_seed(seed)
    generator = None if given is None else torch.Generator().manual_seed(given)
    views = FactorizedViews(stamps(6), pairs="single", generator=generator)
    views(images(1)[0])
    loader = DataLoader(
        Items(views),
        batch_size=6,
        num_workers=2,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    return [batch for _ in range(num) for batch in loader]


def assert_own_streams(batches: list[ViewPair]) -> None:
    orders = [tuple(batch.kind.tolist()) for batch in batches]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(orders)) == len(orders)
    drawn = torch.cat([batch.view0[:, 0, 0, :6].flatten() for batch in batches])
    assert len(drawn.unique()) == len(drawn)
    for batch in batches:
        assert isinstance(batch, ViewPair)
        assert batch.kind.dtype == torch.int64
        assert_factorized(batch, torch.eye(6).bool(), images(6))


def agreeing(first: list[ViewPair], second: list[ViewPair]) -> list[bool]:
    return [torch.equal(a.view1, b.view1) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("given", [None, 9])
def test_forked_workers_have_streams_of_their_own(given):
    batches = epochs("fork", 2, 0, given)
    assert_own_streams(batches)
    assert all(agreeing(batches, epochs("fork", 2, 0, given)))
    assert not any(agreeing(batches, epochs("fork", 2, 1, given)))
    assert given is None or not any(agreeing(batches, epochs("fork", 2, 0, 10)))


def test_persistent_workers_go_on():
    assert_own_streams(epochs("fork", 3, 0, 9, persistent=True))


def test_spawned_workers_have_streams_of_their_own():
    assert_own_streams(epochs("spawn", 2, 0, 9, persistent=True))


def test_default_collate_makes_a_batch():
    views = FactorizedViews(stamps())
    batch = default_collate([views(images(1)[0]) for _ in range(5)])
    assert isinstance(batch, ViewPair)
    assert batch.view0.shape == batch.view1.shape == (5, 1, 2, 9)
    assert batch.kind.dtype == torch.int64
    assert batch.kind.shape == (5,)


# --- refusals


@pytest.mark.parametrize(
    ("args", "options", "error", "match"),
    [
        ([], {}, TypeError, "augmentations: got list"),
        ({}, {}, ValueError, "augmentations: got no names"),
        ({1: nothing}, {}, TypeError, "augmentations: got 1"),
        ({"": nothing}, {}, ValueError, "augmentations: got ''"),
        ({"crop": 3}, {}, TypeError, r"augmentations\['crop'\]: got int, wanted a callable"),
        ({"crop": None}, {}, TypeError, r"augmentations\['crop'\]: got NoneType, wanted a callable"),
        ({"finalize": None}, {}, TypeError, r"augmentations\['finalize'\]: got NoneType, wanted a callable"),
        ({"crop": nothing}, {"pairs": "both"}, ValueError, "pairs: got 'both', wanted one of 'single'"),
        ({"crop": nothing}, {"pairs": [[True, False]]}, ValueError, r"pairs: got shape \(1, 2\), wanted \(S, 1\)"),
        ({"a": nothing, "all": nothing}, {}, ValueError, "augmentations: got names that make 'all' the name of two"),
        ({"crop": nothing}, {"weights": [1, 1]}, ValueError, r"weights: got shape \(2,\), wanted 1 finite"),
        ({"crop": nothing}, {"weights": 1}, ValueError, r"weights: got shape \(\), wanted 1 finite"),
        ({"crop": nothing}, {"weights": [-1.0]}, ValueError, r"weights: got \[-1.0\], wanted 1 finite"),
        ({"crop": nothing}, {"weights": [0]}, ValueError, r"weights: got \[0.0\], wanted 1 finite"),
        ({"crop": nothing}, {"weights": [float("inf")]}, ValueError, r"weights: got \[inf\]"),
        ({"crop": nothing}, {"weights": [float("nan")]}, ValueError, r"weights: got \[nan\]"),
        ({"crop": nothing}, {"weights": "a"}, TypeError, "weights: got 'a', wanted 1 finite"),
        ({"crop": nothing}, {"pairs": 0.5, "weights": [1]}, ValueError, "weights: got some beside the probability 0.5"),
        ({"crop": nothing}, {"finalize": 1}, TypeError, "finalize: got int, wanted a callable"),
        ({"crop": nothing}, {"generator": 1}, TypeError, "generator: got int"),
    ],
)
def test_bad_arguments(args, options, error, match):
    with pytest.raises(error, match=match):
        FactorizedViews(args, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_generator_is_refused():
    with pytest.raises(ValueError, match="generator: got one on cuda"):
        FactorizedViews({"crop": nothing}, generator=torch.Generator("cuda"))


@pytest.mark.parametrize(
    ("batched", "x", "error", "match"),
    [
        (True, [torch.zeros(1, 2, 2)], TypeError, "x: got list, wanted a non-empty tensor"),
        (True, np.zeros((2, 1, 2, 2)), TypeError, "x: got ndarray, wanted a non-empty tensor"),
        (True, torch.zeros(1, 2, 2), ValueError, r"x: got shape \(1, 2, 2\), wanted a non-empty.*batched=False"),
        (True, torch.zeros(0, 1, 2, 2), ValueError, r"x: got shape \(0, 1, 2, 2\), wanted a non-empty"),
        (False, [1.0], TypeError, "x: got list, wanted one non-empty image"),
        (False, None, TypeError, "x: got NoneType, wanted one non-empty image"),
        (False, {"image": 1}, TypeError, "x: got dict, wanted one non-empty image"),
        (False, torch.zeros(2, 1, 2, 2), ValueError, r"x: got shape \(2, 1, 2, 2\).*batched=True"),
        (False, np.zeros((2, 2, 2, 1)), ValueError, r"x: got shape \(2, 2, 2, 1\).*batched=True"),
        (False, torch.zeros(1, 0, 2), ValueError, r"x: got shape \(1, 0, 2\), wanted one non-empty"),
    ],
)
def test_bad_input_is_refused_before_any_work(batched, x, error, match):
    called = []
    views = FactorizedViews({"crop": called.append}, batched=batched)
    before = all_states()
    with pytest.raises(error, match=match):
        views(x)
    assert all_states() == before
    assert not called


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("aug", "error", "match"),
    [
        (lambda x: x[1:], ValueError, r"'odd'.*got 4 rows and gave shape \(3, 1, 2, 9\)"),
        (lambda x: x.repeat(2, 1, 1, 1), ValueError, r"'odd'.*got 4 rows and gave shape \(8,"),
        (lambda x: x.sum(), ValueError, r"'odd'.*got 4 rows and gave shape \(\)"),
        (lambda x: noisy(x)[..., : torch.randint(2, 9, ())], ValueError, "'odd'.*samples of .* under two seeds"),
        (
            lambda x: noisy(x).double() if torch.rand(()) < 0.5 else noisy(x),
            ValueError,
            "'odd'.*float.*under two seeds",
        ),
        (lambda x: x.numpy(), TypeError, "'odd'.*got ndarray as its result, wanted a tensor"),
        (lambda x: None, TypeError, "'odd'.*got NoneType as its result"),
    ],
)
def test_augmentation_unfit_for_a_batch_is_named(aug, error, match):
    views = FactorizedViews({"stamp": Stamp(0), "odd": aug}, batched=True)
    with pytest.raises(error, match=match):  # at once, or at the first draws that disagree
        [views(images(6)) for _ in range(20)]


# --- the libraries that our users have, on images of two greys: where the brighter one is tells the geometry
# --- whatever the brightness, and how bright it is tells the brightness whatever the geometry


def dots(*shape: int) -> Tensor:
    return 120 * torch.randint(0, 2, shape, dtype=torch.uint8)


def assert_crop_and_brightness(pairs: list[tuple[Tensor, Tensor, int]]) -> None:
    """Whatever is shared agrees in every pair; what is not, does not in all."""
    geometry, brightness = ({0: [], 1: []} for _ in range(2))
    for view0, view1, kind in pairs:
        view0, view1 = torch.as_tensor(view0), torch.as_tensor(view1)
        geometry[kind].append(torch.equal(view0 == view0.max(), view1 == view1.max()))
        brightness[kind].append(bool(view0.max() == view1.max()))
    assert all(geometry[1])
    assert not any(geometry[0])
    assert all(brightness[0])
    assert brightness[1].count(True) <= len(brightness[1]) // 4  # of 8 bits, two draws may round to one


def test_kornia_batch():
    augmentation = pytest.importorskip("kornia.augmentation")
    aug = {
        "affine": augmentation.RandomAffine(40.0, translate=(0.3, 0.3), resample="nearest", p=1.0),
        "color": augmentation.ColorJiggle(brightness=0.5, p=1.0),
    }
    views = FactorizedViews(aug, pairs="single", batched=True)
    x = dots(12, 1, 16, 16).expand(-1, 3, -1, -1) / 255
    view0, view1, kind = views(x)
    assert_crop_and_brightness(list(zip(view0, view1, kind.tolist(), strict=True)))
    alone, again, _ = FactorizedViews({"affine": aug["affine"]}, batched=True)(x)
    assert not torch.equal(alone, again)


def test_kornia_agrees_with_its_own_replay():
    """kornia applies given parameters: the samples that differ in color get the shared affine, and only that."""
    augmentation = pytest.importorskip("kornia.augmentation")
    affine = augmentation.RandomAffine(40.0, p=1.0)
    color = augmentation.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=1.0)
    applied = []

    def recorded(aug):
        def call(x):
            y = aug(x)
            applied.append((len(x), aug._params))
            return y

        return call

    views = FactorizedViews({"affine": recorded(affine), "color": recorded(color)}, pairs="single", batched=True)
    x = torch.rand(6, 3, 8, 8)
    views(x)
    applied.clear()
    view0, view1, kind = views(x)
    assert [num for num, _ in applied] == [6, 3, 3, 3, 3, 3]
    first_affine, new_affine, shared_color, again, first_color, new_color = (params for _, params in applied)
    assert torch.equal(shared_color["contrast_factor"], again["contrast_factor"])
    rows0, rows1 = (kind == 0), (kind == 1)
    moved = affine(x, params=first_affine)
    assert torch.equal(view0[rows0], color(moved[rows0], params=shared_color))
    assert torch.equal(view1[rows0], color(affine(x[rows0], params=new_affine), params=shared_color))
    assert torch.equal(view0[rows1], color(moved[rows1], params=first_color))
    assert torch.equal(view1[rows1], color(moved[rows1], params=new_color))


LIBRARIES = []


@pytest.fixture(scope="module")
def v2():
    """torchvision's transforms, whose compiled operators from PyPI do not load beside a CPU build of torch."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("no torchvision")
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    # Two schemas are enough for its transforms; the library must live as long as they are used.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARIES.append(library)
    return importlib.import_module("torchvision.transforms.v2")


def torchvision_augmentations(v2):
    nearest = v2.InterpolationMode.NEAREST
    crop = v2.RandomResizedCrop(16, scale=(0.2, 0.6), interpolation=nearest, antialias=False)
    return {"crop": crop, "color": v2.ColorJitter(brightness=0.6)}


def test_kornia_item_with_a_batch_axis_is_refused_and_keepdim_is_what_helps():
    augmentation = pytest.importorskip("kornia.augmentation")
    with pytest.raises(ValueError, match=r"'flip'.*gave shape \(1, 3, 8, 8\).*keepdim=True"):
        FactorizedViews({"flip": augmentation.RandomHorizontalFlip()})(torch.rand(3, 8, 8))
    views = FactorizedViews({"flip": augmentation.RandomHorizontalFlip(keepdim=True)})
    assert views(torch.rand(3, 8, 8)).view0.shape == (3, 8, 8)


def test_torchvision_batch_is_refused(v2):
    views = FactorizedViews({"color": v2.ColorJitter(brightness=0.6)}, batched=True)
    with pytest.raises(ValueError, match=r"'color'.*one draw for all samples of a batch.*kornia.*each image"):
        views(torch.rand(4, 3, 8, 8))


def test_torchvision_normalize_and_size_belong_to_finalize(v2):
    fixed = v2.Compose([v2.Resize(6), v2.Normalize([0.5], [0.2])])
    with pytest.raises(ValueError, match=r"'fixed'.*one result under all seeds.*finalize="):
        FactorizedViews({"fixed": fixed}, batched=True)(torch.rand(4, 3, 8, 8))
    gray = FactorizedViews({"gray": v2.RandomGrayscale(p=0.2)}, finalize=fixed)
    for _ in range(10):
        gray(torch.rand(1, 8, 8).repeat(3, 1, 1))


@pytest.mark.parametrize("pil", [True, False])
def test_torchvision_items(v2, pil):
    x = dots(1, 24, 24).expand(3, -1, -1)
    finalize = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    views = FactorizedViews(torchvision_augmentations(v2), pairs="single", finalize=finalize)
    pairs = [views(v2.functional.to_pil_image(x) if pil else x) for _ in range(12)]
    assert pairs[0].view0.dtype == torch.float32
    assert_crop_and_brightness(pairs)


def test_albumentations_items(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for newer ones
    albumentations = pytest.importorskip("albumentations")
    views = FactorizedViews(
        {
            "crop": albumentations.RandomResizedCrop(size=(16, 16), scale=(0.2, 0.6), interpolation=0),
            "color": albumentations.Compose(
                [albumentations.ColorJitter(brightness=(0.4, 1.6), contrast=0, saturation=0, hue=0, p=1)]
            ),
        },
        pairs="single",
        finalize=albumentations.ToFloat(max_value=255),
    )
    x = dots(24, 24, 1).expand(-1, -1, 3).numpy()
    pairs = [views(x) for _ in range(12)]
    assert pairs[0].view0.dtype == np.float32
    assert_crop_and_brightness(pairs)


def test_docstring_example():
    results = doctest.testmod(mast_ops.views.factorized)
    assert results.attempted > 5
    assert results.failed == 0


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("spoil", "words"), [(lambda y: y.to("meta"), "on the meta device"), (lambda y: y.to_sparse(), "torch.sparse_coo")]
)
def test_results_without_values_are_refused_by_name(batched, spoil, words):
    views = FactorizedViews({"a": lambda x: spoil(x + torch.rand(x.shape))}, batched=batched)
    with pytest.raises((ValueError, TypeError), match=rf"augmentations\['a'\]: got .*{words}"):
        views(torch.rand(4, 3, 4, 4)[slice(None) if batched else 0])


def test_a_dtype_that_changes_by_seed_is_refused():
    def either(x):
        y = x + torch.rand(3, 1, 1)
        return y.double() if torch.rand(()) < 0.5 else y

    views = FactorizedViews({"a": either})

    def several():
        for _ in range(20):
            views(torch.rand(3, 4, 4))

    with pytest.raises(ValueError, match=r"augmentations: got views that are Tensor of torch\.float"):
        several()
