"""The fused core: each operator for all rows of a table of masks at once, registered with torch.library.

Every function here takes checked tensors and a backend, asks :mod:`mast_ops.ops.backend` what runs it, and calls
the kernels of that name.
"""

from mast_ops.kernels.contract import Contrast, Gap, Table
from mast_ops.ops.agreement import agree, raised_by_all
from mast_ops.ops.backend import BACKENDS, Backend, asked_for, check_backend
from mast_ops.ops.collectives import after, all_reduce, averaged, rank, ranks
from mast_ops.ops.contrast import contrast, contrast_mean
from mast_ops.ops.flops import count_flops
from mast_ops.ops.moments import off_diagonal
from mast_ops.ops.pairs import distance, gap_sums, products
from mast_ops.ops.sigmoid import sigmoid, sigmoid_mean

__all__ = [
    "BACKENDS",
    "Backend",
    "Contrast",
    "Gap",
    "Table",
    "after",
    "agree",
    "all_reduce",
    "asked_for",
    "averaged",
    "check_backend",
    "contrast",
    "contrast_mean",
    "distance",
    "gap_sums",
    "off_diagonal",
    "products",
    "raised_by_all",
    "rank",
    "ranks",
    "sigmoid",
    "sigmoid_mean",
]

count_flops()
