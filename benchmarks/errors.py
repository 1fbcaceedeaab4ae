"""How far a contender is from the same loss in float64: none is fast and wrong."""

import math

import torch
from torch import Tensor

from benchmarks.case import Inputs, Loss


def outcome(loss: Loss, inputs: Inputs) -> list[Tensor]:
    """The loss and its gradients; zeros for inputs that it does not use."""
    for x in inputs.learned:
        x.grad = None
    value = loss(*inputs.learned, *inputs.constant)
    value.backward()
    return [value.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in inputs.learned)]


def reference(loss: Loss, inputs: Inputs) -> list[Tensor]:
    learned = tuple(x.detach().double().requires_grad_() for x in inputs.learned)
    constant = tuple(x.double() if x.is_floating_point() else x for x in inputs.constant)
    return outcome(loss, Inputs(learned, constant))


def worst(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest error of the loss or an entry of a gradient, relative to that tensor's largest entry."""
    errors = [_relative(*both) for both in zip(got, wanted, strict=True)]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def _relative(got: Tensor, wanted: Tensor) -> float:
    scale, error = wanted.abs().max(), (got.double() - wanted).abs().max()
    return float(error / scale if scale > 0 else error)


def tolerance(dtype: torch.dtype) -> float:
    """Above this a contender counts as wrong: far more than rounding, far less than another formula."""
    return 1e-3 if dtype == torch.float32 else 1e-1
