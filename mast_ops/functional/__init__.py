"""Pure functions under every module: plain tensors in, plain tensors out."""

from mast_ops.functional.contrastive import subspace_info_nce, subspace_nt_xent, subspace_sup_con
from mast_ops.functional.difficulty import pair_difficulty
from mast_ops.functional.distance import masked_cosine_similarity, masked_distance
from mast_ops.functional.moments import (
    subspace_barlow_twins,
    subspace_covariance,
    subspace_moments,
    subspace_variance,
)
from mast_ops.functional.sensitivity import explained_variance, subspace_sensitivity
from mast_ops.functional.sigmoid import subspace_sigmoid
from mast_ops.functional.sparsity import (
    mask_coverage,
    mask_entropy,
    mask_expected_l0,
    mask_hoyer,
    mask_l1,
    mask_overlap,
)
from mast_ops.functional.uncertainty import combine_log_variance, uncertainty_invariance

__all__ = [
    "combine_log_variance",
    "explained_variance",
    "mask_coverage",
    "mask_entropy",
    "mask_expected_l0",
    "mask_hoyer",
    "mask_l1",
    "mask_overlap",
    "masked_cosine_similarity",
    "masked_distance",
    "pair_difficulty",
    "subspace_barlow_twins",
    "subspace_covariance",
    "subspace_info_nce",
    "subspace_moments",
    "subspace_nt_xent",
    "subspace_sensitivity",
    "subspace_sigmoid",
    "subspace_sup_con",
    "subspace_variance",
    "uncertainty_invariance",
]
