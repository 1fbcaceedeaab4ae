"""Plots: what they show, where they draw, what they refuse; how they look is for eyes."""

import importlib
import subprocess
import sys
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mast_ops import FactorizedViews, MaskedSubspaceHead
from mast_ops.analysis import closedness, mask_overlap, uncertainty_by_strength
from mast_ops.plots import plot_closed, plot_masks, plot_overlap, plot_pairs, plot_sets, plot_summary, plot_uncertainty

mpl.use("Agg")
NAMES = ["crop", "colour", "blur"]
LONG = [f"a rather long name of augmentation {k}" for k in range(15)]
OF_MASKS = [plot_masks, plot_overlap, plot_closed, plot_sets]


@pytest.fixture(autouse=True)
def _no_figures():
    yield
    plt.close("all")


def random_masks(k, d=32):
    return torch.rand(k, d, generator=torch.Generator().manual_seed(0))


def random_curves(names):
    generator = torch.Generator().manual_seed(0)
    strength = torch.rand(50, generator=generator)
    return {name: (strength, strength + torch.rand(50, generator=generator)) for name in names}


def axes(figure=None):
    return (figure or Figure()).subplots()


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def legend(ax):
    return labels(ax.get_legend().get_texts())


def draw(plot, names, ax=None):
    if plot is plot_uncertainty:
        return plot(random_curves(names), ax=ax)
    return plot(random_masks(len(names)), names, ax=ax)


# What they show


def test_masks_show_what_they_close_from_one_mask_to_all():
    #                      by 2  of 0  of 2  by none  by 3  of 1
    masks = torch.tensor([[1.0, 0.4, 1.0, 2.0, 0.0, 1.5],
                          [0.0, 0.9, 0.8, 1.0, 0.0, 0.2],
                          [0.1, 1.0, 0.3, 1.0, 0.0, -0.7]])  # fmt: skip
    ax = plot_masks(masks, NAMES, ax=axes())
    (image,) = ax.get_images()
    assert torch.equal(torch.as_tensor(image.get_array().data).float(), closedness(masks)[:, [1, 5, 2, 0, 4]])
    assert image.get_clim() == (0, 1)
    assert labels(ax.get_yticklabels()) == NAMES
    assert "5 of 6" in ax.get_xlabel()
    assert "2 of 6" in plot_masks(masks, NAMES, threshold=0.1, ax=axes()).get_xlabel()


def test_masks_that_close_nothing_or_everything_show_all_dimensions():
    for masks, words in ((torch.ones(2, 3), "no mask closes one"), (torch.zeros(2, 3), "that a mask closes: 3 of 3")):
        ax = plot_masks(masks, NAMES[:2], ax=axes())
        assert ax.get_images()[0].get_array().tolist() == (1 - masks).tolist()
        assert words in ax.get_xlabel()


def test_rows_of_masks_do_not_blur_into_each_other():
    image = plot_masks(random_masks(3), NAMES, ax=axes()).get_images()[0]
    assert image.get_interpolation() == "nearest"  # and not the user's image.interpolation


def test_overlap_is_annotated_and_readable():
    masks = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 4.0], [1.0, 1.0, 1.0]])
    ax = plot_overlap(masks, NAMES, ax=axes())
    image = ax.get_images()[0]
    assert torch.equal(torch.as_tensor(image.get_array().data), mask_overlap(closedness(masks)))
    assert plot_overlap(torch.ones(1, 3), ["none"], ax=axes()).get_images()[0].get_clim() == (0, 1)
    cells = {tuple(map(int, text.get_position())): text for text in ax.texts}
    assert {place: text.get_text() for place, text in cells.items()} == {
        (0, 0): "1.00", (1, 0): "0.60", (2, 0): "0.00",
        (0, 1): "0.60", (1, 1): "1.00", (2, 1): "0.00",
        (0, 2): "0.00", (1, 2): "0.00", (2, 2): "0.00",
    }  # fmt: skip
    assert cells[0, 0].get_color() == "white"
    assert cells[2, 2].get_color() == "black"
    assert labels(ax.get_xticklabels()) == labels(ax.get_yticklabels()) == NAMES
    assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {45}  # long names side by side collide


CLOSING = torch.tensor([[0.0, 0.0, 0.3, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0]])


