"""The vocabulary of checks: every public boundary calls these, and only these, before any work.

Each message names the argument, what was got and what was wanted. A check that reads a tensor's *values*
reads them only where that costs neither a device synchronisation nor a graph break; elsewhere it asserts on
the device.
"""

import math
import numbers
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, KeysView, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import UnionType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

_MOST = 2**63 - 1  # what torch counts to
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_embedding(name: str, z: Tensor) -> None:
    """A non-empty (N, D) floating-point tensor."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name}: got {type(z).__name__}, wanted a tensor of shape (N, D)")
    check_dense(name, z)
    if z.dim() != 2:
        raise ValueError(f"{name}: got shape {tuple(z.shape)}, wanted (N, D)")
    if not z.is_floating_point():
        raise TypeError(f"{name}: got dtype {z.dtype}, wanted a floating-point embedding")
    if z.shape[0] == 0 or z.shape[1] == 0:
        raise ValueError(f"{name}: got an empty tensor of shape {tuple(z.shape)}, wanted N >= 1 and D >= 1")


def check_views(z0: Tensor, z1: Tensor, names: tuple[str, str] = ("z0", "z1")) -> None:
    """Two embeddings of one shape and device, and of dtypes that go together."""
    check_embedding(names[0], z0)
    check_embedding(names[1], z1)
    check_alike(names[1], z1, names[0], z0)


def check_named(loss: object, unnamed: tuple[object, ...], first: str) -> None:
    """Nothing by position but what comes ``first``: Python would say how many were given, and not what was wanted."""
    if unnamed:
        raise TypeError(
            f"{type(loss).__name__}: got {shown(unnamed[0])} by position after {first}, "
            f"wanted it by name, as in loss({first}, kind=kind)"
        )


def check_alike(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """One shape and device, and dtypes that go together."""
    for what, got, wanted in (
        ("shape", tuple(tensor.shape), tuple(other.shape)),
        ("device", tensor.device, other.device),
    ):
        if got != wanted:
            raise ValueError(f"{name}: got {what} {got}, wanted {wanted}, that of {other_name}")
    if not _go_together(tensor.dtype, other.dtype):
        raise ValueError(
            f"{name}: got dtype {tensor.dtype}, "
            f"wanted {_wanted_beside(other.dtype)} beside {other_name} of {other.dtype}"
        )


def _go_together(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Alike, or any two of float16, bfloat16 and float32, all of which run in float32, as autocast mixes them.

    float64 goes with itself: beside float32 it is a mistake more often than a wish.
    """
    return dtype == other or (dtype in _FLOATS[:3] and other in _FLOATS[:3])


def _wanted_beside(dtype: torch.dtype) -> str:
    return "float16, bfloat16 or float32" if dtype in _FLOATS[:3] else str(dtype)


def check_dense(name: str, tensor: Tensor) -> None:
    """Strided, no nest of tensors, and of a dtype that arithmetic takes: float16, bfloat16, float32 or float64."""
    if tensor.is_nested or tensor.layout != torch.strided:
        raise TypeError(f"{name}: got {'nested' if tensor.is_nested else tensor.layout}, wanted a dense tensor")
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.dtype not in _FLOATS):
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wanted float16, bfloat16, float32 or float64")


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """One that arithmetic takes: float16, bfloat16, float32 or float64."""
    if dtype not in _FLOATS:
        raise TypeError(f"{name}: got {dtype}, wanted float16, bfloat16, float32 or float64")


def check_floats(name: str, tensor: Tensor) -> None:
    """A dense floating-point tensor of any shape."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {shown(tensor)}, wanted a floating-point tensor")
    check_dense(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wanted floating point")


def check_values(name: str, tensor: Tensor) -> None:
    """Values that can be read: none on the meta device."""
    if tensor.is_meta:
        raise ValueError(f"{name}: got a tensor on the meta device, wanted one with values")


def check_masks(masks: Tensor, z: Tensor | None = None, name: str = "masks") -> None:
    """Non-empty (K, D) floating-point masks; with an embedding, of its D and device, and a dtype that goes with it."""
    if not isinstance(masks, Tensor):
        raise TypeError(f"{name}: got {type(masks).__name__}, wanted a tensor of shape (K, D)")
    check_dense(name, masks)
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
    check_dense(name, index)
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
    check_dense(name, weight)
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
    """On the embedding's device, and of a dtype that goes with its own."""
    if tensor.device != z.device:
        raise ValueError(f"{name}: got device {tensor.device}, wanted {z.device}, that of the embedding")
    if not _go_together(tensor.dtype, z.dtype):
        wanted = _wanted_beside(z.dtype)
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wanted {wanted} beside an embedding of {z.dtype}")


def check_min_samples(num_samples: int, wanted: int, why: str, name: str = "z0") -> None:
    if num_samples < wanted:
        raise ValueError(f"{name}: got N={num_samples} sample(s), wanted at least {wanted}: {why}")


def check_number(name: str, value: float) -> float:
    """A finite number, Python's or NumPy's, and no bool. Returned as Python's, which JSON can write."""
    return _check_range(name, value, "a finite number", lambda x: -math.inf < x < math.inf)


def check_positive(name: str, value: float) -> float:
    """A finite number > 0; see :func:`check_number`."""
    return _check_range(name, value, "a finite number > 0", lambda x: 0 < x < math.inf)


