"""What a head's checkpoint says of it beside tensors, as bytes of JSON."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from mast_ops._checks import check_choice, check_dense, check_names, check_values
from mast_ops.pairs import GRANULARITIES

_LONGEST = 1 << 20  # bytes


def encode_state(state: Mapping[str, Any]) -> Tensor:
    """Names and settings as a uint8 tensor, since averaging and checkpointing tools expect tensors.

    Args:
        state: ``subspaces``, a list of names; ``masks``, their kind and settings; ``kinds``, a table of booleans as
            lists, or None for pairs that differ in one augmentation at a time; ``uncertainty``, its granularity, or
            None.
    """
    return torch.tensor(list(json.dumps(state, allow_nan=False).encode()), dtype=torch.uint8)


def decode_state(state: object) -> dict[str, Any]:
    """The inverse of :func:`encode_state`, for bytes that come from anywhere.

    Raises:
        ValueError: They do not describe a head.
    """
    if isinstance(state, Tensor):
        try:
            check_dense("_extra_state", state)
        except TypeError as error:
            raise ValueError(str(error)) from error
        check_values("_extra_state", state)
    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.dim() != 1 or len(state) > _LONGEST:
        raise ValueError(f"_extra_state: got a {type(state).__name__}, wanted the uint8 tensor of a MaskedSubspaceHead")
    try:
        decoded = json.loads(bytes(state.tolist()), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
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
    raise ValueError(f"{text} is no JSON")