def test_closed_dimensions_are_stacked_by_mask():
    for threshold, alone, others in ((0.5, [2, 0, 0], [2, 2, 1]), (0.1, [2, 1, 0], [1, 1, 1])):
        ax = plot_closed(CLOSING, NAMES, threshold=threshold, ax=axes())
        first, second = ax.containers
        assert [bar.get_width() for bar in first] == alone
        assert [bar.get_width() for bar in second] == others
        assert [bar.get_x() for bar in second] == alone
        assert ax.yaxis_inverted()  # the first name on top
        assert "of 5" in ax.get_xlabel()
        assert legend(ax) == ["alone", "with others"]
        assert labels(ax.get_yticklabels()) == NAMES


def test_sets_of_masks_that_close_a_dimension_have_a_bar_each():
    def bars(**options):
        ax = plot_sets(CLOSING, NAMES, ax=axes(), **options)
        return dict(zip(labels(ax.get_yticklabels()), (bar.get_width() for bar in ax.containers[0]), strict=True))

    assert bars() == {"crop": 2, "crop+colour": 1, "all": 1}
    assert bars(threshold=0.1) == {"crop": 2, "colour": 1, "all": 1}
    assert bars(most=2) == {"crop": 2, "2 other sets": 2}
    assert "1 of 5 by none" in plot_sets(CLOSING, NAMES, ax=axes()).get_xlabel()
    assert labels(plot_sets(torch.ones(2, 3), NAMES[:2], ax=axes()).get_yticklabels()) == ["none"]


def test_no_part_of_the_summary_is_a_constant_at_the_default_coverage():
    masks = MaskedSubspaceHead(torch.nn.Linear(2, 64), NAMES).masks().detach()
    figure = plot_summary(masks, NAMES)
    assert figure._repr_png_()[:4] == b"\x89PNG"  # what a notebook shows
    heat, each, _, every, overlap = figure.get_axes()
    assert len(set(heat.get_images()[0].get_array().ravel().tolist())) > 1
    assert [bar.get_width() for bar in each.containers[0]] == [3, 3, 3]
    assert sorted(labels(every.get_yticklabels())) == sorted(NAMES)
    assert torch.equal(torch.as_tensor(overlap.get_images()[0].get_array().data), torch.eye(3))


def test_uncertainty_draws_the_bins_and_names_the_correlation():
    strength = torch.tensor([0.0, 0.1, 0.2, 0.9, 1.0])
    flat = torch.ones(5)
    ax = plot_uncertainty({"up": (strength, strength**3), "down": (strength, -strength), "no": (strength, flat)},
                          bins=4, ax=axes())  # fmt: skip
    assert legend(ax) == ["up (\u03c1 = 1.00)", "down (\u03c1 = -1.00)", "no (\u03c1 undefined)"]
    binned = uncertainty_by_strength(strength**3, strength, bins=4)
    assert binned.samples.tolist() == [3, 0, 0, 2]
    assert list(ax.lines[0].get_xdata()) == binned.strength[[0, 3]].tolist()
    assert list(ax.lines[0].get_ydata()) == binned.log_variance[[0, 3]].tolist()
    assert "strength" in ax.get_xlabel()
    assert "log-variance" in ax.get_ylabel()


def test_every_line_looks_different():
    ax = plot_uncertainty(random_curves(LONG), ax=axes())
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 15


# Where they draw


@pytest.mark.parametrize("plot", [*OF_MASKS, plot_uncertainty])
def test_given_axes_are_used_and_pyplot_is_left_alone(plot):
    ax = axes()
    assert draw(plot, NAMES, ax) is ax
    assert ax.has_data()
    assert plt.get_fignums() == []


@pytest.mark.parametrize("plot", [*OF_MASKS, plot_uncertainty])
def test_without_axes_there_is_one_new_figure_and_no_setting_changes(plot):
    before = dict(mpl.rcParams)
    ax = draw(plot, NAMES)
    assert [plt.figure(number) for number in plt.get_fignums()] == [ax.figure]
    assert draw(plot, NAMES).figure is not ax.figure
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("names", [["only"], NAMES, LONG], ids=len)
@pytest.mark.parametrize("plot", [*OF_MASKS, plot_uncertainty])
def test_no_text_is_cut_off_and_no_row_names_overlap(plot, names):
    ax = draw(plot, names)
    ax.figure.canvas.draw()
    (width, height), drawn = ax.figure.get_size_inches(), ax.figure.get_tightbbox()
    assert 0 <= drawn.x0 < drawn.x1 <= width
    assert 0 <= drawn.y0 < drawn.y1 <= height
    if plot is not plot_uncertainty:
        rows = [text.get_window_extent() for text in ax.get_yticklabels()]
        assert plot is plot_sets or len(rows) == len(names)
        assert not any(low.overlaps(high) for low, high in pairwise(rows))
    elif len(names) == 15:
        assert not ax.get_legend().get_window_extent().overlaps(ax.bbox)


