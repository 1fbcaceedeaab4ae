"""Parameterisations by name, and as a checkpoint describes them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mast_ops._checks import check_choice
from mast_ops.masks.allocated import AllocatedMasks
from mast_ops.masks.binary import BinaryMasks
from mast_ops.masks.hard_concrete import HardConcreteMasks
from mast_ops.masks.normalized import NormalizedMasks
from mast_ops.masks.parameterization import MaskParameterization
from mast_ops.masks.smooth import ReLUMasks, SigmoidMasks, SoftplusMasks

MASKS: dict[str, type[MaskParameterization]] = {
    "sigmoid": SigmoidMasks,
    "relu": ReLUMasks,
    "softplus": SoftplusMasks,
    "hard_concrete": HardConcreteMasks,
    "normalized": NormalizedMasks,
    "binary": BinaryMasks,
    "allocated": AllocatedMasks,
}


def make_masks(masks: str | MaskParameterization, num_subspaces: int, dim: int) -> MaskParameterization:
    """A parameterisation by name with its defaults, or a ready one after a check of its shape."""
    if isinstance(masks, MaskParameterization):
        got = (masks.num_subspaces, masks.dim)
        if got != (num_subspaces, dim):
            raise ValueError(f"masks: got (K, D) = {got}, wanted {(num_subspaces, dim)}")
        return masks
    check_choice("masks", masks, tuple(MASKS))
    return MASKS[masks](num_subspaces, dim)  # type: ignore[call-arg]


def describe_masks(masks: MaskParameterization) -> dict[str, Any]:
    """Kind and settings as a checkpoint carries them. The kind of a class of the user's own is its name."""
    kinds = [name for name, kind in MASKS.items() if type(masks) is kind]
    return {"kind": kinds[0] if kinds else type(masks).__qualname__, **masks.settings()}


def what_masks_mean(description: Mapping[str, Any]) -> dict[str, Any]:
    """Of a description that which weights depend on: a temperature is of training alone, and may follow a schedule."""
    return {key: x for key, x in description.items() if key != "temperature" or description["kind"] not in MASKS}


def masks_from_description(description: Mapping[str, Any], weight: Tensor) -> MaskParameterization | None:
    """What :func:`describe_masks` described, with this ``weight``; None for a class of the user's own.

    Raises:
        ValueError, TypeError: It describes nothing that could be.
    """
    settings = dict(description)
    kind = MASKS.get(settings.pop("kind"))
    if kind is None:
        return None
    with torch.device("meta"):  # nothing is drawn, and the settings alone are checked: of one row, as many cost time
        masks = kind(1, weight.shape[1], **settings)
    masks.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)  # a buffer's place it takes as well
    return masks.eval()
