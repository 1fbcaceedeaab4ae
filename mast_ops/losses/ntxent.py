from torch import Tensor
from typing_extensions import override

from mast_ops.functional.contrastive import check_temperature, nt_xent
from mast_ops.losses._base import SubspaceLoss, Terms
from mast_ops.ops import Backend
from mast_ops.pairs import Pairs
from mast_ops.run import Run


class SubspaceNTXentLoss(SubspaceLoss):
    """SimCLR's NT-Xent inside every subspace, averaged over samples and subspaces.

    With K = 1 and a mask of ones it equals lightly's ``NTXentLoss``. Predicted variances are not used.

    Args:
        temperature: Divides the cosines; 0.5 as in lightly. An ``nn.Parameter`` of one element is learned.
        gather_distributed: Whether the batch is that of all ranks, see :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.
        sensitivity_param: Weight of the sensitivity of what masks leave out, see :class:`mast_ops.losses.SubspaceLoss`;
            5 by `benchmarks/evidence`.

    Raises:
        ValueError: ``temperature`` is not a positive number, or ``backend`` is unknown. On call: arguments that
            disagree.

    Source: SimCLR (arXiv 2002.05709), equation 1; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops import SubspaceNTXentLoss
        >>> z = torch.eye(4)
        >>> SubspaceNTXentLoss(temperature=0.1)(z, z, masks=torch.ones(2, 4))
        tensor(0.0003)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        *,
        gather_distributed: bool = False,
        backend: Backend = "auto",
        sensitivity_param: float = 5.0,
    ) -> None:
        super().__init__(gather_distributed=gather_distributed, backend=backend, sensitivity_param=sensitivity_param)
        check_temperature(temperature)
        self.temperature = temperature

    @override
    def terms(self, pairs: Pairs, run: Run) -> Terms:
        return {"nt_xent": (1.0, nt_xent(pairs, run, temperature=self.temperature))}
