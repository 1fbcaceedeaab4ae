"""The vocabulary of checks: every public boundary calls these, and only these, before any work.

Each message names the argument, what was got and what was wanted. Checks that read a tensor's *values* run
on CPU tensors in eager mode only, where they are free of a device synchronisation and of a graph break.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check_embedding(name: str, z: Tensor) -> None:
    """A non-empty (N, D) floating-point tensor."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name}: got {type(z).__name__}, wanted a tensor of shape (N, D)")
    if z.dim() != 2:
        raise ValueError(f"{name}: got shape {tuple(z.shape)}, wanted (N, D)")
    if not z.is_floating_point():
        raise TypeError(f"{name}: got dtype {z.dtype}, wanted a floating-point embedding")
    if z.shape[0] == 0 or z.shape[1] == 0:
        raise ValueError(f"{name}: got an empty tensor of shape {tuple(z.shape)}, wanted N >= 1 and D >= 1")


def check_views(z0: Tensor, z1: Tensor, names: tuple[str, str] = ("z0", "z1")) -> None:
    """Two embeddings of one shape, dtype and device."""
    check_embedding(names[0], z0)
    check_embedding(names[1], z1)
    for what, got, wanted in (
        ("shape", tuple(z1.shape), tuple(z0.shape)),
        ("dtype", z1.dtype, z0.dtype),
        ("device", z1.device, z0.device),
    ):
        if got != wanted:
            raise ValueError(f"{names[1]}: got {what} {got}, wanted {wanted}, that of {names[0]}")


def check_masks(masks: Tensor, z: Tensor | None = None, name: str = "masks") -> None:
    """Non-empty (K, D) masks that go with an embedding: D and device agree, and the dtype too.

    float32 masks also go with a half-precision embedding: that is what a head gives under autocast.
    """
    if not isinstance(masks, Tensor):
        raise TypeError(f"{name}: got {type(masks).__name__}, wanted a tensor of shape (K, D)")
    if masks.dim() != 2:
        raise ValueError(f"{name}: got shape {tuple(masks.shape)}, wanted (K, D)")
    if not masks.is_floating_point():
        raise TypeError(f"{name}: got dtype {masks.dtype}, wanted floating point")
    if masks.shape[0] == 0 or masks.shape[1] == 0:
        raise ValueError(f"{name}: got an empty tensor of shape {tuple(masks.shape)}, wanted K >= 1 and D >= 1")
    if z is None:
        return
    if masks.shape[1] != z.shape[1]:
        raise ValueError(
            f"{name}: got {tuple(masks.shape)}, wanted (K, {z.shape[1]}) for an embedding of shape {tuple(z.shape)}"
        )
    if masks.device != z.device:
        raise ValueError(f"{name}: got device {masks.device}, wanted {z.device}, that of the embedding")
    half = z.dtype in (torch.float16, torch.bfloat16)
    if masks.dtype != z.dtype and not (half and masks.dtype == torch.float32):
        wanted = f"{z.dtype} or torch.float32" if half else f"{z.dtype}"
        raise TypeError(f"{name}: got dtype {masks.dtype}, wanted {wanted} for an embedding of {z.dtype}")


def check_subspace(subspace: Tensor, num_samples: int, num_subspaces: int, device: torch.device) -> None:
    """An (N,) int64 index into the K subspaces, one per sample."""
    if not isinstance(subspace, Tensor):
        raise TypeError(f"subspace: got {type(subspace).__name__}, wanted an int64 tensor of shape (N,)")
    if subspace.dtype != torch.int64:
        raise TypeError(f"subspace: got dtype {subspace.dtype}, wanted torch.int64 indices of subspaces")
    if tuple(subspace.shape) != (num_samples,):
        raise ValueError(f"subspace: got shape {tuple(subspace.shape)}, wanted ({num_samples},), one per sample")
    if subspace.device != device:
        raise ValueError(f"subspace: got device {subspace.device}, wanted {device}, that of the embedding")
    if values_are_free(subspace):
        low, high = int(subspace.min()), int(subspace.max())
        if low < 0 or high >= num_subspaces:
            raise ValueError(
                f"subspace: got indices from {low} to {high}, wanted 0 to {num_subspaces - 1} for K={num_subspaces}"
            )


def check_min_samples(num_samples: int, wanted: int, why: str, name: str = "z0") -> None:
    if num_samples < wanted:
        raise ValueError(f"{name}: got N={num_samples} sample(s), wanted at least {wanted}: {why}")


def check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: got {value}, wanted a finite number > 0")


def check_non_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: got {value}, wanted a finite number >= 0")


def check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value}, wanted a number from 0 to 1")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(map(repr, choices))}")


def check_names(name: str, names: Sequence[str]) -> None:
    """At least one name; all of them non-empty strings, no two alike."""
    if len(names) == 0:
        raise ValueError(f"{name}: got no names, wanted at least one")
    for entry in names:
        if not isinstance(entry, str) or not entry:
            raise TypeError(f"{name}: got {entry!r} among the names, wanted non-empty strings")
    repeated = sorted({entry for entry in names if list(names).count(entry) > 1})
    if repeated:
        raise ValueError(f"{name}: got {', '.join(map(repr, repeated))} more than once, wanted unique names")


def values_are_free(x: Tensor) -> bool:
    """Whether looking at the values costs neither a device synchronisation nor a graph break."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
