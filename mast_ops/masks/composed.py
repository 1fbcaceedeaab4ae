"""The mask of pairs in which every augmentation differs."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Self

import torch
from torch import Tensor, nn

from mast_ops.masks.parameterization import MaskParameterization


class ComposedMasks(MaskParameterization):
    """K - 1 masks of any kind, and as row K their product: what is open in all of them.

    A dimension that is invariant to each augmentation is invariant to all of them at once. Pairs in which all differ
    (``FactorizedViews(composed=...)``) therefore need no mask of their own, and teach those of the others.
    ``MaskedSubspaceHead(..., composed="all")`` makes one.

    Args:
        each: The masks of the single augmentations.

    Raises:
        TypeError: ``each`` is no parameterisation of masks, or a composed one.

    Source: ours.

    Example:
        >>> from mast_ops.masks import BinaryMasks, ComposedMasks
        >>> masks = ComposedMasks(BinaryMasks(num_subspaces=2, dim=8, coverage=0.75))
        >>> masks().sum(dim=1).detach()
        tensor([6., 6., 4.])
    """

    def __init__(self, each: MaskParameterization) -> None:
        nn.Module.__init__(self)
        if not isinstance(each, MaskParameterization) or isinstance(each, ComposedMasks):
            raise TypeError(f"each: got {type(each).__name__}, wanted masks of single augmentations")
        self.each = each

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        """Of the single augmentations, (K - 1, D)."""
        return self.each.weight

    @property
    def num_subspaces(self) -> int:
        return self.each.num_subspaces + 1

    def reset_parameters(self) -> None:
        self.each.reset_parameters()

    def forward(self) -> Tensor:
        each: Tensor = self.each()
        product = reduce(torch.mul, each.unbind())  # the gradient of prod() makes the CPU wait, to look for zeros
        return torch.cat([each, product[None]])

    def settings(self) -> dict[str, Any]:
        from mast_ops.masks._registry import describe_masks  # which knows this class

        return {"each": describe_masks(self.each)}

    def select(self, rows: Sequence[int | None]) -> "MaskParameterization":  # type: ignore[override]
        """As for any masks; the product stays last, or goes: without it a plain parameterisation is left."""
        last = self.num_subspaces - 1
        if last not in rows:
            return self.each.select(rows)
        if rows[-1] != last or len(rows) == 1 or last in rows[:-1]:
            raise ValueError(
                f"rows: got {list(rows)}, wanted {last}, the product of the others, once, last and not alone"
            )
        return ComposedMasks(self.each.select(rows[:-1]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        return self