def check_non_negative(name: str, value: float) -> float:
    """A finite number >= 0; see :func:`check_number`."""
    return _check_range(name, value, "a finite number >= 0", lambda x: 0 <= x < math.inf)


def check_fraction(name: str, value: float) -> float:
    """A number from 0 to 1; see :func:`check_number`."""
    return _check_range(name, value, "a number from 0 to 1", lambda x: 0 <= x <= 1)


def check_share(name: str, value: float) -> float:
    """A number strictly between 0 and 1; see :func:`check_number`."""
    return _check_range(name, value, "a number strictly between 0 and 1", lambda x: 0 < x < 1)


def _check_range(name: str, value: float, wanted: str, inside: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real | torch.SymInt | torch.SymFloat):
        raise TypeError(f"{name}: got {shown(value)}, wanted {wanted}")
    number = value
    if type(value) is not float and isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not inside(number):
        raise ValueError(f"{name}: got {shown(value)}, wanted {wanted}")
    return number


def check_count(name: str, value: int, least: int = 1) -> int:
    """A whole number from ``least`` on, Python's or NumPy's, and no bool. Returned as Python's."""
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, numbers.Integral | torch.SymInt)):
        raise TypeError(f"{name}: got {shown(value)}, wanted a whole number >= {least}")
    if value < least:
        raise ValueError(f"{name}: got {value}, wanted at least {least}")
    if isinstance(value, torch.SymInt):
        return value
    if value > _MOST:
        raise ValueError(f"{name}: got {shown(value)}, wanted at most {_MOST}")
    return int(value)


def check_flag(name: str, value: bool) -> None:
    """True or False, and nothing that merely counts as one of them."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {shown(value)}, wanted True or False")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    wanted = f"wanted one of {', '.join(map(repr, choices))}"
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {shown(value)}, {wanted}")
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, {wanted}")


def check_names(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """At least one name; all of them strings with something to read, no two alike. Returned as a tuple.

    Any order of names will do, see :func:`listed`.
    """
    entries = listed(names)
    if entries is None or isinstance(names, Tensor):
        raise TypeError(f"{name}: got {shown(names)}, wanted a sequence of names")
    if not entries:
        raise ValueError(f"{name}: got no names, wanted at least one")
    for entry in entries:
        if not isinstance(entry, str):
            raise TypeError(f"{name}: got {shown(entry)} among the names, wanted strings")
        if not entry.strip():
            raise ValueError(f"{name}: got {entry!r} among the names, wanted non-empty strings")
    repeated = sorted(entry for entry, times in Counter(entries).items() if times > 1)
    if repeated:
        raise ValueError(f"{name}: got {', '.join(map(repr, repeated))} more than once, wanted unique names")
    return tuple(entries)


def listed(value: object) -> list[Any] | None:
    """Whatever has entries in some order: a list, keys of a dictionary, an array, a generator, numbers in a tensor.

    None for the rest: a bare string, a set, which has no order, a named tuple, which is one thing, or a single number.
    """
    if isinstance(value, list | tuple | nn.ModuleDict) and not hasattr(value, "_fields"):
        return list(value)
    if isinstance(value, str | bytes | bytearray | tuple | nn.Module):
        return None
    if not isinstance(value, Iterable) or (isinstance(value, Set) and not isinstance(value, KeysView)):
        return None
    if getattr(value, "ndim", 1) != 1:  # a table, or an array of no dimension, which cannot be gone through
        return None
    return value.tolist() if isinstance(value, Tensor) else list(value)


def check_is(name: str, value: object, kind: type | UnionType, wanted: str) -> None:
    """An instance of a class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {shown(value)}, wanted {wanted}")


def shown(value: object) -> str:
    """A value in an error: itself where it is short, else its type."""
    is_scalar = getattr(value, "shape", None) == () and type(value).__name__.startswith("bool")  # NumPy's
    if value is None or is_scalar or isinstance(value, bool | str | bytes | numbers.Number):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def warn_user(message: str) -> None:
    """Shown at the line of the user's that led here, through whatever of ours and torch's."""
    depth = 1
    while str(sys._getframe(depth).f_globals.get("__name__")).startswith(("mast_ops.", "torch.")):
        depth += 1
    warnings.warn(message, UserWarning, stacklevel=depth + 1)


def refuse_script(module: nn.Module) -> NoReturn:
    """As ``__prepare_scriptable__``: torch.jit.script's own words are of our source, which it cannot compile."""
    raise TypeError(
        f"torch.jit.script: got {type(module).__name__}, wanted torch.compile; or to save a head or SubspaceFeatures, "
        "torch.export.export or torch.jit.trace"
    )


def is_traced() -> bool:
    """Whether torch.jit.trace is at work: sizes are then tensors."""
    return not torch.compiler.is_compiling() and bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def traced_quietly() -> AbstractContextManager[None]:
    """Without what torch.jit.trace warns of at checks of ours: what they refuse, they refuse of every batch."""
    return _without_warnings() if is_traced() else nullcontext()


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit._trace.TracerWarning, module=r"mast_ops\.")
        yield


def values_are_free(x: Tensor) -> bool:
    """Whether looking at the values costs neither a device synchronisation nor a graph break."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
