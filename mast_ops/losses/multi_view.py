"""A loss of two views, averaged over the pairs of more."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Never, Self

import torch
from torch import Tensor, nn

from mast_ops import ops
from mast_ops._checks import check_flag, check_is, check_named, listed
from mast_ops.kinds import refilled
from mast_ops.losses._base import SubspaceLoss
from mast_ops.losses._views import Observer, observer_of, pairs_of
from mast_ops.output import View
from mast_ops.views import FactorizedViews


class MultiViewLoss(nn.Module):
    """The mean of a loss over all pairs of an image's views, of which those with two local views are left out.

    Every view goes through the network once, whatever the number of its pairs. Two views give the loss itself.

    Args:
        criterion: Any loss of mast-ops on two views.
        views: The :class:`mast_ops.FactorizedViews` that make them, of which it reads how many are local and the kind
            of a pair with a local view. Default: as many views as come, none of them local.

    Shape of the call ``loss(outs, targets=None, kind=None, return_components=False)``, with ``masks``, ``kinds``,
    ``reference`` and for :class:`mast_ops.SubspaceSigmoidLoss` ``sample`` as the criterion takes them, by keyword:

    - outs: a sequence of a head's outputs or embeddings, one a view, in the order of the views: global ones first.
    - targets: the same of the other branch, such as BYOL's, for the global views alone. Each is paired with every
      other view of ``outs``, as in DINO. Default: each pair of ``outs`` counts once, the earlier view first.
    - kind: (N,) int64, the images' kinds, as the views give them.
    - Returns a scalar and, with ``return_components``, a dictionary of the terms, each the mean over pairs.

    A memory bank takes in one embedding of each image, the second of the first pair, after all pairs: the images' other
    views would be negatives of their own. Masks that are allocated are told once as well, of all pairs together.

    Raises:
        TypeError: ``criterion`` is no loss of mast-ops, or views or outputs are of another type.
        ValueError: Another number of outputs or targets than views, fewer than two, or what the criterion refuses.

    Source: the pairs are those of SwAV (arXiv 2006.09882) and DINO (arXiv 2104.14294); their kinds are ours.

    Example:
        >>> import torch
        >>> from mast_ops import FactorizedViews, MultiViewLoss, SubspaceVICRegLoss
        >>> shift, scale = (lambda x: x + torch.rand(len(x), 1, 1, 1)), (lambda x: x * torch.rand(len(x), 1, 1, 1))
        >>> small = lambda x: x[..., :2, :2] + torch.rand(len(x), 1, 1, 1)
        >>> views = FactorizedViews(
        ...     {"shift": shift, "scale": scale},
        ...     batched=True,
        ...     num_local_views=1,
        ...     local_augmentations={"shift": small},
        ... )
        >>> *crops, kind = views(torch.rand(8, 3, 4, 4))
        >>> [tuple(crop.shape) for crop in crops]
        [(8, 3, 4, 4), (8, 3, 4, 4), (8, 3, 2, 2)]
        >>> outs = [crop.mean(dim=(2, 3)) for crop in crops]
        >>> loss = MultiViewLoss(SubspaceVICRegLoss(), views)
        >>> loss(outs, masks=torch.ones(2, 3), kinds=views.kinds, kind=kind).shape
        torch.Size([])
    """

    local_kinds: Tensor | None

    def __init__(self, criterion: SubspaceLoss, views: FactorizedViews | None = None) -> None:
        super().__init__()
        check_is("criterion", criterion, SubspaceLoss, "a loss of mast-ops on two views")
        if views is not None:
            check_is("views", views, FactorizedViews, "FactorizedViews")
        self.criterion = criterion
        self.num_views = None if views is None else views.num_views + views.num_local_views
        self.num_global = None if views is None else views.num_views
        self._local_rows = None if views is None or views.local_kinds is None else views.local_kinds.tolist()
        self.register_buffer("local_kinds", None if views is None else views.local_kinds, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.local_kinds = refilled(self.local_kinds, self._local_rows)
        return self

    @ops.raised_by_all
    def forward(
        self,
        outs: Sequence[View],
        targets: Sequence[View] | None = None,
        *unnamed: Never,
        masks: Tensor | None = None,
        kinds: Tensor | None = None,
        kind: Tensor | None = None,
        sample: Tensor | None = None,
        reference: View | None = None,
        return_components: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        check_named(self, unnamed, "outs, targets")
        check_flag("return_components", return_components)
        if sample is not None and not self.criterion.takes_sample:
            raise TypeError(f"sample: got some for {type(self.criterion).__name__}, which has no use for it")
        outs, targets = _views("outs", outs), None if targets is None else _views("targets", targets)
        num_global = self._check(outs, targets)
        losses, components, told, calls = [], [], _Told(), []
        for out0, out1, is_local in _pairs(outs, targets, num_global):  # all are checked before ranks hear of the first
            of_pair = kind
            if is_local and kind is not None and self.local_kinds is not None:
                of_pair = self.local_kinds.to(kind.device)[kind]
            pairs = pairs_of(out0, out1, masks=masks, kinds=kinds, kind=of_pair, sample=sample)
            told.observer = observer_of(out0, out1)
            judged = None if reference is None else self.criterion.judged(reference, out0, out1, pairs)
            calls.append((pairs, None if told.observer is None else told, judged))
        for i, call in enumerate(calls, 1):
            loss, terms = self.criterion.of_pairs(*call, place=f"{i} of {len(calls)}")
            losses.append(loss)
            components.append(terms)
        self.criterion.remember(calls[0][0])
        told.pass_on()
        mean = torch.stack(losses).mean()
        if not return_components:
            return mean
        return mean, {name: torch.stack([terms[name] for terms in components]).mean() for name in components[0]}

    def _check(self, outs: Sequence[View], targets: Sequence[View] | None) -> int:
        """How many views are global."""
        wanted = "two or more" if self.num_views is None else f"{self.num_views}, one for each of the views"
        if len(outs) < 2 or self.num_views not in (None, len(outs)):
            raise ValueError(f"outs: got {len(outs)}, wanted {wanted}")
        num_global = len(outs) if self.num_global is None else self.num_global
        if targets is not None and len(targets) != num_global:
            raise ValueError(f"targets: got {len(targets)}, wanted {num_global}, one for each of the global views")
        return num_global


class _Told:
    """What augmentations explain in all pairs of a call, for masks that want to know."""

    def __init__(self) -> None:
        self.observer: Observer | None = None
        self._calls: list[tuple[Tensor, Tensor, bool]] = []

    def observe(self, explained: Tensor, weight: Tensor | None = None, *, gathered: bool = False) -> None:
        weight = torch.ones_like(explained[:, 0]) if weight is None else weight
        self._calls.append((explained, weight, gathered))

    def pass_on(self) -> None:
        if self.observer is not None and self._calls:
            explained, weight, gathered = zip(*self._calls, strict=True)
            total = torch.stack(weight).sum(0)
            sums = sum(share * pairs[:, None] for share, pairs in zip(explained, weight, strict=True))
            self.observer.observe(sums / torch.where(total > 0, total, 1)[:, None], total, gathered=gathered[0])


def _pairs(outs: Sequence[View], targets: Sequence[View] | None, num_global: int) -> Iterator[tuple[View, View, bool]]:
    """The two views of each, and whether one of them is local."""
    for i, out in enumerate(outs):
        for j in range(num_global) if targets is not None else range(i + 1, len(outs)):
            if targets is not None and i != j:
                yield out, targets[j], i >= num_global
            elif targets is None and i < num_global:
                yield out, outs[j], j >= num_global


def _views(name: str, given: object) -> list[View]:
    views = None if isinstance(given, Tensor | Mapping) else listed(given)
    if views is None:
        by_name = "; kinds go by name, kind=kind" if isinstance(given, Tensor) else ""
        raise TypeError(f"{name}: got {type(given).__name__}, wanted a list or tuple of outputs, one a view{by_name}")
    return views
