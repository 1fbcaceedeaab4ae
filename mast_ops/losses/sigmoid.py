import math
from typing import Never

import torch
from torch import Tensor, nn
from typing_extensions import override

from mast_ops import ops
from mast_ops._checks import check_named, check_number, check_positive
from mast_ops.functional.sigmoid import sigmoid
from mast_ops.losses._base import SubspaceLoss, Terms
from mast_ops.losses._views import observer_of, pairs_of
from mast_ops.ops import Backend
from mast_ops.output import View
from mast_ops.pairs import Pairs
from mast_ops.run import Run


class SubspaceSigmoidLoss(SubspaceLoss):
    """SigLIP's pairwise sigmoid loss inside every subspace, averaged over samples and subspaces.

    Every pair of a first view and a second view is asked by itself whether both show one sample. No softmax ties the
    candidates of an anchor together. With K = 1 and a mask of ones it equals open_clip's ``SigLipLoss`` on embeddings
    of unit length. Predicted variances are not used.

    The call takes one argument more, ``sample``: (N,) int64, what each pair shows. Pairs of one sample, or of one
    class, are positives of one another, on all ranks. By default each pair is alone with its sample.

    Args:
        scale: Start of what multiplies the cosines; 10 as in the paper. It is learned, by its logarithm ``log_scale``.
        bias: Start of what is added to them, learned as well; -10 as in the paper, since most pairs are negatives.
        gather_distributed: Whether the batch is that of all ranks, see :class:`mast_ops.losses.SubspaceLoss`.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.
        sensitivity_param: Weight of the sensitivity of what masks leave out, see :class:`mast_ops.losses.SubspaceLoss`;
            3 as in :class:`mast_ops.SubspaceNTXentLoss`. It was not measured for this loss.

    Raises:
        ValueError, TypeError: ``scale`` is not a positive number, ``bias`` is not a finite one, or ``backend`` is
            unknown. On call: arguments that disagree.

    Source: SigLIP (Zhai et al. 2023, arXiv 2303.15343), algorithm 1; the masked form is ours.

    Example:
        >>> import torch
        >>> from mast_ops import SubspaceSigmoidLoss
        >>> z = torch.eye(4)
        >>> SubspaceSigmoidLoss(scale=10.0, bias=-5.0)(z, z, masks=torch.ones(2, 4)).detach().round(decimals=4)
        tensor(0.0269)
    """

    takes_sample = True

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        *,
        gather_distributed: bool = False,
        backend: Backend = "auto",
        sensitivity_param: float = 3.0,
    ) -> None:
        super().__init__(gather_distributed=gather_distributed, backend=backend, sensitivity_param=sensitivity_param)
        self._initial = math.log(check_positive("scale", scale)), check_number("bias", bias)
        self.log_scale, self.bias = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts anew, as in the constructor: after ``to_empty``, for example."""
        for parameter, value in zip((self.log_scale, self.bias), self._initial, strict=True):
            parameter.fill_(value)

    @override
    @ops.raised_by_all
    def forward(  # type: ignore[override]  # one argument more, by keyword
        self,
        out0: View,
        out1: View,
        *unnamed: Never,
        masks: Tensor | None = None,
        kinds: Tensor | None = None,
        kind: Tensor | None = None,
        return_components: bool = False,
        sample: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        check_named(self, unnamed, "out0, out1")
        pairs = pairs_of(out0, out1, masks=masks, kinds=kinds, kind=kind, sample=sample)
        return self.of_call(pairs, return_components, observer_of(out0, out1))

    @override
    def terms(self, pairs: Pairs, run: Run) -> Terms:
        log_scale, bias = run.averaged(self.log_scale), run.averaged(self.bias)
        return {"sigmoid": (1.0, sigmoid(pairs, run, scale=log_scale.exp(), bias=bias))}
