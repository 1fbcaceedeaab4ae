"""One augmentation's turn in making views."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from mast_ops._draws import Augmentation

Which = TypeVar("Which", Tensor, bool)  # bool of shape (N,) on the CPU for a batch, and one bool for one image


class Step(NamedTuple, Generic[Which]):
    name: str
    call: Augmentation
    seeds: Sequence[int]
    """Of the draw that views share, of one more, and of the other views' own: one more than there are views."""
    differs: Which
    """Whether views of this kind draw each for itself."""
    is_last: Which
    """Whether no later augmentation differs: this one sees to it that views are not all equal."""

    @property
    def num_views(self) -> int:
        return len(self.seeds) - 1
