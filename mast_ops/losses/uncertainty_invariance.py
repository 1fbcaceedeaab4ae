from typing import ClassVar

from typing_extensions import override

from mast_ops._checks import check_choice, check_flag
from mast_ops._dials import Checks
from mast_ops.functional.uncertainty import DISTANCES, Distance, weighted_invariance
from mast_ops.losses._base import SubspaceLoss, Terms
from mast_ops.ops import Backend
from mast_ops.pairs import Pairs
from mast_ops.run import Run


class UncertaintyInvarianceLoss(SubspaceLoss):
    """Masked invariance of positive pairs, reweighted by the variance that the head predicts.

    Without predicted variance exactly the mean-squared error of the masked views, over N, K and D; with masks
    of ones exactly VICReg's invariance term. With it, a Gaussian negative log-likelihood, in which a pair's
    variance is the sum of its two views' (independent Gaussians). See
    :func:`mast_ops.functional.uncertainty_invariance` for the formula.

    Alone it collapses, as any invariance does: use it beside variance and covariance
    (:class:`mast_ops.SubspaceVICRegLoss` does), or a predictor and a momentum target.

    Args:
        distance: ``"squared"`` (default, the paper's VICReg baseline) or ``"cosine"`` (BYOL, SimSiam).
        normalize: Only weigh pairs against one another, with weights that average 1 over the batch, and train the
            prediction apart; by default the bare likelihood. Worth it beside terms that are weighted against a
            mean-squared error, as in VICReg.
        gather_distributed: Whether the batch is that of all ranks, see :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.
        difficulty_param: Weight of the prediction of difficulty in place of the likelihood, see
            :class:`mast_ops.losses.SubspaceLoss`.

    Raises:
        ValueError: Unknown ``distance`` or ``backend``. On call: arguments that disagree.

    Source: the paper's abstract (arXiv 2303.03679) for the reweighting; the likelihood is ours.

    Example:
        >>> import torch
        >>> from mast_ops import UncertaintyInvarianceLoss
        >>> z0, z1, masks = torch.zeros(4, 8), torch.ones(4, 8), torch.ones(3, 8)
        >>> UncertaintyInvarianceLoss()(z0, z1, masks=masks, kind=torch.tensor([0, 1, 2, 0]))
        tensor(1.)
    """

    checks: ClassVar[Checks] = {"normalize": check_flag, "distance": lambda name, x: check_choice(name, x, DISTANCES)}

    def __init__(
        self,
        *,
        distance: Distance = "squared",
        normalize: bool = False,
        gather_distributed: bool = False,
        backend: Backend = "auto",
        difficulty_param: float = 0.0,
    ) -> None:
        super().__init__(gather_distributed=gather_distributed, backend=backend, difficulty_param=difficulty_param)
        self.distance, self.normalize = distance, normalize

    @override
    def terms(self, pairs: Pairs, run: Run) -> Terms:
        value = weighted_invariance(pairs, run, distance=self.distance, normalize=self.normalize)
        return {"invariance": (1.0, value)}
