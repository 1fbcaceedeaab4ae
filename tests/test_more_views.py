"""Three and more views of an image, small ones among them: every two of them are a pair of a known kind."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mast_ops import FactorizedViews

NAMES = ("a", "b", "c")
PAIRS = ["single", "mixed", "all_but_one", 0.4, [[True, True, False], [False, False, True]]]


class Stamp:
    """Adds a draw for each sample to one column, in place; keeps so many rows of the image."""

    def __init__(self, column: int, height: int = 2):
        self.column, self.height = column, height
        self.samples = 0

    def __call__(self, x: Tensor) -> Tensor:
        num = len(x) if x.dim() == 4 else 1
        self.samples += num
        draw = torch.rand(num)
        x[..., self.column] += draw[:, None, None] if x.dim() == 4 else draw
        return x[..., : self.height, :]


def stamps() -> dict[str, Stamp]:
    return {name: Stamp(column) for column, name in enumerate(NAMES)}


def images(batched: bool) -> Tensor:
    return torch.full((16, 1, 2, 5) if batched else (1, 2, 5), -1.0)


def columns(view: Tensor) -> Tensor:
    return view[..., 0, 0, :3]


def assert_pair(view0: Tensor, view1: Tensor, differs: Tensor) -> None:
    assert torch.equal(columns(view0) != columns(view1), differs)
    for view in (view0, view1):
        assert ((view[..., :3] > -1) & (view[..., :3] < 0)).all()  # drawn once, not twice
        assert (view[..., 3:] == -1).all()


def calls(views: FactorizedViews, batched: bool) -> list[tuple[Any, ...]]:
    return [views(images(batched)) for _ in range(2 if batched else 8)]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("num_views", [3, 4])
def test_any_two_views_differ_in_the_kind_alone(num_views, pairs, batched):
    views = FactorizedViews(stamps(), pairs=pairs, batched=batched, num_views=num_views)
    for *made, kind in calls(views, batched):
        assert len(made) == num_views
        for view0, view1 in itertools.combinations(made, 2):
            assert_pair(view0, view1, views.kinds[kind])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("pairs", ["single", "mixed", PAIRS[-1]])
@pytest.mark.parametrize("crops", [["a"], ["b"], ["b", "c"]])
def test_pair_with_a_local_view_differs_in_what_is_local_as_well(crops, pairs, batched):
    local = {name: Stamp(NAMES.index(name), height=1) for name in crops}
    options = {"num_views": 2, "num_local_views": 3, "local_augmentations": local}
    views = FactorizedViews(stamps(), pairs=pairs, batched=batched, **options)
    also = torch.tensor([name in crops for name in NAMES])
    for *made, kind in calls(views, batched):
        assert [view.shape[-2] for view in made] == [2, 2, 1, 1, 1]
        for (_, view0), (j, view1) in itertools.combinations(enumerate(made), 2):
            of_pair = kind if j < 2 else views.local_kinds[kind]
            assert torch.equal(views.kinds[of_pair], views.kinds[kind] | (also & (j >= 2)))
            assert_pair(view0, view1, views.kinds[of_pair])


def test_kinds_of_local_pairs_are_in_the_table_and_no_image_is_of_them():
    local = {"b": Stamp(1, height=1)}
    views = FactorizedViews(stamps(), pairs="single", num_local_views=1, local_augmentations=local)
    assert views.kind_names == ("a", "b", "c", "a+b", "b+c")
    assert views.local_kinds.tolist() == [3, 1, 4, 3, 4]
    assert views.weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    decks = [sorted(views(images(False))[-1] for _ in range(3)) for _ in range(4)]
    assert decks == [[0, 1, 2]] * 4
    assert FactorizedViews(stamps(), pairs="mixed").local_kinds.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batched", [True, False])
def test_views_repeat_by_their_generator_and_leave_the_image_as_it_was(batched):
    def made(seed: int) -> list[tuple[Any, ...]]:
        local = {"b": Stamp(1, height=1)}
        options = {"num_views": 3, "num_local_views": 2, "local_augmentations": local}
        generator = torch.Generator().manual_seed(seed)
        views, x = FactorizedViews(stamps(), batched=batched, generator=generator, **options), images(batched)
        found = [views(x) for _ in range(3)]
        assert (x == -1).all()
        return found

    first, again, other = made(1), made(1), made(2)
    for one, two, three in zip(first, again, other, strict=True):
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, two, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one[:-1], three[:-1], strict=True))
    pointers = [view.untyped_storage().data_ptr() for view in first[0][:-1]]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("batched", [True, False])
def test_no_more_samples_than_plain_multi_crop(batched):
    augmentations, local = stamps(), {"a": Stamp(0, height=1)}
    options = {"num_views": 2, "num_local_views": 4, "local_augmentations": local}
    views = FactorizedViews(augmentations, batched=batched, **options)
    views(images(batched))  # trials
    every = [*augmentations.values(), *local.values()]
    for stamp in every:
        stamp.samples = 0
    num = 16 if batched else 1
    for _ in range(5):
        views(images(batched))
    assert local["a"].samples == 5 * 4 * num
    assert augmentations["a"].samples <= 5 * 2 * num
    assert all(augmentations[name].samples <= 5 * 6 * num for name in "bc")


@pytest.mark.parametrize("batched", [True, False])
def test_of_three_views_not_all_are_equal(batched):
    def coin(x: Tensor) -> Tensor:
        flips = torch.rand(len(x) if x.dim() == 4 else 1) < 0.3
        return x + (flips.float()[:, None, None, None] if x.dim() == 4 else flips.float())

    views = FactorizedViews({"coin": coin}, batched=batched, num_views=3)
    for *made, _ in calls(views, batched):
        different = [(made[0] != view).flatten(1 if batched else 0).any(-1) for view in made[1:]]
        assert torch.stack(different).any(0).all()


def test_default_collate_makes_a_batch_of_each_view():
    views = FactorizedViews(stamps(), num_local_views=1, local_augmentations={"a": Stamp(0, height=1)})
    *made, kind = default_collate([views(images(False)) for _ in range(4)])
    assert [tuple(view.shape) for view in made] == [(4, 1, 2, 5), (4, 1, 2, 5), (4, 1, 1, 5)]
    assert kind.shape == (4,)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_views": 1}, ValueError, "num_views: got 1"),
        ({"num_views": 2.0}, TypeError, "num_views"),
        ({"num_local_views": -1}, ValueError, "num_local_views: got -1"),
        ({"num_local_views": 1}, ValueError, "local_augmentations: got None beside num_local_views"),
        ({"local_augmentations": {"a": Stamp(0)}}, ValueError, "num_local_views: got 0 beside local_augmentations"),
        ({"local_augmentations": {"d": Stamp(0)}}, ValueError, "local_augmentations: got 'd', wanted names of"),
        ({"local_augmentations": {"a": 1}}, TypeError, r"local_augmentations\['a'\]: got int, wanted a callable"),
        ({"local_augmentations": Stamp(0)}, TypeError, "local_augmentations: got Stamp, wanted .* such as their crop"),
    ],
)
def test_bad_arguments_are_named(options, error, match):
    with pytest.raises(error, match=match):
        FactorizedViews(stamps(), **options)


@pytest.mark.parametrize("batched", [True, False])
def test_local_augmentation_that_is_not_random_is_named(batched):
    local = {"a": lambda x: x[..., :1, :]}
    views = FactorizedViews(stamps(), batched=batched, num_local_views=1, local_augmentations=local)
    with pytest.raises(ValueError, match=r"local_augmentations\['a'\]: got one result under all seeds"):
        [views(images(batched)) for _ in range(9)]
