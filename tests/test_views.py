"""Pairs that share every draw but one: read off augmentations that write their draw into the image."""

import doctest
import importlib.util
import itertools
import pickle
import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

import mast_ops.views
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


def images(num: int) -> Tensor:
    return torch.full((num, 1, 2, 9), -1.0)


def assert_factorized(pair: ViewPair, num: int, x: Tensor) -> None:
    """Column k, -1 plus a draw, agrees just where the subspace is neither k nor composed; the rest is x's."""
    view0, view1, subspace = pair
    subspace = torch.as_tensor(subspace)[..., None]
    shared = (subspace != torch.arange(num)) & (subspace != num)
    assert torch.equal(view0[..., 0, 0, :num] == view1[..., 0, 0, :num], shared)
    for view in (view0, view1):
        assert ((view > -1) & (view < 0))[..., :num].all()  # once, not twice
        assert torch.equal(view[..., num:], x[..., num:])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("source", DRAWS)
@pytest.mark.parametrize("composed", [0.0, 0.3])
def test_batch_shares_all_draws_but_one(source, per_sample, composed):
    x = images(8)
    views = FactorizedViews(stamps(source=source, per_sample=per_sample), batched=True, composed=composed)
    seen = []
    for _ in range(3):
        pair = views(x)
        assert_factorized(pair, 3, x)
        drawn = pair.view0[:, 0, 0, :3]
        assert len(drawn.unique()) == (24 if per_sample else 3)
        seen.append(drawn[0])
    assert len(torch.stack(seen).unique()) == 9  # each call draws anew
    assert (x == -1).all()


@pytest.mark.parametrize("source", DRAWS)
@pytest.mark.parametrize("composed", [0.0, 0.3])
def test_item_shares_all_draws_but_one(source, composed):
    x = images(1)[0]
    views = FactorizedViews(stamps(source=source), composed=composed)
    pairs = [views(x) for _ in range(20)]
    for pair in pairs:
        assert type(pair.subspace) is int
        assert_factorized(pair, 3, x)
    assert {pair.subspace for pair in pairs} == set(range(4 if composed else 3))
    assert len({float(pair.view0[0, 0, 0]) for pair in pairs}) == 20
    assert (x == -1).all()


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(1, 6),
    num_samples=st.integers(1, 17),
    composed=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    per_sample=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_batch_is_factorized_and_balanced(num, num_samples, composed, per_sample, seed):
    x = images(num_samples)
    generator = torch.Generator().manual_seed(seed)
    aug = stamps(num, per_sample=per_sample)
    pair = FactorizedViews(aug, batched=True, composed=composed, generator=generator)(x)
    assert_factorized(pair, num, x)
    assert pair.subspace.shape == (num_samples,)
    assert pair.subspace.dtype == torch.int64
    *counts, num_composed = torch.bincount(pair.subspace, minlength=num + 1).tolist()
    assert max(counts) - min(counts) <= 1
    assert abs(num_composed - num_samples * composed) < 1


def test_remainder_and_order_of_a_batch_are_random():
    views = FactorizedViews(stamps(), batched=True)
    subspaces = [views(images(4)).subspace for _ in range(60)]
    assert {int(s.bincount().argmax()) for s in subspaces} == {0, 1, 2}
    assert {int(s[0]) for s in subspaces} == {0, 1, 2}


def test_composed_fraction_is_exact_on_average():
    views = FactorizedViews(stamps(2), batched=True, composed=0.25)
    counts = [int((views(images(10)).subspace == 2).sum()) for _ in range(300)]
    assert set(counts) == {2, 3}
    assert sum(counts) / 300 == pytest.approx(2.5, abs=0.1)
    views = FactorizedViews(stamps(2), composed=0.25)
    assert sum(views(images(1)[0]).subspace == 2 for _ in range(600)) == pytest.approx(150, abs=40)


@pytest.mark.parametrize("composed", [0.0, 0.4])
def test_deck_holds_each_subspace_once(composed):
    views = FactorizedViews(stamps(4), composed=composed)
    dealt = [s for s in (views(images(1)[0]).subspace for _ in range(100)) if s < 4]
    decks = list(zip(*[iter(dealt)] * 4, strict=False))
    assert all(sorted(deck) == [0, 1, 2, 3] for deck in decks)
    assert len(set(decks)) > 5


def test_names():
    aug = dict(zip(NAMES, stamps().values(), strict=True))
    assert FactorizedViews(aug).subspaces == NAMES
    assert FactorizedViews(aug, composed=0.1).subspaces == (*NAMES, "all")
    assert FactorizedViews(aug, composed=0.1, composed_name="mix").subspaces == (*NAMES, "mix")


