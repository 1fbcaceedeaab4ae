"""Named augmentations out of compositions that people have, and standard recipes."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from mast_ops import FactorizedViews
from mast_ops.recipes import make_views


@pytest.fixture(scope="module")
def v2():
    return pytest.importorskip("torchvision.transforms.v2")


def picture(side: int = 40):
    image = pytest.importorskip("PIL.Image")
    return image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def assert_makes_pairs(views: FactorizedViews, x, num: int = 16) -> None:
    for _ in range(num):
        view0, view1, _ = views(x)
        assert view0.shape == view1.shape
        assert not torch.equal(torch.as_tensor(view0), torch.as_tensor(view1))


def test_torchvision(v2):
    compose = v2.Compose(
        [
            v2.Resize(36),
            v2.RandomCrop(32),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(p=0),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4)], p=0.8),
            v2.Compose([v2.RandomGrayscale(0.01), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
            v2.RandomErasing(p=0.3),
            v2.Normalize([0.5] * 3, [0.2] * 3),
        ]
    )
    state = torch.get_rng_state()
    views = FactorizedViews.from_compose(compose, groups={"color": ["color_jitter", "grayscale"], "erase": "erasing"})
    assert torch.equal(torch.get_rng_state(), state)
    assert views.augmentations == ("crop", "horizontal_flip", "color", "erase")
    assert_makes_pairs(pickle.loads(pickle.dumps(views)), picture())
    view = views(picture()).view0
    assert view.shape == (3, 32, 32)
    assert view.dtype == torch.float32
    assert float(view.min()) < -1  # normalised, and to a tensor only once


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_torchvision_of_tensors(v2, dtype):
    """Of a data set that holds tensors: no PIL image goes through it, and nobody says so."""
    first = [] if dtype == torch.float32 else [v2.RandomPosterize(4), v2.ToDtype(torch.float32, scale=True)]
    compose = v2.Compose([*first, v2.RandomHorizontalFlip(), v2.Normalize([0.5] * 3, [0.2] * 3), v2.RandomErasing()])
    views = FactorizedViews.from_compose(compose)
    assert views.augmentations == (*(["posterize"] if first else []), "horizontal_flip", "erasing")
    image = torch.rand(3, 9, 9) if dtype == torch.float32 else torch.randint(256, (3, 9, 9), dtype=dtype)
    assert_makes_pairs(views, image)


def test_lightly(v2):
    transforms = pytest.importorskip("lightly.transforms")
    views = FactorizedViews.from_compose(transforms.SimCLRTransform(input_size=24), pairs="mixed")
    assert views.augmentations == (
        "resized_crop",
        "horizontal_flip",
        "color_jitter",
        "grayscale",
        "gaussian_blur",
    )
    assert_makes_pairs(views, picture())
    both = transforms.BYOLTransform()
    with pytest.raises(ValueError, match=r"BYOLTransform, whose transforms differ from view to view.*make_views"):
        FactorizedViews.from_compose(both)
    assert "solarization" in FactorizedViews.from_compose(both.transforms[1]).augmentations


def test_kornia_batch():
    augmentation = pytest.importorskip("kornia.augmentation")
    compose = augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop((16, 16)),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.Normalize(torch.tensor([0.5] * 3), torch.tensor([0.2] * 3)),
    )
    views = FactorizedViews.from_compose(compose, batched=True)
    assert views.augmentations == ("resized_crop", "horizontal_flip")
    view0, view1, _ = views(torch.rand(12, 3, 20, 20))
    assert (view0 != view1).flatten(1).any(1).all()
    assert float(view0.min()) < -1


def test_albumentations(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    albumentations = pytest.importorskip("albumentations")
    compose = albumentations.Compose(
        [
            albumentations.Resize(40, 40),
            albumentations.RandomResizedCrop(size=(16, 16)),
            albumentations.OneOf([albumentations.Blur(p=1), albumentations.GaussNoise(p=1)], p=0.5),
            albumentations.ToGray(p=0.05),
            albumentations.Normalize(),
        ]
    )
    views = FactorizedViews.from_compose(compose, weights=[1, 1, 0, 1])
    assert views.augmentations == ("resized_crop", "blur_gauss_noise", "to_gray")
    view = views(np.asarray(picture()))
    assert view.view0.dtype == np.float32
    assert_makes_pairs(views, np.asarray(picture()))


class OneOfAlbumentations:
    """A stub: called by name, with a generator of its own."""

    def __init__(self, amount: float, p: float = 1.0):
        self.amount, self.p, self.random = amount, p, np.random.default_rng()

    def set_random_seed(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, *, image):
        return {"image": image + self.amount * self.random.random() if self.random.random() < self.p else image}


OneOfAlbumentations.__module__ = "albumentations.stub"


class Compose:
    def __init__(self, transforms, p=1.0):
        self.transforms, self.p = transforms, p


def test_called_by_name_with_a_generator_of_its_own():
    class RandomShade(OneOfAlbumentations):
        pass

    class Scale(OneOfAlbumentations):
        def __call__(self, *, image):
            return {"image": image * self.amount}

    views = FactorizedViews.from_compose(Compose([Scale(3.0), RandomShade(1.0, p=0.05), RandomShade(2.0), Scale(2.0)]))
    assert views.augmentations == ("shade", "shade_2")
    view0, view1, _ = views(np.ones((4, 4, 3)))
    assert view0.min() >= 6
    assert not np.array_equal(view0, view1)


def test_a_step_with_functions_for_parts_has_its_own_name():
    """The colour jitter of older albumentations keeps its four functions as `transforms`."""

    class ColorJitter(OneOfAlbumentations):
        transforms = (half, noise)

    views = FactorizedViews.from_compose(Compose([ColorJitter(1.0), ColorJitter(2.0)]))
    assert views.augmentations == ("color_jitter", "color_jitter_2")


def noise(x):
    return x + torch.rand(())


def half(x):
    return x / 2


def test_probability_of_a_chain_makes_it_a_step():
    inner = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.2))
    inner.p = 0.5
    views = FactorizedViews.from_compose(Compose([noise, inner]), image=torch.rand(3, 4, 4))
    assert views.augmentations[0] == "noise"
    assert len(views.augmentations) == 2


class TwoViews:
    """As scripts have it: a composition for each view."""

    def __init__(self, transform, transform_prime=None):
        self.transform, self.transform_prime = transform, transform_prime or transform


class Pair:
    """The same, of what nobody can look into."""

    def __init__(self, call):
        self.call = call

    def __call__(self, x):
        return self.call(x), self.call(x)


def test_a_wrapper_of_one_composition_is_looked_into():
    views = FactorizedViews.from_compose(TwoViews(Compose([noise])), image=torch.rand(3, 4, 4))
    assert views.augmentations == ("noise",)


def test_one_step_that_does_everything_is_warned_of():
    """As a function of a whole pipeline, which nobody can look into."""
    with pytest.warns(UserWarning, match=r"^compose: got one random step, 'noise', wanted several") as told:
        FactorizedViews.from_compose(noise, image=torch.rand(3, 4, 4))
    assert told[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        FactorizedViews.from_compose(Compose([noise, noise]), image=torch.rand(3, 4, 4))


@pytest.mark.parametrize(
    ("compose", "options", "error", "match"),
    [
        (3, {}, TypeError, "compose: got int, wanted a composition"),
        (
            {"noise": noise},
            {},
            TypeError,
            "compose: got dict, wanted .*; FactorizedViews itself takes names",
        ),
        (Compose([half]), {}, ValueError, r"compose: got no random step \(half\)"),
        (Compose([noise, lambda x: x.nothing]), {}, ValueError, "step 'lambda' fails on a trial image.*pass image="),
        (TwoViews(Compose([noise]), Compose([half])), {}, ValueError, "TwoViews, whose transforms differ from view"),
        (Pair(noise), {}, ValueError, "step 'pair' gives tuple, wanted an image: pass the transform of one view"),
        (Compose([noise]), {"groups": {"a": "b"}}, ValueError, "groups: got 'b', wanted one of 'noise'"),
        (Compose([noise, noise]), {"groups": {"a": ["noise", "noise_2"], "b": "noise"}}, ValueError, "wanted once"),
        (
            Compose([noise] * 3),
            {"groups": {"a": ["noise", "noise_3"]}},
            ValueError,
            "groups: got 'a' of noise, noise_3, wanted steps that follow one another",
        ),
        (
            Compose([noise] * 2),
            {"groups": {"noise_2": "noise"}},
            ValueError,
            "wanted a name that is not another step's",
        ),
        (Compose([noise]), {"groups": ["noise"]}, TypeError, "groups: got list"),
        (Compose([noise]), {"finalize": half}, TypeError, "finalize: got one beside a composition"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(compose, options, error, match):
    with pytest.raises(error, match=match):
        FactorizedViews.from_compose(compose, image=torch.rand(3, 4, 4), **options)


@pytest.mark.parametrize(("name", "num"), [("simclr", 5), ("byol", 6), ("vicreg", 6)])
def test_recipes(v2, name, num):
    views = make_views(name, 40, pairs="single")
    assert views.augmentations == ("crop", "flip", "color", "gray", "blur", "solarize")[:num]
    assert_makes_pairs(views, picture(48), num=2 * num)
    assert views(picture(48)).view0.shape == (3, 40, 40)
    x = torch.randint(256, (3, 48, 48), dtype=torch.uint8)
    assert views(x).view1.dtype == torch.float32


def test_recipe_of_small_images_and_wrong_ones(v2):
    assert make_views("simclr", 32).augmentations == ("crop", "flip", "color", "gray")
    with pytest.raises(ValueError, match="name: got 'moco', wanted one of 'simclr'"):
        make_views("moco")
    with pytest.raises(ValueError, match="size: got 0"):
        make_views("byol", 0)
