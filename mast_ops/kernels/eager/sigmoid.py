"""All pairs, each by itself: the pairwise sigmoid."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops.kernels.contract import Contrast
from mast_ops.kernels.eager.contrast import scores


def losses(problem: Contrast, bias: Tensor) -> Tensor:
    """``sum_j softplus(-l_ij (s_ij + bias))``, l_ij = 1 for positives and -1 for all others."""
    assert problem.sample1 is not None
    sign = torch.where(problem.sample0[:, None] == problem.sample1, 1, -1)
    of_anchors = [-F.logsigmoid(sign * (score + bias)).sum(1) for score in scores(problem)]
    return of_anchors[0] if problem.row is not None else torch.stack(of_anchors, 1)
