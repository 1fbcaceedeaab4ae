"""What every subspace loss shares: it takes two views, and is a weighted sum of named terms."""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from mast_ops import ops
from mast_ops._checks import check_alike, check_non_negative
from mast_ops.functional import combine_log_variance
from mast_ops.functional.pairs import check_pairs
from mast_ops.functional.sensitivity import sensitivity_after
from mast_ops.ops import Backend, check_backend
from mast_ops.output import SubspaceOutput

View = Tensor | SubspaceOutput


class Pair(NamedTuple):
    """Two views after the boundary: embeddings (N, D), masks (K, D), the pair's log-variance or None."""

    z0: Tensor
    z1: Tensor
    masks: Tensor
    log_variance: Tensor | None


_SENSITIVITY_EPS = 1e-4  # under the hinge's root, as in VICReg's


class SubspaceLoss(nn.Module, ABC):
    """A loss on two views inside K subspaces: a weighted sum of named terms.

    A new loss gives its terms and their weights; unpacking, checks and logging are here.

    Shape of the call ``loss(out0, out1, masks=None, subspace=None, return_components=False)``:

    - out0, out1: (N, D) embeddings, or :class:`mast_ops.SubspaceOutput` of a head (mixed is fine: BYOL's
      target may be a plain tensor).
    - masks: (K, D), wanted with plain tensors only; of two heads' outputs, those of ``out0`` count.
    - subspace: (N,) int64, the one augmentation in which pair i differs (factorised pairs), or None: every
      pair counts in all K subspaces.
    - Returns a scalar, float32 for half-precision input; with ``return_components`` also a dictionary of
      the terms, unweighted and detached, for logging.

    With ``sensitivity_param`` > 0 and factorised pairs one more term asks what lies outside each mask to change with
    that mask's augmentation, so that the features hold what it does: the sum over subspaces of
    :func:`mast_ops.functional.subspace_sensitivity`, which takes at least two samples. With masks of ones it is 0;
    without ``subspace`` it is not there.

    With ``gather_distributed=True`` the loss is that of the batches of all ranks of torch.distributed's default
    process group put together, the same value on every rank, and the gradients that DDP or FSDP average over ranks
    are that loss's own. Ranks may have different numbers of samples, but each at least one, and all of them must
    call the loss. Candidates of contrastive losses go round a ring, statistics are summed: neither is gathered, so
    that memory does not grow with the number of ranks. Without a process group there is one rank. Masks must be alike
    on all ranks, as parameters under DDP and FSDP are.
    """

    def __init__(
        self, gather_distributed: bool = False, backend: Backend = "auto", sensitivity_param: float = 0.0
    ) -> None:
        super().__init__()
        check_backend(backend)
        check_non_negative("sensitivity_param", sensitivity_param)
        self.sensitivity_param = sensitivity_param
        ops.ranks(gather_distributed)
        self.gather_distributed = gather_distributed
        self.backend: Backend = backend

    @abstractmethod
    def terms(self, pair: Pair, subspace: Tensor | None) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of every named term."""

    def pair_weight(self, pair: Pair, subspace: Tensor) -> Tensor | None:
        """How much each pair counts for sensitivity, (N,), up to a factor that all ranks share; None: all alike."""
        return None

    @overload
    def forward(
        self,
        out0: View,
        out1: View,
        masks: Tensor | None = ...,
        subspace: Tensor | None = ...,
        return_components: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        out0: View,
        out1: View,
        masks: Tensor | None = ...,
        subspace: Tensor | None = ...,
        *,
        return_components: Literal[True],
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def forward(
        self,
        out0: View,
        out1: View,
        masks: Tensor | None = None,
        subspace: Tensor | None = None,
        return_components: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        pair = unpack(out0, out1, masks)
        check_pairs(pair.z0, pair.z1, pair.masks, subspace)
        terms = self.terms(pair, subspace)
        if subspace is not None and self.sensitivity_param > 0:
            value = sensitivity_after(
                torch.stack([value for _, value in terms.values()]),  # whichever of them spoke to the ranks last
                pair.z0,
                pair.z1,
                pair.masks,
                subspace,
                self.pair_weight(pair, subspace),
                _SENSITIVITY_EPS,
                self.gather_distributed,
                self.backend,
            ).sum()
            terms["sensitivity"] = (self.sensitivity_param, value)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        if not return_components:
            return loss
        return loss, {name: value.detach() for name, (_, value) in terms.items()}


def unpack(out0: View, out1: View, masks: Tensor | None) -> Pair:
    """Heads' outputs and plain tensors alike become one :class:`Pair`.

    Masks are those of the first view that carries them. A view without log-variances beside one that has
    them is a point: the pair's variance is then the other view's alone.
    """
    views = [out for out in (out0, out1) if isinstance(out, SubspaceOutput)]
    if not views and masks is None:
        raise ValueError("masks: got None with plain tensors, wanted (K, D) masks or a MaskedSubspaceHead's outputs")
    if views and masks is not None:
        raise ValueError("masks: got a tensor beside a head's output, which carries its own; pass one or the other")
    if len(views) == 2:
        check_alike("out1.masks", views[1].masks, "out0.masks", views[0].masks)
    z0, z1 = (out.embedding if isinstance(out, SubspaceOutput) else out for out in (out0, out1))
    log_variances = [out.log_variance for out in views if out.log_variance is not None]
    log_variance = None
    if log_variances:
        log_variance = combine_log_variance(*log_variances) if len(log_variances) == 2 else log_variances[0]
    return Pair(z0, z1, views[0].masks if masks is None else masks, log_variance)
