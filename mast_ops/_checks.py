"""The vocabulary of checks: every public boundary calls these, and only these, before any work.

Each message names the argument, what was got and what was wanted. A check that reads a tensor's *values*
reads them only where that costs neither a device synchronisation nor a graph break; elsewhere it asserts on
the device.
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
    check_alike(names[1], z1, names[0], z0)


def check_alike(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """One shape, dtype and device."""
    for what, got, wanted in (
        ("shape", tuple(tensor.shape), tuple(other.shape)),
        ("dtype", tensor.dtype, other.dtype),
        ("device", tensor.device, other.device),
    ):
        if got != wanted:
            raise ValueError(f"{name}: got {what} {got}, wanted {wanted}, that of {other_name}")


def check_masks(masks: Tensor, z: Tensor | None = None, name: str = "masks") -> None:
    """Non-empty (K, D) floating-point masks; with an embedding, of its D, device and dtype."""
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
    _check_companion(name, masks, z)


def check_index(name: str, index: Tensor, num_samples: int, device: torch.device) -> None:
    """An (N,) int64 tensor, one entry per sample; any values."""
    if not isinstance(index, Tensor):
        raise TypeError(f"{name}: got {type(index).__name__}, wanted an int64 tensor of shape (N,)")
    if index.dtype != torch.int64:
        raise TypeError(f"{name}: got dtype {index.dtype}, wanted torch.int64")
    if tuple(index.shape) != (num_samples,):
        raise ValueError(f"{name}: got shape {tuple(index.shape)}, wanted ({num_samples},), one per sample")
    if index.device != device:
        raise ValueError(f"{name}: got device {index.device}, wanted {device}, that of the embedding")


def check_log_variance(name: str, log_variance: Tensor, z: Tensor) -> None:
    """An (N, 1), (N, K) or (N, D) floating-point tensor beside an (N, D) embedding."""
    check_embedding(name, log_variance)
    if log_variance.shape[0] != z.shape[0]:
        raise ValueError(
            f"{name}: got shape {tuple(log_variance.shape)}, wanted {z.shape[0]} rows, one per sample of the embedding"
        )
    _check_companion(name, log_variance, z)


def check_weight(name: str, weight: Tensor, z: Tensor) -> None:
    """An (N,) floating-point tensor of numbers >= 0 beside an (N, D) embedding."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name}: got {type(weight).__name__}, wanted a tensor of shape (N,)")
    if tuple(weight.shape) != (z.shape[0],):
        raise ValueError(f"{name}: got shape {tuple(weight.shape)}, wanted ({z.shape[0]},), one per sample")
    _check_companion(name, weight, z)
    negative = (weight < 0).any()  # NaN is let through, to be seen in what comes out
    if values_are_free(weight):
        if negative:
            raise ValueError(f"{name}: got {float(weight.min())} among its entries, wanted numbers >= 0")
    else:
        torch._assert_async(~negative, f"{name}: got a negative entry, wanted numbers >= 0")


def _check_companion(name: str, tensor: Tensor, z: Tensor) -> None:
    """On the embedding's device, and of its dtype; float32 also goes with half precision, as under autocast."""
    if tensor.device != z.device:
        raise ValueError(f"{name}: got device {tensor.device}, wanted {z.device}, that of the embedding")
    half = z.dtype in (torch.float16, torch.bfloat16)
    if tensor.dtype != z.dtype and not (half and tensor.dtype == torch.float32):
        wanted = f"{z.dtype} or torch.float32" if half else f"{z.dtype}"
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wanted {wanted} for an embedding of {z.dtype}")


def check_min_samples(num_samples: int, wanted: int, why: str, name: str = "z0") -> None:
    if num_samples < wanted:
        raise ValueError(f"{name}: got N={num_samples} sample(s), wanted at least {wanted}: {why}")


def check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value}, wanted a finite number > 0")


def check_non_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
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
