"""What every parameterisation of masks shares."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from mast_ops._checks import check_positive


class MaskParameterization(nn.Module, ABC):
    """K masks over D dimensions, grown from one free parameter per entry, ``weight`` of shape (K, D).

    ``weight`` stays in float32 when the model around it goes to half precision (``model.bfloat16()``): its steps are
    too small for half a mantissa. Embeddings in half precision take float32 masks.

    Args:
        num_subspaces: K, >= 1.
        dim: D, >= 1.
        mean: Mean of the normal distribution that ``weight`` starts from.
        std: Its standard deviation; > 0, so that no two subspaces start alike.

    Raises:
        ValueError: ``num_subspaces`` or ``dim`` < 1, or ``std`` is not a positive number.
    """

    weight: nn.Parameter

    def __init__(self, num_subspaces: int, dim: int, mean: float, std: float) -> None:
        super().__init__()
        for name, size in (("num_subspaces", num_subspaces), ("dim", dim)):
            if size < 1:
                raise ValueError(f"{name}: got {size}, wanted at least 1")
        check_positive("std", std)
        self.mean, self.std = mean, std
        self.weight = nn.Parameter(torch.empty(num_subspaces, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, self.mean, self.std)

    @property
    def num_subspaces(self) -> int:
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        return self.weight.shape[1]

    @abstractmethod
    def forward(self) -> Tensor:
        """The masks, (K, D), in the dtype of ``weight``."""

    def settings(self) -> dict[str, float | list[float]]:
        """What turns ``weight`` into masks beside the class: a checkpoint carries it."""
        return {}

    def select(self, rows: Sequence[int | None]) -> Self:
        """A copy with these rows of ``weight``, in this order; None is a row that starts anew.

        Raises:
            ValueError: No rows, or one that is not there.
        """
        if not rows:
            raise ValueError("rows: got none, wanted at least one")
        chosen = copy.deepcopy(self)
        chosen.weight = nn.Parameter(self.weight.new_empty(len(rows), self.dim), self.weight.requires_grad)
        chosen.reset_parameters()  # a row that starts anew starts as its class has it
        for i, row in enumerate(rows):
            if row is None:
                continue
            if not 0 <= row < self.num_subspaces:
                raise ValueError(f"rows: got {row}, wanted 0 to {self.num_subspaces - 1}, or None")
            chosen.weight.data[i] = self.weight.data[row]
        return chosen

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(x: Tensor) -> Tensor:
            moved = fn(x)
            return x.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"num_subspaces={self.num_subspaces}, dim={self.dim}"
