"""Pictures of masks and of predicted uncertainty: thin functions over `mast_ops.analysis`.

Needs matplotlib: `pip install "mast-ops[plot]"`. No other module imports this one.

Each function returns the Axes. Given `ax` it draws there and leaves pyplot alone: for figures that nobody
shows, such as a log entry per epoch, make the axes with `matplotlib.figure.Figure().subplots()`. Without `ax`
it makes one pyplot figure, so that a notebook displays it and `plt.show()` finds it; as always with pyplot,
it is open until somebody closes it. Bad arguments are refused before anything is drawn, values that are not
finite among them: a blank cell or a missing point would say nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mast_ops._checks import check_masks, check_names
from mast_ops.analysis import _check_finite, mask_overlap, mask_sharing, spearman, uncertainty_by_strength

try:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError('mast_ops.plots needs matplotlib: pip install "mast-ops[plot]"') from error

# Okabe and Ito's palette without black and yellow: colour-blind readers tell it apart, and it shows on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v")  # 5 and 6 have no common factor: 30 different lines
_SHADES = "Blues"  # one hue, light to dark: readable in grey


def plot_masks(masks: Tensor, names: Sequence[str], ax: Axes | None = None) -> Axes:
    """A heat map of the masks, one row per augmentation, colours from 0 to the largest magnitude.

    The dimensions are grouped by owner, the subspace that opens them most (each row relative to its largest
    value, as in `analysis.open_dimensions`), and in each group run from exclusive to shared. Those that no
    subspace opens come last.

    Args:
        masks: (K, D) finite masks.
        names: K unique names, those of the augmentations.
        ax: where to draw; by default a new pyplot figure.

    Raises:
        TypeError, ValueError: masks are not a finite floating-point (K, D), or names not K unique names.
    """
    _check(masks, names)
    size = masks.detach().abs().float().cpu()
    ax = _axes(ax, 7.5, 1.3 + 0.3 * len(names))
    shown = size[:, _by_owner(size)].numpy()
    image = ax.imshow(shown, aspect="auto", cmap=_SHADES, vmin=0, vmax=float(size.max()) or 1.0)
    _cells(ax, None, names)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("dimensions, grouped by the subspace that opens them most")
    bar = ax.figure.colorbar(image, ax=ax, label="mask value", pad=0.02)
    bar.outline.set_visible(False)
    return ax


def plot_overlap(masks: Tensor, names: Sequence[str], ax: Axes | None = None) -> Axes:
    """A matrix of `analysis.mask_overlap`, how augmentations relate: the cosine of each two rows of masks.

    Args:
        masks: (K, D) finite masks.
        names: K unique names, those of the augmentations.
        ax: where to draw; by default a new pyplot figure.

    Raises:
        TypeError, ValueError: masks are not a finite floating-point (K, D), or names not K unique names.
    """
    _check(masks, names)
    overlap = mask_overlap(masks).cpu()
    side = 2.0 + 0.45 * len(names)
    ax = _axes(ax, side + 0.6, side)
    ax.imshow(overlap.numpy(), cmap=_SHADES, vmin=0, vmax=1)
    _cells(ax, names, names)
    for row, values in enumerate(overlap.tolist()):
        for column, value in enumerate(values):
            colour = "white" if value > 0.6 else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize="small")
    ax.set_title("overlap of masks (cosine)", fontsize="medium")
    return ax


def plot_sharing(masks: Tensor, names: Sequence[str], threshold: float = 0.5, ax: Axes | None = None) -> Axes:
    """How many dimensions each subspace has to itself and how many it shares, from `analysis.mask_sharing`.

    Args:
        masks: (K, D) finite masks.
        names: K unique names, those of the augmentations.
        threshold: relative to each row's largest value, from 0 to 1, as in `analysis.open_dimensions`.
        ax: where to draw; by default a new pyplot figure.

    Raises:
        TypeError, ValueError: masks are not a finite floating-point (K, D), names not K unique names, or the
            threshold is not from 0 to 1.
    """
    _check(masks, names)
    unique, shared, unused = (part.sum(dim=-1).cpu() for part in mask_sharing(masks, threshold))
    ax = _axes(ax, 6.0, 1.5 + 0.3 * len(names))
    places = list(range(len(names)))
    ax.barh(places, unique.tolist(), height=0.7, color=_COLOURS[0], label="unique")
    ax.barh(places, shared.tolist(), height=0.7, left=unique.tolist(), color=_COLOURS[4], label="shared")
    ax.set_yticks(places, names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0, masks.shape[1])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"open dimensions of {masks.shape[1]} ({int(unused)} unused by all)")
    ax.tick_params(axis="y", length=0)
    _frame(ax, "x")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2)
    return ax


def plot_uncertainty(curves: Mapping[str, tuple[Tensor, Tensor]], bins: int = 8, ax: Axes | None = None) -> Axes:
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
            bins is not an integer >= 1.
    """
    check_names("curves", list(curves))
    lines = []
    for name, (strength, log_variance) in curves.items():
        binned = uncertainty_by_strength(log_variance, strength, bins)
        _check_finite(f"log_variance of {name!r}", log_variance)
        rho = float(spearman(strength, log_variance))
        label = f"{name} (ρ = {rho:.2f})" if rho == rho else f"{name} (ρ undefined)"
        some = binned.samples > 0
        lines.append((label, binned.strength[some].tolist(), binned.log_variance[some].tolist()))
    beside = len(lines) > 6
    ax = _axes(ax, 8.5 if beside else 6.0, 4.0)
    for i, (label, x, y) in enumerate(lines):
        style = {"color": _COLOURS[i % 6], "marker": _MARKERS[i % 5]}
        ax.plot(x, y, label=label, linewidth=1.8, markersize=5, **style)
    ax.set_xlabel("augmentation strength")
    ax.set_ylabel("mean predicted log-variance")
    _frame(ax, "both")
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if beside else {"loc": "best"}
    ax.legend(frameon=not beside, **place)
    return ax


def _check(masks: Tensor, names: Sequence[str]) -> None:
    check_masks(masks)
    check_names("names", names)
    if len(names) != len(masks):
        raise ValueError(f"names: got {len(names)} names, wanted {len(masks)}, one per row of masks")
    _check_finite("masks", masks)


def _by_owner(size: Tensor) -> Tensor:
    """The (D,) order of the dimensions: by owner, and then from exclusive to shared."""
    relative = size / size.amax(dim=1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
    most, owner = relative.max(dim=0)
    second = relative.topk(min(2, len(size)), dim=0).values[-1] if len(size) > 1 else torch.zeros_like(most)
    by_margin = (second - most).argsort(stable=True)
    return by_margin[owner.masked_fill(most == 0, len(size))[by_margin].argsort(stable=True)]


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def _cells(ax: Axes, columns: Sequence[str] | None, rows: Sequence[str]) -> None:
    """Names beside the rows (and under the columns) of an image, white lines between, no frame."""
    ax.set_yticks(range(len(rows)), rows)
    ax.set_yticks([k - 0.5 for k in range(1, len(rows))], minor=True)
    ax.grid(which="minor", axis="y", color="white", linewidth=1.5)
    if columns is not None:
        ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_xticks([k - 0.5 for k in range(1, len(columns))], minor=True)
        ax.grid(which="minor", axis="x", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)


def _frame(ax: Axes, grid: str) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(axis=grid, color="#E5E5E5", linewidth=0.8)
