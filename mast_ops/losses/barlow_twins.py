from torch import Tensor
from typing_extensions import override

from mast_ops._checks import check_non_negative
from mast_ops._dials import Dial
from mast_ops.functional.moments import barlow_twins
from mast_ops.losses._base import SubspaceLoss, Terms
from mast_ops.ops import Backend
from mast_ops.pairs import Pairs
from mast_ops.run import Run


class SubspaceBarlowTwinsLoss(SubspaceLoss):
    """Barlow Twins inside every subspace, averaged over subspaces.

    With K = 1 and a mask of ones it equals lightly's ``BarlowTwinsLoss``. Predicted variances are not used.

    Args:
        lambda_param: Weight of the redundancy; 5e-3 as in the paper and lightly.
        gather_distributed: Whether the batch is that of all ranks, see :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Raises:
        ValueError: ``lambda_param`` is negative, or ``backend`` is unknown. On call: arguments that disagree,
            or fewer than two samples.

    Source: Barlow Twins (arXiv 2103.03230), equation 1; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops import SubspaceBarlowTwinsLoss
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> SubspaceBarlowTwinsLoss()(z, z, masks=torch.ones(1, 2)).round(decimals=4)
        tensor(0.0100)
    """

    lambda_param = Dial(check_non_negative)
    _lambda_param: Tensor

    def __init__(
        self, lambda_param: float = 5e-3, gather_distributed: bool = False, *, backend: Backend = "auto"
    ) -> None:
        super().__init__(gather_distributed=gather_distributed, backend=backend)
        self.lambda_param = lambda_param

    @override
    def terms(self, pairs: Pairs, run: Run) -> Terms:
        invariance, redundancy = barlow_twins(pairs, run)
        return {"invariance": (1.0, invariance.mean()), "redundancy": (self._lambda_param, redundancy.mean())}
