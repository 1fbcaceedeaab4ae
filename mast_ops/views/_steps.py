"""One augmentation's turn in making views."""

from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from mast_ops.views._draws import Augmentation

Which = TypeVar("Which", Tensor, bool)  # bool of shape (N,) on the CPU for a batch, and one bool for one image


class Step(NamedTuple, Generic[Which]):
    name: str
    call: Augmentation
    seeds: list[int]
    """Of the draw that views share, of one more, and of the other views' own: one more than there are views."""
    differs: Which
    """Whether views of this kind draw each for itself."""
    is_last: Which
    """Whether no later augmentation differs: this one sees to it that views are not all equal."""
    num_global: int
    """The first so many views; those after them are local."""
    local_call: Augmentation | None
    """What local views have in the place of `call`, each with a draw of its own."""

    @property
    def num_views(self) -> int:
        return len(self.seeds) - 1


def of_local_views(step: Step[Which]) -> Step[Which]:
    """The same step as they take it."""
    return step if step.local_call is None else step._replace(name=local_name(step.name), call=step.local_call)


def local_name(name: str) -> str:
    return f"local_{name}"
