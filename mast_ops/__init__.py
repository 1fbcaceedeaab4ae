"""Masked Augmentation Subspace Training (MAST, ICLR 2023, arXiv 2303.03679) for PyTorch."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from mast_ops import analysis, functional
from mast_ops.features import SubspaceFeatures
from mast_ops.head import MaskedSubspaceHead
from mast_ops.losses import (
    MultiViewLoss,
    SubspaceBarlowTwinsLoss,
    SubspaceCosineLoss,
    SubspaceNTXentLoss,
    SubspaceSigmoidLoss,
    SubspaceVICRegLoss,
    UncertaintyInvarianceLoss,
)
from mast_ops.masks import (
    AllocatedMasks,
    BinaryMasks,
    HardConcreteMasks,
    NormalizedMasks,
    ReLUMasks,
    SigmoidMasks,
    SoftplusMasks,
)
from mast_ops.metrics import subspace_metrics
from mast_ops.optim import param_groups
from mast_ops.output import SubspaceOutput
from mast_ops.regularizers import MaskCoverage, MaskEntropy, MaskExpectedL0, MaskHoyer, MaskL1, MaskOverlap
from mast_ops.schedules import CosineSchedule, LinearSchedule, Schedule
from mast_ops.views import FactorizedViews, ViewPair

if TYPE_CHECKING:
    from mast_ops import checkpoints as checkpoints
    from mast_ops import lightning as lightning
    from mast_ops import plots as plots
    from mast_ops import recipes as recipes

__version__ = "0.1.0"

__all__ = [
    "AllocatedMasks",
    "BinaryMasks",
    "CosineSchedule",
    "FactorizedViews",
    "HardConcreteMasks",
    "LinearSchedule",
    "MaskCoverage",
    "MaskEntropy",
    "MaskExpectedL0",
    "MaskHoyer",
    "MaskL1",
    "MaskOverlap",
    "MaskedSubspaceHead",
    "MultiViewLoss",
    "NormalizedMasks",
    "ReLUMasks",
    "Schedule",
    "SigmoidMasks",
    "SoftplusMasks",
    "SubspaceBarlowTwinsLoss",
    "SubspaceCosineLoss",
    "SubspaceFeatures",
    "SubspaceNTXentLoss",
    "SubspaceOutput",
    "SubspaceSigmoidLoss",
    "SubspaceVICRegLoss",
    "UncertaintyInvarianceLoss",
    "ViewPair",
    "analysis",
    "functional",
    "param_groups",
    "subspace_metrics",
]


if not TYPE_CHECKING:  # or any name at all would be taken for one of ours

    def __getattr__(name: str) -> ModuleType:
        """``mast_ops.plots`` and others that want more packages, or are seldom wanted, at their first use."""
        if name in ("checkpoints", "lightning", "plots", "recipes"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
