"""Pictures of pairs, of masks and of predicted uncertainty: thin functions over `mast_ops.analysis`.

Needs matplotlib: `pip install "mast-ops[plot]"`. No other module imports this one.

Each function returns the Axes. Given `ax` it draws there and leaves pyplot alone: for figures that nobody
shows, such as a log entry per epoch, make the axes with `matplotlib.figure.Figure().subplots()`. Without `ax`
it makes one pyplot figure, so that a notebook displays it and `plt.show()` finds it; as always with pyplot,
it is open until somebody closes it. Bad arguments are refused before anything is drawn, values that are not
finite among them: a blank cell or a missing point would say nothing.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from math import isnan
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from mast_ops._checks import check_count, check_fraction, check_is, check_masks, check_names, shown
from mast_ops.analysis import (
    _check_finite,
    _check_vector,
    _folded,
    closedness,
    closing_sets,
    mask_overlap,
    open_dimensions,
    spearman,
    uncertainty_by_strength,
)
from mast_ops.views import FactorizedViews

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError('mast_ops.plots needs matplotlib: pip install "mast-ops[plot]"') from error

# Okabe and Ito's palette without black and yellow: colour-blind readers tell it apart, and it shows on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v")  # 5 and 6 have no common factor: 30 different lines
_MOST_DRAWS = 1000
_LONGEST = 30  # letters beside a bar
_SHADES = "Blues"  # one hue, light to dark: readable in grey


def _figure(width: float, height: float) -> Figure:
    """A figure that a notebook shows, with or without ``%matplotlib inline``; pyplot does not know it.

    No class of its own: Weights & Biases knows a figure by where its class is from.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def plot_masks(masks: Tensor, names: Sequence[str], *, threshold: float = 0.5, ax: Axes | None = None) -> Axes:
    """A heat map of `analysis.closedness`, one row per augmentation: dark where its mask is closed.

    The dimensions run from those that one mask closes, in the order of the rows, to those that all close: order and
    names of `analysis.closing_sets`. Dimensions that are open in every mask, most of them at the default coverage, are
    left out, and the axis says how many are shown. Where the axes have fewer pixels than dimensions, every n-th shows.

    Args:
        masks: (K, D) finite masks.
        names: K unique names, those of the augmentations.
        threshold: which dimensions count as closed, see `analysis.open_dimensions`; 0.5.
        ax: where to draw; by default a new pyplot figure.

    Raises:
        TypeError, ValueError: masks are not a finite floating-point (K, D), or names not K unique names; threshold is
            not from 0 to 1.
    """
    _check(masks, names)
    _check_axes(ax)
    closed = ~open_dimensions(masks, threshold=threshold).cpu()
    order = _by_closers(closed)
    shades = closedness(masks).cpu()[:, order]
    ax = _axes(ax, 7.5, 1.3 + 0.3 * len(names))
    image = ax.imshow(shades.numpy(), cmap=_SHADES, vmin=0, vmax=1)
    image.set_interpolation("nearest")  # the default blurs rows into each other
    ax.set_aspect("auto")
    _cells(ax, names, square=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    shown_are = "that a mask closes" if closed.any() else "(no mask closes one)"
    ax.set_xlabel(f"dimensions {shown_are}: {len(order)} of {masks.shape[1]}, by how many masks")
    bar = ax.figure.colorbar(image, ax=ax, label="closedness", pad=0.02)
    bar.outline.set_visible(False)
    return ax


def plot_pairs(views: FactorizedViews, images: Any) -> Figure:
    """A pair of every kind: its two views and how far apart they are, a row each. Look at it before you train.

    In a row, all that differs between the views must be of the augmentations that the row names. Values outside 0 to
    1, as normalising makes them, are brought there, for both views of a pair alike; the difference's largest is white.

    Args:
        views: they draw as always, until each kind of a weight above 0 was there.
        images: a batch, or for views of single images one image or a list of them.

    Returns:
        A figure that pyplot does not know: save it with ``figure.savefig``, or let a notebook show it.

    Raises:
        TypeError, ValueError: views are none of :class:`mast_ops.FactorizedViews`, or do not take these images; or a
            kind did not come in a thousand pairs.
    """
    check_is("views", views, FactorizedViews, "FactorizedViews")
    items = images if isinstance(images, list | tuple) else [images]
    if not items:
        raise ValueError("images: got none, wanted one at least")
    wanted = {s for s, weight in enumerate(views.weights.tolist()) if weight > 0}
    pairs: dict[int, tuple[Any, Any]] = {}
    for i in range(_MOST_DRAWS):
        view0, view1, *_, kind = views(items[i % len(items)])
        if isinstance(kind, int):
            pairs.setdefault(kind, (view0, view1))
        else:
            for s, one, other in zip(kind.tolist(), view0, view1, strict=True):
                pairs.setdefault(s, (one, other))
        if len(pairs) == len(wanted):
            break
    else:
        missing = views.kind_names[min(wanted - set(pairs))]
        raise ValueError(f"views: got no pair of {missing!r} in {_MOST_DRAWS} calls, wanted one of every kind")
    figure = _figure(5.4, 0.5 + 1.7 * len(pairs))
    axes = figure.subplots(len(pairs), 3, squeeze=False)
    for row, kind in zip(axes, sorted(pairs), strict=True):
        first, second = (_pixels(view) for view in pairs[kind])
        low, high = min(0.0, float(first.min()), float(second.min())), max(1.0, float(first.max()), float(second.max()))
        shown_views = [(view - low) / (high - low) for view in (first, second)]
        apart = (shown_views[0] - shown_views[1]).abs() if first.shape == second.shape else None
        pictures = [*shown_views, None if apart is None else apart / (float(apart.max()) or 1.0)]
        for ax, picture in zip(row, pictures, strict=True):
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if picture is not None:
                ax.imshow(picture.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(views.kind_names[kind], parse_math=False)
    for ax, title in zip(axes[0], ("view 0", "view 1", "difference"), strict=True):
        ax.set_title(title, fontsize="medium")
    return figure


def _pixels(view: Any) -> Tensor:
    """(H, W, 1) or (H, W, 3), float32, 8-bit values from 0 to 1; of other channels their mean."""
    if isinstance(view, Tensor):
        values = view.detach().cpu()
        values = values[None] if values.dim() < 3 else values
        values = values.movedim(0, 2)
    else:
        values = torch.from_numpy(numpy.array(view))  # a copy: PIL's is read-only
        values = values[..., None] if values.dim() < 3 else values
    values = values.float() / (255 if values.dtype == torch.uint8 else 1)
    return values if values.shape[2] in (1, 3) else values.mean(2, keepdim=True)


def plot_overlap(masks: Tensor, names: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """A matrix of how augmentations relate: the cosine of what each two masks close, `analysis.closedness`.

    A mask that closes nothing has a row of zeros. Arguments and errors: `plot_masks`, without the threshold.
    """
    _check(masks, names)
    _check_axes(ax)
    overlap = mask_overlap(closedness(masks)).cpu()
    side = 2.0 + 0.45 * len(names)
    ax = _axes(ax, side + 0.6, side)
    ax.imshow(overlap.numpy(), cmap=_SHADES, vmin=0, vmax=1)
    _cells(ax, names, square=True)
    for row, values in enumerate(overlap.tolist()):
        for column, value in enumerate(values):
            colour = "white" if value > 0.6 else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize="small")
    ax.set_title("overlap of what masks close (cosine)", fontsize="medium")
    return ax


def plot_closed(masks: Tensor, names: Sequence[str], *, threshold: float = 0.5, ax: Axes | None = None) -> Axes:
    """How many dimensions each mask closes: alone, and together with others.

    Arguments and errors: `plot_masks`.
    """
    _check(masks, names)
    _check_axes(ax)
    found = closing_sets(masks, threshold=threshold)
    alone, others = found.closed_alone, found.closed - found.closed_alone
    ax = _axes(ax, 6.0, 1.5 + 0.3 * len(names))
    places = list(range(len(names)))
    ax.barh(places, alone.tolist(), height=0.7, color=_COLOURS[0], label="alone")
    ax.barh(places, others.tolist(), height=0.7, left=alone.tolist(), color=_COLOURS[4], label="with others")
    _bars(ax, names)
    ax.set_ylim(len(names) - 0.5, -0.5 - len(names) / (len(names) + 2))  # room for the legend
    ax.set_xlabel(f"dimensions that the mask closes, of {masks.shape[1]}")
    ax.legend(loc="upper right", ncols=2, frameon=False, borderaxespad=0)
    return ax


def plot_sets(
    masks: Tensor, names: Sequence[str], *, threshold: float = 0.5, most: int = 12, ax: Axes | None = None
) -> Axes:
    """How many dimensions are closed by exactly which set of masks, from `analysis.closing_sets`.

    A dimension that one mask closes alone keeps what this augmentation changes, and ignores the others; what all
    masks of a set close keeps what any of them changes. The axis says how many dimensions no mask closes.

    Arguments and errors: `plot_masks`, and ``most``, how many sets have a bar; the last bar is of the others.
    """
    _check(masks, names)
    _check_axes(ax)
    most = check_count("most", most)
    bars, free = [], 0
    for row, count in zip(*(part.tolist() for part in closing_sets(masks, threshold=threshold)), strict=True):
        closers = [name for name, inside in zip(names, row, strict=True) if inside]
        if not closers:
            free = count
        else:
            bars.append(("all" if len(closers) == len(names) > 1 else "+".join(closers), count))
    bars.sort(key=lambda bar: -bar[1])
    bars = _folded(bars, most) or [("none", 0)]
    ax = _axes(ax, 7.5, 1.2 + 0.3 * len(bars))
    drawn = ax.barh(range(len(bars)), [count for _, count in bars], height=0.7, color=_COLOURS[0])
    ax.bar_label(drawn, padding=3, fontsize="small")
    ax.margins(x=0.12)  # room for the numbers
    _bars(ax, [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…" for name, _ in bars])
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlabel(f"dimensions closed by exactly these ({free} of {masks.shape[1]} by none)")
    return ax


def plot_summary(masks: Tensor, names: Sequence[str], *, threshold: float = 0.5) -> Figure:
    """What masks close, in one figure of four parts: each dimension, each mask, each set of masks, each two masks.

    pyplot does not know the figure: save it with ``figure.savefig``, or let a notebook show it.

    Arguments and errors: `plot_masks`.
    """
    _check(masks, names)
    check_fraction("threshold", threshold)
    side, high = 2.4 + 0.45 * len(names), 1.6 + 0.3 * len(names)
    figure = _figure(12.5, high + max(side, 3.6))
    parts: Any = figure.subfigures(2, 1, height_ratios=(high, max(side, 3.6)))
    upper, lower = parts
    left, right = upper.subplots(1, 2, width_ratios=(3, 2), gridspec_kw={"wspace": 0.06})
    plot_masks(masks, names, threshold=threshold, ax=left)
    plot_closed(masks, names, threshold=threshold, ax=right)
    left, right = lower.subplots(1, 2, width_ratios=(3, 2))
    plot_sets(masks, names, threshold=threshold, ax=left)
    plot_overlap(masks, names, ax=right)
    return figure


def plot_uncertainty(curves: Mapping[str, tuple[Tensor, Tensor]], *, bins: int = 8, ax: Axes | None = None) -> Axes:
    """Mean predicted log-variance against augmentation strength, with Spearman's rho over all samples.

    The paper's abstract (arXiv 2303.03679) says that uncertainty reflects learning difficulty: then its line
    rises with the strength of an augmentation.

    Args:
        curves: name of an augmentation -> (strength, log_variance), each (N,); N may differ. The lines share
            one axis, so give strengths in one unit, such as the fraction of each augmentation's range.
        bins: of equal width over each augmentation's range of strengths. Empty bins have no point.
        ax: where to draw; by default a new pyplot figure.

    Raises:
        TypeError, ValueError: no curves; a curve is not two finite floating-point tensors of one shape (N,);
            bins is not a whole number >= 1.
    """
    _check_axes(ax)
    check_is("curves", curves, Mapping, "name -> (strength, log_variance)")
    check_names("curves", curves)
    check_count("bins", bins)
    for name, curve in curves.items():
        if not isinstance(curve, tuple | list) or len(curve) != 2:
            raise TypeError(f"curves: got {shown(curve)} for {name!r}, wanted (strength, log_variance)")
        strength, log_variance = curve
        _check_vector(f"curves: strength of {name!r}", strength)
        _check_vector(f"curves: log_variance of {name!r}", log_variance, ("the strength", strength))
        _check_finite(f"curves: strength of {name!r}", strength)
        _check_finite(f"curves: log_variance of {name!r}", log_variance)
    lines = []
    for name, (strength, log_variance) in curves.items():
        binned = uncertainty_by_strength(log_variance, strength, bins=bins)
        rho = float(spearman(strength, log_variance))
        label = f"{name} (\u03c1 {'undefined' if isnan(rho) else f'= {rho:z.2f}'})"
        some = binned.samples > 0
        lines.append((label, binned.strength[some].tolist(), binned.log_variance[some].tolist()))
    beside = len(lines) > 6  # that many names would cover the lines
    ax = _axes(ax, 8.5 if beside else 6.0, 4.0)
    for i, (_, x, y) in enumerate(lines):
        ax.plot(x, y, color=_COLOURS[i % 6], marker=_MARKERS[i % 5], label=f"line {i}", linewidth=1.8, markersize=5)
    ax.set_xlabel("augmentation strength")
    ax.set_ylabel("mean predicted log-variance")
    _frame(ax, "both")
    if beside:
        legend = ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
    else:
        legend = ax.legend(edgecolor="none", fontsize="small")
    for entry, (label, _, _) in zip(legend.get_texts(), lines, strict=True):
        entry.set(text=label, parse_math=False)  # here, as a legend leaves out what starts with an underscore
    return ax


def _check(masks: Tensor, names: Sequence[str]) -> None:
    check_masks(masks)
    check_names("names", names)
    if len(names) != len(masks):
        raise ValueError(f"names: got {len(names)} names, wanted {len(masks)}, one per row of masks")
    _check_finite("masks", masks)


def _by_closers(closed: Tensor) -> Tensor:
    """The order of the dimensions that a mask closes, all if none is: by how many close them, then by which."""
    closers = closed.sum(dim=0)
    order = closers.nonzero()[:, 0] if closed.any() else torch.arange(closed.shape[1])
    for key in (*reversed(1 - closed.long()), closers):  # the last one decides
        order = order[key[order].argsort(stable=True)]
    return order


def _check_axes(ax: Axes | None) -> None:
    if ax is not None:
        check_is("ax", ax, Axes, "axes of matplotlib, or None")


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def _cells(ax: Axes, names: Sequence[str], square: bool) -> None:
    """Names beside the rows of an image (and under its columns), white lines between them, no frame."""
    ends = [k - 0.5 for k in range(1, len(names))]
    ax.set_yticks(range(len(names)), names, parse_math=False)  # a $ in a name is a $
    ax.set_yticks(ends, minor=True)
    if square:
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        ax.set_xticks(ends, minor=True)
    ax.grid(False)  # some styles draw one over the cells
    ax.grid(which="minor", axis="both" if square else "y", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)


def _bars(ax: Axes, names: Sequence[str]) -> None:
    """Horizontal bars over counts, a name each."""
    ax.set_yticks(range(len(names)), names, parse_math=False)  # a $ in a name is a $
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="y", length=0)
    _frame(ax, "x")


def _frame(ax: Axes, grid: Literal["both", "x", "y"]) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(axis=grid, color="#E5E5E5", linewidth=0.8)
