"""Where a loss runs: on which backend, and over which ranks."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from mast_ops import ops
from mast_ops.ops import Backend, check_backend
from mast_ops.pairs import Pairs


class Run:
    """The backend and the ranks of one call of a loss.

    Ranks must be told everything in the same order. A compiler is free to swap two sums that do not depend on one
    another, and swaps them otherwise on a rank whose batch has another shape. So each sum is tied to the last one
    before it, here and nowhere else: a formula need not know that its terms speak to other ranks, nor in which order.

    Args:
        backend: What computes it, see :data:`mast_ops.ops.Backend`.
        gather_distributed: Whether the batch is that of all ranks of the default process group. Nothing is gathered,
            statistics are summed; the name is that of lightly.

    Raises:
        ValueError, TypeError: Unknown ``backend``; ``gather_distributed`` is no bool, or this build of PyTorch has no
            torch.distributed.
    """

    def __init__(self, backend: Backend = "auto", gather_distributed: bool = False) -> None:
        check_backend(backend)
        self.backend: Backend = backend
        self.distributed = ops.ranks(gather_distributed) > 1
        self._last: Tensor | None = None
        self._last_learned: Tensor | None = None  # the last with a gradient: the backward pass speaks to ranks as well

    def of(
        self, function: str, pairs: Pairs, numbers: Mapping[str, float | Tensor] | None = None, **options: object
    ) -> Self:
        """This run, of a call that all ranks must make alike: with the same D, K, dtypes, masks, kinds of pairs,
        numbers and options, and gradients for the same of them.

        They are compared before the ranks are told anything else: see :func:`mast_ops.ops.agree`, which raises a
        ValueError on every rank if they differ.
        """
        if not self.distributed:
            return self
        doubt = pairs.uncertainty
        learned = {"z0": pairs.z0, "z1": pairs.z1, "masks": pairs.masks, "log_variance": doubt and doubt.log_variance}
        values = {
            name: x if isinstance(x, Tensor) else torch.full((), x, dtype=torch.float64, device="cpu")
            for name, x in (numbers or {}).items()
        }
        learned |= values
        facts = {
            "function": function,
            "backend": ops.asked_for(self.backend),
            "kind": pairs.kind is not None,
            "granularity": None if doubt is None else doubt.granularity,
            "gradients": [name for name, x in learned.items() if x is not None and x.requires_grad]
            if torch.is_grad_enabled()
            else "off",
            "numbers": " ".join(values),
            "compiled": torch.compiler.is_compiling(),  # its backward pass tells ranks more
            **options,
        }
        words = [f"{name}={value}" for name, value in facts.items()]
        self.told(ops.agree(pairs.z0, pairs.masks, pairs.kinds, list(values.values()), words))
        return self

    def tied(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """``x``, once the ranks were told all that they were told before. It is copied: tie small tensors.

        For an operator that speaks to ranks itself, of ``x`` and ``others``. A constant is not tied to a gradient, or
        it would go round again in the backward pass.
        """
        if not self.distributed:
            return x
        if self._last is None:
            return x
        learned = torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in (x, *others))
        if not learned or self._last is not self._last_learned:
            x = ops.after(x, self._last.detach())
        if learned and self._last_learned is not None:
            x = ops.after(x, self._last_learned)
        return x

    def told(self, y: Tensor) -> Tensor:
        """``y`` itself, remembered as the last that the ranks were told."""
        if self.distributed:
            self._last = y
            self._last_learned = y if y.requires_grad else self._last_learned
        return y

    def averaged(self, x: Tensor) -> Tensor:
        """``x`` itself, a parameter of a loss, which is in no DDP or FSDP: all ranks get the mean of its gradients."""
        learned = self.distributed and torch.is_grad_enabled() and x.requires_grad
        return self.told(ops.averaged(self.tied(x))) if learned else x

    def own_samples(self, num_samples: int, device: torch.device) -> Tensor:
        """Sample ids of this rank's batch when each row is a sample, (N,) int64, unlike those of any other rank."""
        rank = ops.rank() if self.distributed else 0
        return torch.arange(num_samples, device=device) + (rank << 40)

    def total(self, x: Tensor) -> Tensor:
        """Sum over ranks."""
        return self.told(ops.all_reduce(self.tied(x))) if self.distributed else x

    def mean(self, mean: Tensor, num_samples: int) -> Tensor:
        """Mean over the samples of all ranks, from the mean over this rank's: a scalar, the same on every rank."""
        if not self.distributed:
            return mean
        total, count = self.total(torch.stack([mean * num_samples, torch.full_like(mean, num_samples)])).unbind()
        return total / count
