"""What goes into views and comes out of augmentations, checked: one image, or a batch of them."""

from typing import Any

import torch
from torch import Tensor

from mast_ops.views._draws import devices_of, is_image


def check_input(x: Any, batched: bool) -> None:
    wanted = "one non-empty image (PIL, array or tensor up to (C, H, W)), or batched=True for a batch"
    if batched:
        wanted = "a non-empty tensor of shape (N, C, H, W), or batched=False for one image"
    if not (isinstance(x, Tensor) if batched else is_image(x)):
        raise TypeError(f"x: got {type(x).__name__}, wanted {wanted}")
    shape = tuple(getattr(x, "shape", x.size))
    if (len(shape) != 4 if batched else len(shape) > 3) or 0 in shape:
        raise ValueError(f"x: got shape {shape}, wanted {wanted}")
    for device in devices_of(x):
        module = getattr(torch, device.type, None)
        if not all(hasattr(module, call) for call in ("manual_seed", "get_rng_state", "set_rng_state")):
            raise ValueError(f"x: got a tensor on {device}, wanted one on a device whose generator can be seeded")


def check_rows(name: str, y: object, num_rows: int, like: Tensor | None = None) -> None:
    """A tensor of so many rows, and with samples like those of another draw."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}: got {type(y).__name__} as its result, wanted a tensor of a batch's samples")
    if y.shape[:1] != (num_rows,):
        raise ValueError(f"{name}: got {num_rows} rows and gave shape {tuple(y.shape)}, wanted as many rows")
    if like is not None and (y.shape[1:] != like.shape[1:] or y.dtype != like.dtype):
        got = " and ".join(f"{tuple(z.shape[1:])} {z.dtype}" for z in (like, y))
        raise ValueError(f"{name}: got samples of {got} under two seeds, wanted one shape and dtype")


def check_item(name: str, y: Any) -> None:
    shape = tuple(getattr(y, "shape", ()))
    if len(shape) > 3:
        raise ValueError(
            f"{name}: got one image and gave shape {shape}, wanted one of up to three axes (kornia: keepdim=True), "
            "or batched=True for augmentations of a batch"
        )
