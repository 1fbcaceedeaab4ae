"""Parameterisations of K masks over D dimensions. Calling one gives the (K, D) masks."""

from mast_ops.masks._registry import MASKS, describe_masks, make_masks, masks_from_description
from mast_ops.masks.allocated import AllocatedMasks
from mast_ops.masks.binary import BinaryMasks
from mast_ops.masks.hard_concrete import HardConcreteMasks
from mast_ops.masks.normalized import NormalizedMasks
from mast_ops.masks.parameterization import MaskParameterization
from mast_ops.masks.smooth import ReLUMasks, SigmoidMasks, SoftplusMasks

__all__ = [
    "MASKS",
    "AllocatedMasks",
    "BinaryMasks",
    "HardConcreteMasks",
    "MaskParameterization",
    "NormalizedMasks",
    "ReLUMasks",
    "SigmoidMasks",
    "SoftplusMasks",
    "describe_masks",
    "make_masks",
    "masks_from_description",
]
