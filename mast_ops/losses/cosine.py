from torch import Tensor
from typing_extensions import override

from mast_ops._checks import check_positive
from mast_ops._dials import Dial
from mast_ops.functional.distance import cosine_of_pairs
from mast_ops.functional.uncertainty import weighted_mean
from mast_ops.losses._base import SubspaceLoss, Terms
from mast_ops.ops import Backend
from mast_ops.pairs import Pairs
from mast_ops.run import Run


class SubspaceCosineLoss(SubspaceLoss):
    """Negative masked cosine similarity for BYOL and SimSiam, averaged over samples and subspaces.

    With K = 1 and a mask of ones it equals lightly's ``NegativeCosineSimilarity``. The stop-gradient is the
    caller's, as is usual there: detach the target. Predicted variances are used with ``difficulty_param`` alone; for
    their likelihood take ``UncertaintyInvarianceLoss(distance="cosine")``.

    Args:
        eps: Each norm counts as at least this; 1e-8 as in lightly.
        gather_distributed: Whether the batch is that of all ranks, see :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.
        sensitivity_param: Weight of the sensitivity of what masks leave out, see :class:`mast_ops.losses.SubspaceLoss`.
            0 by default: between a prediction and a target it would ask the prediction to be wrong. Asked of two
            predictions, by :func:`mast_ops.functional.subspace_sensitivity`, it did not pay on BYOL: without a variance
            term to spread them, a weight of 1 lost points in nearly every task (``benchmarks/evidence``).
        difficulty_param: Weight of a prediction of difficulty, by which pairs count, see
            :class:`mast_ops.losses.SubspaceLoss`.

    Raises:
        ValueError: ``eps`` is not a positive number, or ``backend`` is unknown. On call: arguments that disagree.

    Source: BYOL (arXiv 2006.07733), SimSiam (arXiv 2011.10566), equation 1; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops import SubspaceCosineLoss
        >>> prediction, target = torch.tensor([[1.0, 5.0]]), torch.tensor([[1.0, -5.0]])
        >>> SubspaceCosineLoss()(prediction, target.detach(), masks=torch.tensor([[1.0, 0.0]]))
        tensor(-1.)
    """

    eps = Dial(check_positive)
    _eps: Tensor

    def __init__(
        self,
        *,
        eps: float = 1e-8,
        gather_distributed: bool = False,
        backend: Backend = "auto",
        sensitivity_param: float = 0.0,
        difficulty_param: float = 0.0,
    ) -> None:
        super().__init__(
            gather_distributed=gather_distributed,
            backend=backend,
            sensitivity_param=sensitivity_param,
            difficulty_param=difficulty_param,
        )
        self.eps = eps

    @override
    def terms(self, pairs: Pairs, run: Run) -> Terms:
        similarity = weighted_mean(cosine_of_pairs(pairs, run, self._eps), pairs.weight, run)
        return {"negative_cosine": (1.0, -similarity)}
