"""Masks that are counted, not trained: each augmentation closes the dimensions that it explains best."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops._checks import check_count, check_flag, check_floats, check_fraction, check_masks, check_share, listed
from mast_ops._dials import Checks, Dial
from mast_ops.masks.parameterization import MaskParameterization


class AllocatedMasks(MaskParameterization):
    """Each row closes the dimensions that its augmentation explains best: entries are exactly 0 or 1, with no gradient.

    What they are for: they show which augmentations are alike. Their features are no better: in ``benchmarks/evidence``
    fixed masks are ahead in the mean of tasks at every D, and behind in the class only where they close all dimensions.

    Nothing has to be wired. A head gives its masks on to the loss, and every loss of this library that is called with
    ``kind`` tells them, in training and with gradients on, what share of each dimension's variance each augmentation
    explains (:func:`mast_ops.functional.explained_variance`), from pairs in which it differs alone. A loss of your own
    calls :meth:`observe`. A head whose augmentation never differs alone never allocates it: take ``pairs="mixed"`` or
    ``"single"``.

    The first ``pool`` dimensions may be closed, the others are open in every mask. Until ``warmup`` calls every mask
    closes the whole pool: invariance would press out of it what is to be allocated. Then, every ``renew`` calls, row k
    closes those dimensions of the pool in which its augmentation stands out: by the square root of its explained
    variance, scaled to length 1, so that an augmentation of small effects gets dimensions as well, less the mean of all
    rows. Augmentations that are alike stand out in the same dimensions, and share them; what nobody closes is open.

    ``weight`` is no parameter but a buffer, the statistics of the last allocation; with the running statistics it
    travels in the ``state_dict``, so that a resumed run is the unbroken one. Under torch.distributed statistics are
    summed over ranks. Collapse: impossible in mass.

    Args:
        num_subspaces: K.
        dim: D.
        coverage: Share of open entries in every row, strictly between 0 and 1, as in :class:`BinaryMasks`; but a row
            closes at least one entry, of D >= 2.
        pool: Share of D that may be closed in some mask, from 0 to 1; no more than all rows can close, and no less than
            one of them does. Half keeps common dimensions, where pairs that differ in everything agree; where
            K rows want more than that they share.
        warmup: Calls of a loss before the first allocation.
        renew: Calls from one allocation to the next.
        decay: Of the running mean, strictly between 0 and 1. For the first 1 / (1 - decay) calls it is a plain mean.
        gather_distributed: Whether statistics are of all ranks of torch.distributed's default process group, where
            there is one. Masks must be alike on all ranks: only ranks that train apart have a use for False.

    Raises:
        ValueError, TypeError: ``coverage`` or ``decay`` is not strictly between 0 and 1, ``pool`` is not from 0 to 1,
            or ``warmup`` or ``renew`` is no whole number >= 1.

    Source: ours.

    Example:
        >>> import torch
        >>> from mast_ops.masks import AllocatedMasks
        >>> masks = AllocatedMasks(num_subspaces=2, dim=8, coverage=0.75, warmup=1)
        >>> masks()[0]
        tensor([0., 0., 0., 0., 1., 1., 1., 1.])
        >>> masks.observe(torch.tensor([[0.9, 0.1, 0.8, 0, 0, 0, 0, 0], [0, 0.2, 0, 0.3, 0, 0, 0, 0]]))
        >>> masks()
        tensor([[0., 1., 0., 1., 1., 1., 1., 1.],
                [1., 0., 1., 0., 1., 1., 1., 1.]])
    """

    observes = True
    weight: Tensor  # type: ignore[assignment]  # a buffer
    explained: Tensor
    """(K, D), the running mean."""
    seen: Tensor
    """(K,) int64, in how many calls each augmentation differed alone in some pair."""
    calls: Tensor
    """() int64."""

    checks: ClassVar[Checks] = {
        "coverage": check_share,
        "pool": check_fraction,
        "decay": check_share,
        "gather_distributed": check_flag,
    }
    warmup, renew = Dial(check_count), Dial(check_count)
    _warmup: Tensor
    _renew: Tensor

    def __init__(
        self,
        num_subspaces: int,
        dim: int,
        *,
        coverage: float = 0.95,
        pool: float = 0.5,
        warmup: int = 50,
        renew: int = 10,
        decay: float = 0.95,
        gather_distributed: bool = True,
    ) -> None:
        self.coverage, self.pool = check_share("coverage", coverage), check_fraction("pool", pool)
        self.warmup, self.renew = warmup, renew
        self.decay = check_share("decay", decay)
        self.gather_distributed = gather_distributed
        super().__init__(num_subspaces, dim, mean=0.0, std=1.0)

    def make_weight(self, num_subspaces: int, dim: int) -> None:
        self.register_buffer("weight", torch.empty(num_subspaces, dim))
        self.register_buffer("explained", torch.empty(num_subspaces, dim))
        self.register_buffer("seen", torch.empty(num_subspaces, dtype=torch.int64))
        self.register_buffer("calls", torch.empty((), dtype=torch.int64))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts anew, as in the constructor: after ``to_empty``, for example."""
        for buffer in self.buffers():
            buffer.zero_()

    @property
    def num_closed(self) -> int:
        """Closed entries of every row."""
        return min(max(1, self.dim - round(self.coverage * self.dim)), self.dim - 1)

    @property
    def num_pool(self) -> int:
        """Dimensions that some row may close, the first ones."""
        return max(self.num_closed, min(self.num_subspaces * self.num_closed, round(self.pool * self.dim)))

    def forward(self) -> Tensor:
        stands_out = _stands_out(self.weight[:, : self.num_pool])
        closed = stands_out.argsort(dim=1, descending=True, stable=True)[:, : self.num_closed]
        masks = torch.ones_like(stands_out).scatter(1, closed, 0.0)
        allocated = self.weight.any(dim=1, keepdim=True)
        masks = torch.where(allocated, masks, 0.0)
        rest = torch.ones_like(self.weight[:, self.num_pool :])
        return torch.cat([masks, rest], dim=1) + 0 * self.weight  # weights that are not finite show

    @torch.no_grad()
    def observe(self, explained: Tensor, weight: Tensor | None = None, *, gathered: bool = False) -> None:
        """One more call: losses do it. What is not finite is left out: the step that made it shows it.

        Args:
            explained: (K, D), of a batch, >= 0: :func:`mast_ops.functional.explained_variance`.
            weight: (K,), of how many pairs each row is; 0 for a row that says nothing, as a row of NaN does. Default:
                alike. It weighs ranks against one another.
            gathered: Whether ``explained`` is of all ranks already.

        Raises:
            ValueError: ``explained`` is not (K, D), or ``weight`` not (K,), or elsewhere than the masks.
            TypeError: One of them is no floating-point tensor, or ``gathered`` no bool.
        """
        check_masks(explained, name="explained")
        check_flag("gathered", gathered)
        if explained.shape != self.weight.shape:
            raise ValueError(f"explained: got shape {tuple(explained.shape)}, wanted {tuple(self.weight.shape)}")
        weight = torch.ones_like(explained[:, 0]) if weight is None else weight
        check_floats("weight", weight)
        for name, given in (("explained", explained), ("weight", weight)):
            if given.device != self.weight.device:
                raise ValueError(f"{name}: got device {given.device}, wanted {self.weight.device}, that of the masks")
        if weight.shape != explained.shape[:1]:
            raise ValueError(f"weight: got shape {tuple(weight.shape)}, wanted ({len(explained)},)")
        explained, weight = explained.to(self.explained.dtype), weight.to(self.explained.dtype)
        says = explained.isfinite().all(dim=1) & weight.isfinite() & (weight > 0)
        weight = torch.where(says, weight, 0.0)
        explained = torch.where(says[:, None], explained, 0.0)
        if not gathered and ops.ranks(self.gather_distributed) > 1:
            told = torch.cat([explained * weight[:, None], weight[:, None]], dim=1)
            fixed = [f"{name}={getattr(self, name)}" for name in ("coverage", "pool", "decay")]
            facts = ["function=AllocatedMasks.observe", "numbers=warmup renew", *fixed]
            agreed = ops.agree(told, self.weight, None, [self._warmup, self._renew], facts)
            total = ops.all_reduce(ops.after(told, agreed))
            weight = total[:, -1]
            explained = total[:, :-1] / torch.where(weight > 0, weight, 1.0)[:, None]
        self.seen += weight > 0
        rate = (1 / self.seen.clamp_min(1)).clamp_min(1 - self.decay).to(explained.dtype)
        self.explained.lerp_(explained, torch.where(weight > 0, rate, 0.0)[:, None])
        self.calls += 1
        due = (self.calls >= self._warmup) & ((self.calls - self._warmup) % self._renew == 0)
        self.weight.copy_(torch.where(due, self.explained, self.weight))

    def settings(self) -> dict[str, float | list[float]]:
        return {"coverage": self.coverage, "pool": self.pool}

    def select(self, rows: Sequence[int | None]) -> Self:
        rows = rows if (entries := listed(rows)) is None else entries  # a generator is gone through once
        chosen = super().select(rows)
        kept = [(i, row) for i, row in enumerate(rows) if row is not None]
        for i, row in kept:
            chosen.explained[i], chosen.seen[i] = self.explained[row], self.seen[row]
        if kept:
            chosen.calls.copy_(self.calls)
        return chosen


def _stands_out(explained: Tensor) -> Tensor:
    """How far each row's profile lies above the mean of all, (K, P)."""
    profile = torch.nn.functional.normalize(explained.clamp_min(0).sqrt(), dim=1)
    return profile - profile.mean(dim=0)
