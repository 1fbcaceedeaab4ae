"""Widths of a projector, read off its own layers where they leave no doubt."""

from typing import Literal

from torch import nn

_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)
_KEEP_WIDTH = (
    nn.Identity, nn.Dropout, nn.AlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Softplus, nn.Sigmoid, nn.Tanh,
)  # fmt: skip


def infer_width(module: nn.Module, end: Literal["input", "output"]) -> int | None:
    """The number of features that a module takes or gives; None where that is open to doubt.

    Sure are linear and normalisation layers, a plain ``nn.Sequential`` up to the first layer that is sure,
    past layers that keep the width, and a module with one child, which then does the work.
    """
    if isinstance(module, nn.Linear):
        return (module.in_features if end == "input" else module.out_features) or None  # 0: lazy, not yet known
    if isinstance(module, _NORMS):
        return module.num_features or None
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[0] if len(module.normalized_shape) == 1 else None
    children = list(module.children())
    if type(module).forward is nn.Sequential.forward:
        for child in children if end == "input" else reversed(children):
            if not isinstance(child, _KEEP_WIDTH):
                return infer_width(child, end)
        return None
    return infer_width(children[0], end) if len(children) == 1 else None
