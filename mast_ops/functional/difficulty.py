"""How hard a pair is to recognise, as its rank in the batch, and predictions: of it, and of the harder of two views."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ops._precision import no_autocast
from mast_ops.functional.contrastive import check_temperature, nt_xent
from mast_ops.functional.uncertainty import own_column
from mast_ops.kinds import members
from mast_ops.ops import Backend
from mast_ops.pairs import Pairs
from mast_ops.run import Run

TEMPERATURE = 0.2


def pair_difficulty(
    z0: Tensor,
    z1: Tensor,
    masks: Tensor,
    *,
    kinds: Tensor | None = None,
    kind: Tensor | None = None,
    temperature: float = TEMPERATURE,
    backend: Backend = "auto",
) -> Tensor:
    """The rank of every pair in the batch by its contrastive loss: near 0 for the easiest, near 1 for the hardest.

    The loss is NT-Xent where the masks of all that differs in the pair are open. It asks whether a view can still be
    told from those of other images, where a distance only asks how near two views are: views that show little lie near
    the mean, and near one another. A rank has no scale, and pairs of each kind are ranked apart, since kinds are seen
    through other dimensions. With ``kind``, pair i of the n of its kind that is harder than j of them has
    ``(j + 1/2) / n``; pairs of equal loss follow their order in the batch.

    Args:
        z0: Embedding of the first view, (N, D), floating point.
        z1: Embedding of the second view, (N, D): of a reference with little augmentation, where there is one, the rank
            is the first view's own.
        masks: One mask per subspace, (K, D).
        kinds: Of :func:`mast_ops.functional.masked_distance`.
        kind: Likewise.
        temperature: Of the contrastive loss, > 0.
        backend: What computes it, see :data:`mast_ops.ops.Backend`.

    Returns:
        (N,) with ``kind``, else (N, K), strictly between 0 and 1, NaN where the loss is; a constant. float64 for
        float64 input, else float32.

    Raises:
        ValueError, TypeError: The arguments disagree in shape, dtype or device, are empty or integer, ``kind`` is out
            of range, ``temperature`` is not a positive number, or the asked backend cannot run.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops.functional import pair_difficulty
        >>> z0, z1 = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.5]])
        >>> pair_difficulty(z0, z1, torch.ones(1, 3), kind=torch.tensor([0, 0, 0]))
        tensor([0.1667, 0.5000, 0.8333])
    """
    check_temperature(temperature)
    pairs = Pairs.of(z0, z1, masks, kinds=kinds, kind=kind)
    return difficulty(pairs, backend, temperature)


@torch.no_grad()
def difficulty(pairs: Pairs, backend: Backend, temperature: float = TEMPERATURE) -> Tensor:
    """The same, of checked pairs; of this rank's batch alone."""
    with no_autocast(pairs.z0):
        losses = _losses(pairs, backend, temperature)  # 0 of one is NaN where it is: a rank would hide that
        place = torch.arange(len(losses), device=losses.device)
        if pairs.kind is None:
            order = losses.argsort(dim=0, stable=True)
            rank = torch.empty_like(order).scatter(0, order, place[:, None].expand_as(order))
            return (rank.to(losses.dtype) + 0.5) / len(losses) + 0 * losses
        order = losses.argsort(stable=True)
        order = order[pairs.kind[order].argsort(stable=True)]  # by kind, and by loss in each
        position = torch.empty_like(order).scatter(0, order, place)
        num_kinds = len(pairs.masks if pairs.kinds is None else pairs.kinds)
        count = members(pairs.kind, num_kinds).sum(dim=0)
        first = count.cumsum(0) - count
        return ((position - first[pairs.kind]).to(losses.dtype) + 0.5) / count[pairs.kind] + 0 * losses


def _losses(pairs: Pairs, backend: Backend, temperature: float = TEMPERATURE) -> Tensor:
    return nt_xent(pairs, Run(backend), temperature=temperature, reduction="none")


def prediction_of_difficulty(pairs: Pairs, run: Run) -> Tensor:
    """Cross-entropy of the predicted log-variance, as a logit, against the rank: a scalar that trains it alone."""
    logit = own_column(_doubt(pairs), pairs.kind)
    rank = difficulty(pairs, run.backend)
    with no_autocast(logit):
        loss = F.binary_cross_entropy_with_logits(logit.expand_as(rank), rank.to(logit.dtype))
    return run.mean(loss, len(pairs.z0))


def prediction_of_harder_view(view0: Pairs, view1: Pairs, run: Run) -> Tensor:
    """Cross-entropy of which view is the harder one beside a reference: a scalar that trains the log-variances alone.

    The logit is how much more the one is doubted than the other. Where losses are equal, either may be the harder.
    """
    doubt0, doubt1 = (own_column(_doubt(view), view.kind) for view in (view0, view1))
    with no_autocast(view0.z0):
        with torch.no_grad():
            losses0, losses1 = (_losses(view, run.backend) for view in (view0, view1))
            difference = losses0 - losses1
            harder = (1 + difference.sign()) / 2 + 0 * difference  # the sign of NaN is 0
        loss = F.binary_cross_entropy_with_logits(doubt0 - doubt1, harder.to(doubt0.dtype))
    return run.mean(loss, len(view0.z0))


def _doubt(pairs: Pairs) -> Tensor:
    log_variance = pairs.log_variance()
    assert log_variance is not None
    return log_variance