def test_no_more_samples_than_two_independent_views():
    aug = stamps(4)

    def handled(call, *args) -> int:
        before = sum(a.samples for a in aug.values())
        call(*args)
        return sum(a.samples for a in aug.values()) - before

    views = FactorizedViews(aug, batched=True)
    assert handled(views, images(100)) == 2 * 4 * 100 + 4 * 8 * 2 * 4  # 8 trials of 4 samples, twice each
    assert handled(views, images(100)) == 2 * 4 * 100
    views = FactorizedViews(aug)
    assert handled(lambda: [views(images(1)[0]) for _ in range(4)]) == 4 * 4 + (4 + 3 + 2 + 1) + 4 * 8 * 2


@pytest.mark.parametrize("num_samples", [1, 2])
def test_batch_smaller_than_the_subspaces(num_samples):
    views = FactorizedViews(stamps(5), batched=True, composed=0.2)
    seen = set()
    for _ in range(40):
        pair = views(images(num_samples))
        assert_factorized(pair, 5, images(num_samples))
        seen.update(pair.subspace.tolist())
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

    view0, view1, subspace = FactorizedViews({"noise": noise, "overwrite": overwrite}, batched=True)(images(9))
    assert torch.equal((view0 == view1)[:, 0, 0, 1], subspace != 0)
    assert torch.equal((view0 == view1)[:, 0, 0, 0], subspace != 1)


@pytest.mark.parametrize("batched", [True, False])
def test_views_and_input_share_no_memory(batched):
    x = images(4) if batched else images(1)[0]
    view0, view1, _ = FactorizedViews({"identity": lambda x: x}, batched=batched, finalize=lambda x: x)(x)
    assert len({t.untyped_storage().data_ptr() for t in (x, view0, view1)}) == 3


@pytest.mark.parametrize("batched", [True, False])
def test_finalize_comes_last_on_both_views(batched):
    def finalize(x):
        assert (x[..., :3] > -1).all()
        return x.mul_(2)

    x = images(6) if batched else images(1)[0]
    view0, view1, subspace = FactorizedViews(stamps(), batched=batched, finalize=finalize)(x)
    assert_factorized(ViewPair(view0 / 2, view1 / 2, subspace), 3, x)


def test_numpy_image():
    def stamp(x):
        x[0, 0] = np.random.rand()
        return x

    x = np.zeros((4, 4, 3))
    views = FactorizedViews({"stamp": stamp, "noise": lambda x: x + np.random.rand() * (x == 0)})
    for _ in range(6):
        view0, view1, subspace = views(x)
        assert (view0[0, 0] == view1[0, 0]).all() == (subspace != 0)
        assert (view0[1:] == view1[1:]).all() == (subspace != 1)
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
        }
    )
    for _ in range(6):
        view0, view1, subspace = views(image)
        assert (view0.getpixel((0, 0)) == view1.getpixel((0, 0))) == (subspace != 0)
        assert (view0.size == view1.size) == (subspace != 1)
    assert image.getcolors() == [(64, 100)]


class OwnGenerator:
    """Ignores the global seeds as albumentations >= 2 do, and like them has set_random_seed."""

    def __init__(self, column: int):
        self.column, self.random = column, np.random.default_rng()

    def set_random_seed(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, x: Tensor) -> Tensor:
        x[..., self.column] += self.random.random()
        return x


class ByName(OwnGenerator):
    __module__ = "albumentations.augmentations"

    def __call__(self, *, image: Tensor) -> dict[str, Tensor]:
        return {"image": super().__call__(image)}


class OwnByName(ByName):
    """A user's subclass of an albumentation."""


@pytest.mark.parametrize("kind", [OwnGenerator, ByName, OwnByName])
@pytest.mark.parametrize("batched", [True, False])
def test_set_random_seed_and_calls_by_name(kind, batched):
    x = images(6) if batched else images(1)[0]
    views = FactorizedViews({"a": kind(0), "b": Stamp(1), "c": kind(2)}, batched=batched)
    for _ in range(4):
        assert_factorized(views(x), 3, x)


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
    view0, view1, _ = FactorizedViews({"nan": lambda x: x * torch.nan}, batched=True)(images(3))
    assert view0.isnan().all()
    assert view1.isnan().all()


# --- random states


def all_states():
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


