"""Weights that change over training: ``LinearSchedule(0, 0.1, steps=1000) * MaskOverlap()``."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mast_ops._checks import check_count, check_non_negative
from mast_ops._dials import Dial


class Schedule(nn.Module, ABC):
    """A weight that goes from ``start`` to ``end`` in ``steps`` calls of :meth:`step`, and stays there.

    A regularizer takes it where it takes a number, and steps it with its own ``step()``, once after each step of the
    optimizer. The number of steps so far is a buffer: it travels in the ``state_dict``, and compiled code is not
    compiled again when it grows.

    Args:
        start: The first value, finite and >= 0.
        end: The last value, likewise.
        steps: How many steps lie between them, a whole number >= 1.

    Raises:
        ValueError: A value that is negative or not finite, or ``steps`` < 1.
        TypeError: An argument that is no number, or ``steps`` that is no whole one.
    """

    start, end, steps = Dial(check_non_negative), Dial(check_non_negative), Dial(check_count)
    _start: Tensor
    _end: Tensor
    _steps: Tensor

    def __init__(self, start: float, end: float, steps: int) -> None:
        super().__init__()
        self.start, self.end, self.steps = start, end, steps
        self.taken: Tensor
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def shape(self, progress: Tensor) -> Tensor:
        """How far from ``start`` to ``end``, 0 to 1, at a progress of 0 to 1."""

    def forward(self) -> Tensor:
        """The weight now: a float32 scalar."""
        progress = (self.taken / self._steps).clamp(max=1)
        start, end = (x.to(progress.dtype) for x in (self._start, self._end))
        return start + (end - start) * self.shape(progress)

    def reset_parameters(self) -> None:
        """No step was taken yet: what ``to_empty`` left is replaced."""
        self.taken.zero_()

    def step(self) -> None:
        """One step of the optimizer was taken."""
        self.taken += 1

    def extra_repr(self) -> str:
        return f"start={self.start}, end={self.end}, steps={self.steps}"


class LinearSchedule(Schedule):
    """In equal steps: the usual warm-up.

    Source: ours.

    Example:
        >>> from mast_ops import LinearSchedule
        >>> weight = LinearSchedule(start=0.0, end=0.2, steps=2)
        >>> weight.step()
        >>> weight()
        tensor(0.1000)
    """

    def shape(self, progress: Tensor) -> Tensor:
        return progress


class CosineSchedule(Schedule):
    """Along half a cosine: slow at both ends.

    Source: ours, after SGDR (Loshchilov and Hutter 2017, arXiv 1608.03983), equation 5.

    Example:
        >>> from mast_ops import CosineSchedule
        >>> weight = CosineSchedule(start=1.0, end=0.0, steps=4)
        >>> weight.step()
        >>> weight()
        tensor(0.8536)
    """

    def shape(self, progress: Tensor) -> Tensor:
        return (1 - torch.cos(math.pi * progress)) / 2
