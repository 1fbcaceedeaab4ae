from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from mast_ops._checks import check_choice, check_flag, check_non_negative, check_positive
from mast_ops._dials import Checks, Dial
from mast_ops.functional.moments import check_batch, moments
from mast_ops.functional.uncertainty import pair_weights, weighted_invariance
from mast_ops.losses._base import SubspaceLoss, Terms
from mast_ops.ops import Backend
from mast_ops.pairs import Pairs
from mast_ops.run import Run

Scope = Literal["embedding", "subspace"]


class SubspaceVICRegLoss(SubspaceLoss):
    """VICReg inside K subspaces, MAST's own objective: masked invariance, variance and covariance.

    With K = 1, a mask of ones and no predicted variance it equals lightly's ``VICRegLoss``.

    Args:
        lambda_param: Weight of the invariance; 25 as in VICReg and MAST.
        mu_param: Weight of the variance hinge; 25 likewise.
        nu_param: Weight of the covariance; 1 likewise.
        gather_distributed: Whether the batch is that of all ranks, see :class:`mast_ops.losses.SubspaceLoss`.
        eps: Under the hinge's square root.
        scope: Where variance and covariance act: on the whole ``"embedding"`` (default: dimensions that no
            mask claims stay alive, so they can keep what the augmentations change), or inside every
            ``"subspace"``, which pushes masks open, averaged over K and computed from one set of statistics.
        normalize: Whether predicted variances only reweight pairs, with weights that average 1 (default); see
            :class:`mast_ops.UncertaintyInvarianceLoss`, which is the invariance term.
            ``lambda_param`` is meant for a mean-squared error; under the bare likelihood, whose weight grows
            as pairs come closer, the easiest subspace drives out the others.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.
        sensitivity_param: Weight of the sensitivity of what masks leave out, see :class:`mast_ops.losses.SubspaceLoss`;
            10 by `benchmarks/evidence`. Predicted variances, but those per dimension, weigh its pairs too.
        difficulty_param: Weight of the prediction of difficulty in place of the likelihood, see
            :class:`mast_ops.losses.SubspaceLoss`. It has a gradient for the predictor alone: 1 will do.

    Raises:
        ValueError: A negative weight, ``eps`` <= 0, unknown ``scope`` or ``backend``. On call: arguments that
            disagree, or fewer than two samples.

    Source: VICReg (arXiv 2105.04906); the paper (arXiv 2303.03679) takes it as its base; where the statistics
    act is ours.

    Example:
        >>> import torch
        >>> from mast_ops import SubspaceVICRegLoss
        >>> z0, z1 = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> loss, parts = SubspaceVICRegLoss()(z0, z1, masks=torch.tensor([[1.0, 0.0]]), return_components=True)
        >>> loss, parts["invariance"], parts["variance"], parts["covariance"]
        (tensor(8.), tensor(0.), tensor(0.), tensor(8.))
    """

    checks: ClassVar[Checks] = {
        "normalize": check_flag,
        "scope": lambda name, x: check_choice(name, x, ("embedding", "subspace")),
    }
    lambda_param, mu_param, nu_param = (Dial(check_non_negative) for _ in range(3))
    eps = Dial(check_positive)
    _lambda_param: Tensor
    _mu_param: Tensor
    _nu_param: Tensor
    _eps: Tensor

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 1e-4,
        *,
        scope: Scope = "embedding",
        normalize: bool = True,
        backend: Backend = "auto",
        sensitivity_param: float = 10.0,
        difficulty_param: float = 0.0,
    ) -> None:
        super().__init__(
            gather_distributed=gather_distributed,
            backend=backend,
            sensitivity_param=sensitivity_param,
            difficulty_param=difficulty_param,
        )
        self.lambda_param, self.mu_param, self.nu_param = lambda_param, mu_param, nu_param
        self.eps, self.scope, self.normalize = eps, scope, normalize

    @override
    def pair_weight(self, pairs: Pairs, run: Run) -> Tensor | None:
        return pair_weights(pairs, run)

    @override
    def terms(self, pairs: Pairs, run: Run) -> Terms:
        check_batch(pairs.z0, run, name="out0")
        seen = pairs.masks if self.scope == "subspace" else torch.ones_like(pairs.masks[:1])
        variance0, covariance0 = moments(pairs.z0, seen, run, self._eps)
        variance1, covariance1 = moments(pairs.z1, seen, run, self._eps)
        return {
            "invariance": (self._lambda_param, weighted_invariance(pairs, run, normalize=self.normalize)),
            "variance": (self._mu_param, (variance0 + variance1).mean() / 2),
            "covariance": (self._nu_param, (covariance0 + covariance1).mean()),
        }