def greedy(x: Tensor) -> Tensor:
    np.random.rand(50), random.random()
    return x + torch.rand(100).sum()


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


@pytest.mark.parametrize("batched", [True, False])
def test_global_generator_advances_by_decisions_and_seeds_alone(batched):
    x = images(4) if batched else images(1)[0]
    states = []
    for aug in (greedy, lambda x: x):
        tried = FactorizedViews({"a": aug, "b": aug}, batched=batched)
        torch.manual_seed(7)
        for _ in range(2):  # the first use with its trials, and the next
            tried(x)
            states.append(all_states())
    assert states[:2] == states[2:]
    assert states[0][0] != states[1][0]
    assert states[0][1:] == states[1][1:]


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
    assert_factorized(FactorizedViews(stamps(), batched=True)(images(6)), 3, images(6))


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
        return sequence(FactorizedViews(stamps(), batched=batched, composed=0.2, generator=generator), x)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_pickled_views_go_on_alike():
    views = FactorizedViews(stamps(), generator=torch.Generator().manual_seed(1))
    sequence(views, images(1)[0])
    copy = pickle.loads(pickle.dumps(views))
    assert torch.equal(sequence(copy, images(1)[0]), sequence(views, images(1)[0]))


def test_default_device_is_left_alone():
    with torch.device("meta"):  # stands for a device that the CPU's generator cannot draw on
        pair = FactorizedViews({"a": lambda x: x + 1, "b": lambda x: x * 2}, batched=True)(images_on_cpu(4))
    assert pair.subspace.device.type == pair.view1.device.type == "cpu"


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
    views = FactorizedViews({"a": stamp(0), "b": stamp(1), "c": stamp(2)}, batched=batched, composed=0.2)
    before = torch.cuda.get_rng_state(x.device)
    for _ in range(5):
        view0, view1, subspace = views(x)
        assert view0.is_cuda
        if batched:
            assert subspace.device == x.device
        assert_factorized(ViewPair(view0.cpu(), view1.cpu(), torch.as_tensor(subspace).cpu()), 3, x.cpu())
    assert torch.equal(torch.cuda.get_rng_state(x.device), before)


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
    views = FactorizedViews(stamps(6), generator=generator)
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
    orders = [tuple(batch.subspace.tolist()) for batch in batches]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(orders)) == len(orders)
    drawn = torch.cat([batch.view0[:, 0, 0, :6].flatten() for batch in batches])
    assert len(drawn.unique()) == len(drawn)
    for batch in batches:
        assert isinstance(batch, ViewPair)
        assert batch.subspace.dtype == torch.int64
        assert_factorized(batch, 6, images(6))


