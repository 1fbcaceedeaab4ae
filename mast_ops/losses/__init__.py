"""One subspace loss a file; each is a thin module over :mod:`mast_ops.functional`."""

from mast_ops.losses.barlow_twins import SubspaceBarlowTwinsLoss
from mast_ops.losses.cosine import SubspaceCosineLoss
from mast_ops.losses.multi_view import MultiViewLoss
from mast_ops.losses.ntxent import SubspaceNTXentLoss
from mast_ops.losses.sigmoid import SubspaceSigmoidLoss
from mast_ops.losses.uncertainty_invariance import UncertaintyInvarianceLoss
from mast_ops.losses.vicreg import SubspaceVICRegLoss

__all__ = [
    "MultiViewLoss",
    "SubspaceBarlowTwinsLoss",
    "SubspaceCosineLoss",
    "SubspaceNTXentLoss",
    "SubspaceSigmoidLoss",
    "SubspaceVICRegLoss",
    "UncertaintyInvarianceLoss",
]