# What they refuse


@pytest.mark.parametrize("plot", OF_MASKS)
@pytest.mark.parametrize(
    ("masks", "names", "error", "says"),
    [
        (torch.ones(3), NAMES, ValueError, r"masks: got shape \(3,\)"),
        (torch.ones(2, 4), NAMES, ValueError, "names: got 3 names, wanted 2"),
        (torch.ones(3, 4), ["a", "b", "a"], ValueError, "names: got 'a' more than once"),
        (torch.ones(3, 4), [0, 1, 2], TypeError, "names: got 0"),
        (torch.tensor([[1.0, float("nan")]]), ["a"], ValueError, "masks: got NaN or infinity"),
        (torch.tensor([[1.0, float("inf")]]), ["a"], ValueError, "masks: got NaN or infinity"),
    ],
)
def test_bad_masks_leave_no_figure(plot, masks, names, error, says):
    with pytest.raises(error, match=says):
        plot(masks, names)
    assert plt.get_fignums() == []


def test_bad_threshold_leaves_no_figure():
    with pytest.raises(ValueError, match="threshold: got 2"):
        plot_sets(torch.ones(1, 4), ["a"], threshold=2)
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("curves", "bins", "error", "says"),
    [
        ({}, 8, ValueError, "curves: got no names"),
        ({"hue": (torch.ones(2), torch.ones(3))}, 8, ValueError, r"log_variance of 'hue': got shape \(3,\)"),
        ({"hue": (torch.ones(2, 1), torch.ones(2))}, 8, ValueError, r"strength of 'hue': got shape \(2, 1\)"),
        ({"hue": (torch.ones(1), torch.full((1,), float("nan")))}, 8, ValueError, "log_variance of 'hue': got NaN"),
        ({"hue": (torch.full((1,), float("inf")), torch.ones(1))}, 8, ValueError, "strength of 'hue': got NaN"),
        ({"hue": (torch.ones(2), torch.ones(2))}, 0, ValueError, "bins: got 0"),
    ],
)
def test_bad_curves_leave_no_figure(curves, bins, error, says):
    with pytest.raises(error, match=says):
        plot_uncertainty(curves, bins=bins)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ["$\\frac{", "a$b$c", "_hidden", "two\nlines"])
def test_names_are_drawn_as_they_are_written(name):
    figure = plot_summary(torch.rand(2, 5), [name, "other"])
    figure.draw_without_rendering()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [name, "other"]
    ax = plot_uncertainty({name: (torch.rand(4), torch.rand(4)), "other": (torch.rand(4), torch.rand(4))}, ax=axes())
    ax.figure.draw_without_rendering()
    assert [line.split(" (")[0] for line in legend(ax)] == [name, "other"]


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "mast_ops.plots")
    with pytest.raises(ImportError, match=r'pip install "mast-ops\[plot\]"'):
        importlib.import_module("mast_ops.plots")


def test_the_rest_of_the_package_does_not_load_matplotlib():
    code = "import sys, mast_ops, mast_ops.analysis; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("batched", [True, False])
def test_pairs_of_every_kind_differ_in_their_picture(batched):
    def shade(x):
        return x + torch.rand(len(x), 1, 1, 1) if batched else x + torch.rand(())

    def left(x):
        y = x.clone()
        y[..., :4] *= torch.rand(len(x), 1, 1, 1) if batched else torch.rand(())
        return y

    views = FactorizedViews({"shade": shade, "left": left}, batched=batched, finalize=lambda x: 4 * x - 3)
    x = torch.rand(3, 8, 8)
    figure = plot_pairs(views, x.repeat(2, 1, 1, 1) if batched else [x, x.flip(0)])
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["shade", "left", "all"]
    assert [ax.get_title() for ax in figure.axes[:3]] == ["view 0", "view 1", "difference"]
    apart = figure.axes[5].get_images()[0].get_array()
    assert apart[:, 4:].max() < 1e-6 < apart[:, :4].max() == 1
    assert all(ax.get_images()[0].get_array().min() >= 0 for ax in figure.axes)


def test_pairs_of_numpy_images_and_what_is_none():
    views = FactorizedViews({"shade": lambda x: x // np.random.randint(1, 4)}, pairs="single")
    figure = plot_pairs(views, np.full((4, 4, 3), 200, dtype=np.uint8))
    assert len(figure.axes) == 3
    with pytest.raises(TypeError, match="views: got 3, wanted FactorizedViews"):
        plot_pairs(3, torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="images: got none"):
        plot_pairs(views, [])
