"""What a head's checkpoint says of it beside tensors, as bytes of JSON."""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from mast_ops._checks import check_choice, check_dense, check_names, check_values, shown
from mast_ops.masks._registry import what_masks_mean
from mast_ops.pairs import GRANULARITIES

_LONGEST = 1 << 20  # bytes
_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)  # beside those of floats
_DIGITS = 400  # of a whole number
_PIECE = 1 << 10  # names of any usual length give one size: a loader that compares sizes must not speak before we do
_ROUNDING = 1e-3  # of an average of equal bytes in float32; averages of unlike heads are further from whole numbers


def encode_state(state: Mapping[str, Any]) -> bytes:
    """Names and settings as JSON.

    Args:
        state: ``subspaces``, a list of names; ``masks``, their kind and settings; ``kinds``, a table of booleans as
            lists, or None where the head was told names alone; ``uncertainty``, its granularity, or None.
    """
    text = json.dumps(state, allow_nan=False, separators=(",", ":")).encode()
    return text.ljust(-(-len(text) // _PIECE) * _PIECE)


def difference(stored: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Why weights of the one head mean something else in the other: what was got, and what was wanted."""
    if tuple(stored["subspaces"]) != tuple(own["subspaces"]):
        return f"got a head of subspaces {tuple(stored['subspaces'])}, wanted {tuple(own['subspaces'])}"
    if what_masks_mean(stored["masks"]) != what_masks_mean(own["masks"]):
        return f"got masks of {stored['masks']}, wanted {own['masks']}, those of this head"
    granularities = stored["uncertainty"], own["uncertainty"]
    if None not in granularities and granularities[0] != granularities[1]:
        return f"got uncertainty per {granularities[0]}, wanted it per {granularities[1]}, that of this head"
    return None


def decode_beside(state: object, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """As :func:`decode_state`; but what is ``own`` all but for the rounding of arithmetic is taken for it.

    An average of a head with itself, as some tools make of all of a state dict, rounds whole numbers down.
    """
    try:
        return decode_state(state)
    except ValueError:
        if _is_rounded(state, encode_state(own)):
            return own
        raise


def _is_rounded(state: object, text: bytes) -> bool:
    if not isinstance(state, Tensor) or state.dim() != 1 or len(state) != len(text) or state.is_meta:
        return False
    off = state.detach().cpu().float() - torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return bool(((off.abs() < 0.5) if state.is_floating_point() else (off == 0) | (off == -1)).all())


def decode_state(state: object) -> dict[str, Any]:
    """The inverse of :func:`encode_state`, for bytes that come from anywhere.

    Raises:
        ValueError: They do not describe a head.
    """
    if isinstance(state, Tensor):
        try:
            check_dense("_extra_state", state)
            if not state.is_floating_point() and state.dtype not in _DTYPES:
                raise TypeError(
                    f"_extra_state: got dtype {state.dtype}, wanted the uint8 tensor of a MaskedSubspaceHead"
                )
        except TypeError as error:
            raise ValueError(str(error)) from error
        check_values("_extra_state", state)
    if not isinstance(state, Tensor) or state.dim() != 1 or len(state) > _LONGEST:
        raise ValueError(f"_extra_state: got a {type(state).__name__}, wanted the uint8 tensor of a MaskedSubspaceHead")
    try:
        text = _bytes(state)
        decoded = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except (UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError("_extra_state: got bytes that are no JSON, wanted those of a MaskedSubspaceHead") from error
    if not isinstance(decoded, dict):
        raise ValueError(
            f"_extra_state: got a {type(decoded).__name__}, wanted a MaskedSubspaceHead's names and settings"
        )
    for key in ("subspaces", "masks", "kinds", "uncertainty"):
        if key not in decoded:
            raise ValueError(f"_extra_state: got no {key!r}, wanted subspaces, masks, kinds and uncertainty")
    names, masks, granularity = decoded["subspaces"], decoded["masks"], decoded["uncertainty"]
    if not isinstance(names, list):
        raise ValueError(f"_extra_state: got subspaces {names!r}, wanted a list of names")
    try:
        check_names("subspaces", names)
        if granularity is not None:
            check_choice("uncertainty", granularity, GRANULARITIES)
    except (TypeError, ValueError) as error:
        raise ValueError(f"_extra_state: {error}") from error
    if not isinstance(masks, dict) or not isinstance(masks.get("kind"), str):
        raise ValueError(f"_extra_state: got masks {masks!r}, wanted their kind and settings")
    if decoded["kinds"] is not None and not _is_table(decoded["kinds"], len(names)):
        raise ValueError(
            f"_extra_state: got kinds {decoded['kinds']!r}, wanted null or rows of {len(names)} booleans, some true"
        )
    return decoded


def _bytes(state: Tensor) -> bytes:
    """Of whole numbers of any dtype: some tools make all of a state dict floating point, or average several."""
    if state.is_floating_point():
        state = torch.where((state - state.round()).abs() < _ROUNDING, state.round(), state)
    if not ((state >= 0) & (state <= 255) & (state == state.to(torch.int64))).all():
        raise ValueError(
            f"_extra_state: got {state.dtype} of other than whole numbers from 0 to 255, wanted the uint8 tensor of a "
            "MaskedSubspaceHead: it holds names as bytes, and goes into no average with those of another head"
        )
    return bytes(state.to(torch.uint8).tolist())


def _is_table(rows: object, width: int) -> bool:
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(
            isinstance(row, list) and len(row) == width and all(isinstance(x, bool) for x in row) and any(row)
            for row in rows
        )
    )


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"_extra_state: got the number {text}, wanted finite ones")


def _finite(text: str) -> float:
    """JSON has numbers that are too large for a float, and would be infinite."""
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(shown(text))


def _whole(text: str) -> int:
    """No setting is larger, and Python does not write one of more than 4,300 digits."""
    return int(text) if len(text) <= _DIGITS else _refuse_constant(shown(text))
