"""What goes into views and comes out of augmentations, checked: one image, or a batch of them."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mast_ops._checks import check_dense
from mast_ops.views._draws import devices_of, is_image


def check_input(x: Any, batched: bool, name: str = "x") -> None:
    """What an augmentation can be called with; a batch of a dictionary says which entry it could be."""
    wanted = "one non-empty image (PIL, array or tensor up to (C, H, W)), or batched=True for a batch"
    if batched:
        wanted = "a non-empty tensor of shape (N, C, H, W), or batched=False for one image"
    if not (isinstance(x, Tensor) if batched else is_image(x)):
        entry = _entry(x, batched)
        inside = "" if entry is None else f"; its entry {entry!r} is one: views(batch[{entry!r}])"
        raise TypeError(f"{name}: got {type(x).__name__}, wanted {wanted}{inside}")
    if isinstance(x, Tensor):
        check_dense(name, x)
    elif getattr(getattr(x, "dtype", None), "kind", "f") not in "biufc":
        raise TypeError(f"{name}: got an array of {x.dtype}, wanted one of numbers")
    shape = tuple(getattr(x, "shape", x.size))
    if (len(shape) != 4 if batched else not 1 <= len(shape) <= 3) or 0 in shape:
        raise ValueError(f"{name}: got shape {shape}, wanted {wanted}")
    for device in devices_of(x):
        module = getattr(torch, device.type, None)
        if not all(hasattr(module, call) for call in ("manual_seed", "get_rng_state", "set_rng_state")):
            raise ValueError(f"{name}: got a tensor on {device}, wanted one on a device whose generator can be seeded")


def _entry(x: Any, batched: bool) -> Any:
    """The key, or place, of the image in what data sets give beside labels; None where there is none."""
    entries = x.items() if isinstance(x, Mapping) else enumerate(x) if isinstance(x, list | tuple) else ()
    found: dict[Any, int] = {}
    for key, value in entries:
        if is_image(value):
            with contextlib.suppress(TypeError, ValueError):
                check_input(value, batched)
                found[key] = len(getattr(value, "shape", (0, 0)))
    return max(found, key=lambda key: found[key]) if found else None


def check_rows(name: str, y: object, num_rows: int, like: Tensor | None = None) -> None:
    """A tensor of so many rows, and with samples like those of another draw."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}: got {type(y).__name__} as its result, wanted a tensor of a batch's samples")
    if y.shape[:1] != (num_rows,):
        raise ValueError(f"{name}: got {num_rows} rows and gave shape {tuple(y.shape)}, wanted as many rows")
    if like is not None and (y.shape[1:] != like.shape[1:] or y.dtype != like.dtype):
        got = " and ".join(f"{tuple(z.shape[1:])} {z.dtype}" for z in (like, y))
        raise ValueError(f"{name}: got samples of {got} under two seeds, wanted one shape and dtype")


def check_one_type(views: Sequence[Any]) -> None:
    """Of all views: one type of image, and of numbers in it."""
    kinds = [str(getattr(view, "dtype", getattr(view, "mode", ""))) for view in views]
    for view, kind in zip(views, kinds, strict=True):
        if type(view) is not type(views[0]) or kind != kinds[0]:
            got = f"{type(views[0]).__name__} of {kinds[0]} and {type(view).__name__} of {kind}"
            raise ValueError(f"augmentations: got views that are {got} by their seeds, wanted one type of image")


def check_item(name: str, y: Any) -> None:
    shape = tuple(getattr(y, "shape", ()))
    if len(shape) > 3:
        raise ValueError(
            f"{name}: got one image and gave shape {shape}, wanted one of up to three axes (kornia: keepdim=True), "
            "or batched=True for augmentations of a batch"
        )
