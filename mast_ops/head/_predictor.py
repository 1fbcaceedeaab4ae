"""What predicts log-variances of features, and trains nothing under it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mast_ops._precision import no_autocast

HIDDEN = 128
_MAX_LOG_VARIANCE = 8.0


class Predictor(nn.Module):
    """One hidden layer: a strength is a distance from what is usual, on either side, which no linear map can tell."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, HIDDEN)
        self.last = _Last(HIDDEN, out_features)

    @property
    def in_features(self) -> int:
        return self.hidden.in_features

    def forward(self, h: Tensor) -> Tensor:
        with no_autocast(h):
            hidden = F.relu(self.hidden(h.detach().to(self.hidden.weight.dtype)))
            return bound_log_variance(self.last(hidden))

    def select(self, rows: list[int | None]) -> None:
        """Keeps these outputs, in this order; None starts anew."""
        for name in ("weight", "bias"):
            old = getattr(self.last, name)
            fresh = old.new_zeros(len(rows), *old.shape[1:])
            for i, row in enumerate(rows):
                if row is not None:
                    fresh[i] = old.detach()[row]
            setattr(self.last, name, nn.Parameter(fresh, requires_grad=old.requires_grad))
        self.last.out_features = len(rows)


class _Last(nn.Linear):
    """Starts at variance 1, also where whoever gave it memory calls ``reset_parameters``."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def bound_log_variance(raw: Tensor) -> Tensor:
    """A tanh bounds it: identical views would otherwise push the likelihood to minus infinity."""
    return _MAX_LOG_VARIANCE * torch.tanh(raw / _MAX_LOG_VARIANCE)