def agreeing(first: list[ViewPair], second: list[ViewPair]) -> list[bool]:
    return [torch.equal(a.view1, b.view1) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("given", [None, 9])
def test_forked_workers_have_streams_of_their_own(given):
    batches = epochs("fork", 3, 0, given)
    assert_own_streams(batches)
    assert all(agreeing(batches, epochs("fork", 3, 0, given)))
    assert not any(agreeing(batches, epochs("fork", 3, 1, given)))
    assert not any(agreeing(batches, epochs("fork", 3, 0, 10)))


def test_persistent_workers_go_on():
    assert_own_streams(epochs("fork", 3, 0, 9, persistent=True))


def test_spawned_workers_have_streams_of_their_own():
    assert_own_streams(epochs("spawn", 2, 0, 9, persistent=True))


def test_default_collate_makes_a_batch():
    views = FactorizedViews(stamps())
    batch = default_collate([views(images(1)[0]) for _ in range(5)])
    assert isinstance(batch, ViewPair)
    assert batch.view0.shape == batch.view1.shape == (5, 1, 2, 9)
    assert batch.subspace.dtype == torch.int64
    assert batch.subspace.shape == (5,)


# --- refusals


def nothing(x):
    return x


@pytest.mark.parametrize(
    ("args", "options", "error", "match"),
    [
        ([], {}, TypeError, "augmentations: got list"),
        ({}, {}, ValueError, "augmentations: got no names"),
        ({1: nothing}, {}, TypeError, "augmentations: got 1"),
        ({"": nothing}, {}, TypeError, "augmentations: got ''"),
        ({"crop": 3}, {}, TypeError, r"augmentations\['crop'\]: got int, wanted a callable"),
        ({"crop": None}, {}, TypeError, r"augmentations\['crop'\]: got NoneType, wanted a callable"),
        ({"finalize": None}, {}, TypeError, r"augmentations\['finalize'\]: got NoneType, wanted a callable"),
        ({"crop": nothing}, {"composed": -0.1}, ValueError, "composed: got -0.1"),
        ({"crop": nothing}, {"composed": 1.1}, ValueError, "composed: got 1.1"),
        ({"crop": nothing}, {"composed": float("nan")}, ValueError, "composed: got nan"),
        ({"crop": nothing}, {"composed_name": "crop"}, ValueError, "composed_name: got 'crop'"),
        ({"crop": nothing}, {"composed_name": None}, TypeError, "composed_name: got None"),
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


@pytest.mark.parametrize(
    ("aug", "error", "match"),
    [
        (lambda x: x[1:], ValueError, r"'odd'.*got 6 rows and gave shape \(5, 1, 2, 9\)"),
        (lambda x: x.repeat(2, 1, 1, 1), ValueError, r"'odd'.*got 6 rows and gave shape \(12,"),
        (lambda x: x.sum(), ValueError, r"'odd'.*got 6 rows and gave shape \(\)"),
        (lambda x: x[..., : torch.randint(2, 9, ())], ValueError, "'odd'.*samples of .* under two seeds"),
        (lambda x: x.double() if torch.rand(()) < 0.5 else x, ValueError, "'odd'.*float.*under two seeds"),
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
    for view0, view1, subspace in pairs:
        view0, view1 = torch.as_tensor(view0), torch.as_tensor(view1)
        geometry[subspace].append(torch.equal(view0 == view0.max(), view1 == view1.max()))
        brightness[subspace].append(bool(view0.max() == view1.max()))
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
    views = FactorizedViews(aug, batched=True)
    x = dots(12, 1, 16, 16).expand(-1, 3, -1, -1) / 255
    view0, view1, subspace = views(x)
    assert_crop_and_brightness(list(zip(view0, view1, subspace.tolist(), strict=True)))
    alone, again, _ = FactorizedViews({"affine": aug["affine"]}, batched=True)(x)
    assert not torch.equal(alone, again)


def test_kornia_agrees_with_its_own_replay():
    """kornia applies given parameters: the samples of subspace color get the shared affine, and only that."""
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

    views = FactorizedViews({"affine": recorded(affine), "color": recorded(color)}, batched=True)
    x = torch.rand(6, 3, 8, 8)
    views(x)
    applied.clear()
    view0, view1, subspace = views(x)
    assert [num for num, _ in applied] == [6, 3, 6, 6, 3]
    shared_affine, new_affine, shared_color, _, new_color = (params for _, params in applied)
    rows0, rows1 = (subspace == 0), (subspace == 1)
    moved = affine(x, params=shared_affine)
    assert torch.equal(view0, color(moved, params=shared_color))
    assert torch.equal(view1[rows1], color(moved[rows1], params=new_color))
    moved = moved.clone()
    moved[rows0] = affine(x[rows0], params=new_affine)
    assert torch.equal(view1[rows0], color(moved, params=shared_color)[rows0])


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


def test_torchvision_batch(v2):
    views = FactorizedViews(torchvision_augmentations(v2), batched=True)
    x = dots(12, 3, 24, 24)
    assert_crop_and_brightness([(a, b, int(s)) for a, b, s in zip(*views(x), strict=True)])


@pytest.mark.parametrize("pil", [True, False])
def test_torchvision_items(v2, pil):
    x = dots(1, 24, 24).expand(3, -1, -1)
    finalize = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    views = FactorizedViews(torchvision_augmentations(v2), finalize=finalize)
    pairs = [views(v2.functional.to_pil_image(x) if pil else x) for _ in range(12)]
    assert pairs[0].view0.dtype == torch.float32
    assert_crop_and_brightness(pairs)


def test_albumentations_items():
    albumentations = pytest.importorskip("albumentations")
    views = FactorizedViews(
        {
            "crop": albumentations.RandomResizedCrop(size=(16, 16), scale=(0.2, 0.6), interpolation=0),
            "color": albumentations.Compose(
                [albumentations.ColorJitter(brightness=(0.4, 1.6), contrast=0, saturation=0, hue=0, p=1)]
            ),
        },
        finalize=albumentations.ToFloat(max_value=255),
    )
    x = dots(24, 24, 1).expand(-1, -1, 3).numpy()
    pairs = [views(x) for _ in range(12)]
    assert pairs[0].view0.dtype == np.float32
    assert_crop_and_brightness(pairs)


def test_docstring_example():
    results = doctest.testmod(mast_ops.views)
    assert results.attempted > 5
    assert results.failed == 0
